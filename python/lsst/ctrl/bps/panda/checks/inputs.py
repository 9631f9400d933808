"""What a quantum graph is made from: whether the pipeline, its labels, the Butler and a given graph exist."""

from __future__ import annotations

__all__ = ["check_inputs", "closest", "read_labels"]

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path

from lsst.pipe.base import Pipeline
from lsst.resources import ResourcePath

from ..errors import SettingsError
from ..findings import Finding, Severity
from ..settings.configuration import GraphCommand, GraphInput
from ..settings.sites import variables_in

_error = partial(Finding, Severity.ERROR)

_REPOSITORY_VARIABLES = frozenset({"DAF_BUTLER_REPOSITORIES", "DAF_BUTLER_REPOSITORY_INDEX"})


def check_inputs(graph: GraphCommand, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check that the pipeline, the Butler and a given quantum graph exist.

    Only what is on this machine is checked.  A command other than ``pipetask`` may see
    other files, in a container for instance.
    """
    if not re.match(r"(\S*/)?pipetask\s", graph.written):
        return
    for given in graph.inputs:
        key, raw = given.key, given.written
        if given.is_evaluated or not raw:
            continue
        if unset := sorted(name for name in variables_in(raw) if not environment.get(name)):
            if not _is_in_package(raw.partition("#")[0]):
                yield _error(
                    f"{key} is {raw!r}, but the environment variable {unset[0]} is not set. Set it "
                    f"(if it ends in _DIR: setup that product of an LSST stack), or set {key} to a path.",
                    key,
                )
            continue
        yield from _check_butler(given, environment) if key == "butlerConfig" else _check_file(given)


def _missing(given: GraphInput) -> Finding:
    return _error(
        f"{given.key} is {given.value!r}, which is not there. Is this the machine that has it?", given.key
    )


def _check_butler(given: GraphInput, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check that a Butler is there: a directory or a file here, or a name in the
    index of repositories.
    """
    uri = ResourcePath(given.value, forceAbsolute=False)
    if uri.isLocal and not ("/" in given.value or uri.exists() or _REPOSITORY_VARIABLES & environment.keys()):
        yield _error(
            f"butlerConfig is {given.value!r}, which is no directory here, and there is no index of names: "
            f"{' and '.join(sorted(_REPOSITORY_VARIABLES))} are not set. Give a path, or set one of them.",
            given.key,
        )
    elif uri.isLocal and "/" in given.value:
        place = Path(uri.ospath)
        if not place.exists():
            yield _missing(given)
        elif place.is_dir() and not Path(place, "butler.yaml").exists():
            yield _error(
                f"butlerConfig is {given.value!r}, which holds no butler.yaml. Give a Butler's directory.",
                given.key,
            )


def _check_file(given: GraphInput) -> Iterator[Finding]:
    """Check a pipeline, with the labels after ``#``, or a quantum graph."""
    name, _, chosen = given.value.partition("#")
    uri = ResourcePath(os.path.expanduser(name), forceAbsolute=False)
    if not (uri.isLocal or uri.scheme == "resource") or "{" in name:
        return
    if not uri.exists():
        yield _missing(given)
    elif given.key == "pipelineYaml":
        try:
            labels, subsets = read_labels(name)
        except SettingsError as error:
            yield Finding.from_error(error)
            return
        names = sorted(labels | subsets)
        for label in filter(None, re.split(r",|\.\.", chosen)):
            if label.strip() not in names:
                meant = closest(label.strip(), names) or "."
                yield _error(
                    f"pipelineYaml is {given.value!r}, and the pipeline has no {label.strip()}{meant} It has "
                    f"{', '.join(names)}.",
                    given.key,
                )


def _is_in_package(path: str) -> bool:
    """Tell whether a Python package has the file: where ``PRODUCT_DIR`` is
    not set, `lsst.resources` looks for ``${PRODUCT_DIR}/...`` in the package
    of that product.
    """
    try:
        return bool(ResourcePath(path).exists())
    except (OSError, ValueError):
        return False


@cache
def read_labels(pipeline: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the labels of all tasks of a pipeline, and its subsets."""
    try:
        whole = Pipeline.from_uri(pipeline.partition("#")[0])
        return frozenset(whole.task_labels), frozenset(whole.subsets)
    except Exception as error:
        text = f"pipelineYaml is {pipeline!r}, which is no pipeline: {error}. Correct the file or the key."
        raise SettingsError(text, key="pipelineYaml") from error


def closest(name: str, names: Iterable[str], *, likeness: float = 0.7) -> str:
    """Return a question for the name that is probably meant; empty if there is none."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=likeness)
    return f"; did you mean {near[0]}?" if near else ""
