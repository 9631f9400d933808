"""The images of a run of the demo: which there are, their pixels, what was found on them, and tables; read
from the run's Butler repository, which is not changed.
"""

from __future__ import annotations

__all__ = ["IMAGE_KINDS", "TABLE_KINDS", "Images"]

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ..errors import PandaBpsError, RunNotFoundError, SettingsError
from ..runs.record import read_record
from ..status.evidence import RunEvidence

if TYPE_CHECKING:
    from ..demo.pictures import Gallery, Picture

IMAGE_KINDS = {"fits": "image/fits", "pixels": "application/octet-stream"}
TABLE_KINDS = {"csv": "text/csv", "fits": "application/fits", "parquet": "application/vnd.apache.parquet"}
"""Forms in which images and tables are given away, and of what type they are."""


class Images:
    """The images of runs whose repositories are on this machine; none unless they may be shown."""

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        # A Butler at a time: nothing here is in a hurry, and all of it takes memory.
        self._lock = threading.Lock()

    def find(self, run: RunEvidence) -> tuple[str, str] | None:
        """Find the repository of a run and the collection of its outputs, if it is one of the demo's."""
        return _find(run.plan.path) if self._shown and run.plan is not None and run.plan.path else None

    @contextmanager
    def open(self, run: RunEvidence) -> Iterator[Gallery]:
        """Open the images of a run; `.RunNotFoundError` says that there are none."""
        place = self.find(run)
        if place is None:
            raise RunNotFoundError(
                f"Run {run.request_id} has no images that can be shown: it is no run of the demo whose "
                "repository is on this machine."
            )
        from ..demo.pictures import Gallery

        try:
            with self._lock, Gallery(*place) as gallery:
                yield gallery
        except SettingsError as error:
            raise RunNotFoundError(f"Run {run.request_id}: {error}.") from error

    def read(self, run: RunEvidence, name: str, form: str) -> tuple[bytes, str]:
        """Read an image as a file, or its pixels, and tell of what type they are."""
        with self.open(run) as gallery:
            picture = gallery.read(name)
        return (picture.to_fits() if form == "fits" else picture.to_bytes()), IMAGE_KINDS[form]

    def read_table(self, run: RunEvidence, name: str, form: str) -> tuple[bytes, str]:
        """Read a table as a file, and tell of what type it is."""
        with self.open(run) as gallery:
            return gallery.table_file(name, form), TABLE_KINDS[form]

    def describe(self, run: RunEvidence, name: str) -> dict[str, Any]:
        """Tell all of an image but its pixels."""
        with self.open(run) as gallery:
            picture = gallery.read(name)
        return _describe(picture)


def _describe(picture: Picture) -> dict[str, Any]:
    rows, columns = picture.pixels.shape[:2]
    frame = picture.wcs.wcs
    return {
        "name": picture.name,
        "title": picture.title,
        "unit": picture.unit,
        "width": columns,
        "height": rows,
        "colour": picture.pixels.ndim == 3,
        "levels": list(picture.levels()),
        "wcs": {
            "crval": [float(value) for value in frame.crval],
            # FITS counts from 1.
            "crpix": [float(value) - 1.0 for value in frame.crpix],
            "cd": picture.wcs.pixel_scale_matrix.tolist(),
        },
        "found": picture.found,
        "objects": picture.objects,
        "truth": picture.truth,
    }


@lru_cache(maxsize=100)
def _find(directory: str) -> tuple[str, str] | None:
    from ..runs.provenance import read_butler

    try:
        record = read_record(directory)
        place = urlsplit(read_butler(record))
    except PandaBpsError:
        return None
    path = unquote(place.path) if place.scheme in ("", "file") else ""
    from ..demo.repository import is_demo

    return (path, record.run.output_run) if path and is_demo(path) else None
