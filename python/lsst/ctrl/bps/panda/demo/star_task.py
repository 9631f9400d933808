"""What the demo's tasks have in common."""

# pex_config is not typed.
# mypy: allow-untyped-calls

from __future__ import annotations

__all__ = ["StarTask", "StarTaskConfig", "datasets"]

import os
from collections.abc import Iterable
from typing import Any, ClassVar

from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections

from .trouble import Trouble, TroubleConfig


class _NoConnections(PipelineTaskConnections, dimensions=()):
    """`PipelineTaskConfig` wants connections even of a parent class."""


class StarTaskConfig(PipelineTaskConfig, TroubleConfig, pipelineConnections=_NoConnections):
    """The options to be slow or to fail, for a task's own options to extend."""


class StarTask(PipelineTask):
    """A task whose ``run`` gets plain values.

    An input with several datasets arrives as a dictionary, ordered by its
    keys: the values of the dimension that the quantum does not have (for
    instance ``{detector: image}``).  So nothing depends on the order in which
    the Butler gives datasets.
    """

    ConfigClass: ClassVar[type[StarTaskConfig]] = StarTaskConfig
    config: StarTaskConfig

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:  # noqa: D102
        data_id = dict(butlerQC.quantum.dataId.mapping)
        memory = Trouble(self.config, os.environ).apply(data_id)
        own = butlerQC.quantum.dataId.dimensions.names
        inputs = {name: datasets(butlerQC, refs, own) for name, refs in inputRefs}
        butlerQC.put(self.run(**inputs, **self.identity(data_id)), outputRefs)
        del memory

    def identity(self, data_id: dict[str, int | str]) -> dict[str, Any]:
        """Give the parts of the data id that ``run`` needs, as its arguments."""
        return {}


def datasets(butlerQC: Any, refs: Any, own: Iterable[str]) -> Any:
    """Read an input of a quantum.

    Parameters
    ----------
    butlerQC : `lsst.pipe.base.QuantumContext`
        Where from.
    refs : `lsst.daf.butler.DatasetRef` or `list` of them
        What.
    own : `~collections.abc.Iterable` [`str`]
        Names of the quantum's dimensions.

    Returns
    -------
    value : `object`
        The dataset, or a dictionary of datasets in the order of its keys.
    """
    if not isinstance(refs, list | tuple):
        return butlerQC.get(refs)
    known = {*own, "instrument"}
    by_key = {}
    for ref in refs:
        (name,) = (name for name in ref.dataId.dimensions.required if name not in known)
        by_key[ref.dataId[name]] = ref
    return {key: butlerQC.get(by_key[key]) for key in sorted(by_key)}
