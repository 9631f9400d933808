"""Whether all that a run should have made is in the Butler."""

from __future__ import annotations

__all__ = ["count_outputs", "missing_outputs"]

import os

from lsst.daf.butler import Butler, MissingDatasetTypeError

from .repository import INPUTS

_COUNTED = (
    "post_isr_image",
    "calibrated_image",
    "source_table",
    "visit_summary",
    "warp",
    "coadd",
    "patch_object_table",
    "object_table",
)


def count_outputs(repo: str | os.PathLike[str], run: str) -> dict[str, int]:
    """Count the datasets of a run.

    Parameters
    ----------
    repo : path-like
        Butler repository.
    run : `str`
        Collection of the run's outputs.

    Returns
    -------
    counts : `dict` [`str`, `int`]
        By dataset type, of the pipeline's main products; only datasets whose
        files exist count.
    """
    with Butler.from_config(str(repo)) as butler:
        if run not in set(butler.collections.query("*")):
            return dict.fromkeys(_COUNTED, 0)
        return {name: _count(butler, name, run) for name in _COUNTED}


def _count(butler: Butler, name: str, run: str) -> int:
    try:
        refs = butler.query_datasets(name, collections=run, explain=False, limit=None)
    except MissingDatasetTypeError:
        return 0
    return sum(butler.stored_many(refs).values())


def missing_outputs(repo: str | os.PathLike[str], run: str) -> tuple[str, ...]:
    """Tell what a run of the whole pipeline should have made and has not.

    Parameters
    ----------
    repo : path-like
        Butler repository.
    run : `str`
        Collection of the run's outputs.

    Returns
    -------
    problems : `tuple` [`str`, ...]
        One text a dataset type; empty if all is there.
    """
    with Butler.from_config(str(repo), collections=INPUTS) as butler:
        raws = butler.query_datasets("starcam_raw", limit=None)
        visits = {ref.dataId["exposure"] for ref in raws}
        bands = {record.physical_filter for record in butler.query_dimension_records("visit", limit=None)}
        patches = len(butler.query_dimension_records("patch", limit=None))
    least = {
        "post_isr_image": len(raws),
        "calibrated_image": len(raws),
        "source_table": len(raws),
        "visit_summary": len(visits),
        "warp": len(visits),
        "coadd": patches * len(bands),
        "patch_object_table": patches,
        "object_table": 1,
    }
    counts = count_outputs(repo, run)
    return tuple(
        f"{counts[name]} of {number} {name}" for name, number in least.items() if counts[name] < number
    )
