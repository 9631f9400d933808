"""What the demo's tasks have in common: how they get their inputs, and options to be slow, hungry or to fail
on purpose.

Those options are what a test of a workflow system needs: a chosen quantum that raises, exits with a code, is
killed by a signal, takes memory, takes time, or fails its first attempts only.
"""

# pex_config is not typed.
# mypy: allow-untyped-calls

from __future__ import annotations

__all__ = [
    "ATTEMPT_VARIABLE",
    "StarTask",
    "StarTaskConfig",
    "Trouble",
    "TroubleConfig",
    "TroubleError",
    "datasets",
]

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from lsst.pex.config import Config, Field
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections

from .condition import parse_condition

_LOG = logging.getLogger(__name__)

ATTEMPT_VARIABLE = "STARCAM_ATTEMPT"
"""Environment variable that holds the number of the attempt, from 0; the
demo's BPS configuration sets it to ``<WMS:attemptNum>``."""

_PAGE = 4096


class TroubleError(RuntimeError):
    """A failure that was asked for."""


class TroubleConfig(Config):
    """Options to make chosen quanta slow or fail; all off by default."""

    sleepSeconds: Field[float] = Field(
        dtype=float, default=0.0, doc="Seconds that a quantum sleeps before its work."
    )
    sleepIf: Field[str] = Field(
        dtype=str, default="", optional=True, doc="Condition on the data id: which sleep (empty: all)."
    )
    failIf: Field[str] = Field(
        dtype=str, default="", optional=True, doc="Condition on the data id: which quanta fail (empty: none)."
    )
    failAttempts: Field[int] = Field(
        dtype=int, default=0, doc="Fail in the first N attempts only, where the attempt is known; 0: in all."
    )
    exitCode: Field[int] = Field(
        dtype=int, default=0, doc="Fail by ending the process with this code, if not 0."
    )
    killSignal: Field[int] = Field(
        dtype=int, default=0, doc="Fail by sending the process this signal, if not 0."
    )
    useMemoryMb: Field[int] = Field(
        dtype=int,
        default=0,
        doc="Megabytes that a quantum chosen by failIf takes first. With neither exitCode nor killSignal it "
        "then goes on to work, holding them: whoever limits memory has to stop it.",
    )

    def validate(self) -> None:
        """Check the conditions' grammar, so that a graph with a wrong one
        cannot be built.
        """
        super().validate()
        parse_condition(self.sleepIf or "")
        parse_condition(self.failIf or "")


@dataclass(frozen=True, slots=True)
class Trouble:
    """What a task was asked to suffer.

    The last fields are the outside world, given so that it can be another.
    """

    config: TroubleConfig
    environment: Mapping[str, str]
    sleep: Callable[[float], None] = time.sleep
    exit_process: Callable[[int], None] = os._exit
    send_signal: Callable[[int, int], None] = os.kill

    def apply(self, data_id: Mapping[str, int | str]) -> object:
        """Do to a quantum what was asked for.

        Parameters
        ----------
        data_id : `~collections.abc.Mapping`
            Data id of the quantum.

        Returns
        -------
        memory : `object`
            What holds the memory that was taken: keep it while working.

        Raises
        ------
        TroubleError
            Raised if the quantum was chosen to fail by an exception.
        .ConditionError
            Raised if a condition names what the data id does not have.
        """
        config = self.config
        chosen_to_sleep = not (config.sleepIf or "").strip() or parse_condition(config.sleepIf)(data_id)
        if config.sleepSeconds and chosen_to_sleep:
            _LOG.info("Sleeping %s seconds, as asked for", config.sleepSeconds)
            self.sleep(config.sleepSeconds)
        if not parse_condition(config.failIf or "")(data_id) or self._past_failing():
            return None
        return self._fail(data_id)

    def _past_failing(self) -> bool:
        attempt = self.environment.get(ATTEMPT_VARIABLE, "")
        if not self.config.failAttempts or not attempt.isdecimal():
            return False
        return int(attempt) >= self.config.failAttempts

    def _fail(self, data_id: Mapping[str, int | str]) -> object:
        config = self.config
        text = f"deliberate failure of {dict(data_id)} (failIf={config.failIf!r})"
        memory = _take_memory(config.useMemoryMb) if config.useMemoryMb else None
        if config.killSignal:
            _LOG.error("%s: signal %s", text, config.killSignal)
            self._flush()
            self.send_signal(os.getpid(), signal.Signals(config.killSignal))
        elif config.exitCode:
            _LOG.error("%s: exit code %s", text, config.exitCode)
            self._flush()
            self.exit_process(config.exitCode)
        elif memory is None:
            raise TroubleError(text)
        return memory

    @staticmethod
    def _flush() -> None:
        """Write out what neither a signal nor ``os._exit`` would."""
        sys.stdout.flush()
        sys.stderr.flush()


def _take_memory(megabytes: int) -> object:
    """Take memory and touch each page, so that it is resident."""
    block = np.empty(megabytes * 1024 * 1024, dtype=np.uint8)
    block[::_PAGE] = 1
    return block


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
