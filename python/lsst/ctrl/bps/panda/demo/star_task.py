"""What the demo's tasks have in common: how they get their inputs, and options to be slow, hungry or to fail
on purpose.

Those options are what a test of a workflow system needs: a chosen quantum that raises, exits with a code, is
killed by a signal, takes memory, takes time, or fails its first attempts only.  Quanta are chosen by Butler's
expression language, as the mock tasks of pipe_base choose theirs.
"""

# pex_config is not typed.
# mypy: allow-untyped-calls

from __future__ import annotations

__all__ = ["ATTEMPT_VARIABLE", "StarTask", "StarTaskConfig", "TroubleError", "datasets"]

import logging
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from lsst.daf.butler import DimensionUniverse
from lsst.pex.config import Field, FieldValidationError
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections
from lsst.utils.doImport import doImportType

_LOG = logging.getLogger(__name__)

ATTEMPT_VARIABLE = "STARCAM_ATTEMPT"
"""Environment variable that holds the number of the attempt, from 0; the
demo's BPS configuration sets it to ``<WMS:attemptNum>``."""

_PAGE = 4096


class TroubleError(RuntimeError):
    """A failure that was asked for."""


_DEFAULT = f"{TroubleError.__module__}.{TroubleError.__qualname__}"


class _NoConnections(PipelineTaskConnections, dimensions=()):
    """`PipelineTaskConfig` wants connections even of a parent class."""


class StarTaskConfig(PipelineTaskConfig, pipelineConnections=_NoConnections):
    """Options to make chosen quanta slow or fail, all off by default, for a task's own options to extend."""

    sleepSeconds: Field[float] = Field(
        dtype=float, default=0.0, doc="Seconds that a quantum sleeps before its work."
    )
    sleepIf: Field[str] = Field(
        dtype=str, default="", doc="Butler expression on the data ID: which quanta sleep (empty: all)."
    )
    failIf: Field[str] = Field(
        dtype=str, default="", doc="Butler expression on the data ID: which quanta fail (empty: none)."
    )
    failAttempts: Field[int] = Field(
        dtype=int, default=0, doc="Fail in the first N attempts only, where the attempt is known; 0: in all."
    )
    exception: Field[str] = Field(
        dtype=str,
        default=_DEFAULT,
        doc="Fail by raising this exception; lsst.pipe.base.NoWorkFound counts as success.",
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
        """Try the expressions and the exception, so that a graph with a wrong one cannot be built."""
        super().validate()
        for name in ("sleepIf", "failIf"):
            if text := getattr(self, name).strip():
                self._try_expression(name, text)
        try:
            known = issubclass(doImportType(self.exception), BaseException)
        except (ImportError, TypeError, ValueError):
            known = False
        if not known:
            problem = f"exception={self.exception!r} is not the full name of an exception, such as {_DEFAULT}"
            raise FieldValidationError(self._fields["exception"], self, problem)

    def _try_expression(self, name: str, text: str) -> None:
        """Evaluate an expression with a data ID that has the quanta's dimensions and accepts all values."""
        dimensions = DimensionUniverse().conform(type(self).ConnectionsClass.dimensions)
        kinds = {
            key: dimensions.universe.dimensions[key].primaryKey.getPythonType() for key in dimensions.names
        }
        try:
            _matches(text, {key: _sample(key, kind) for key, kind in kinds.items()})
        except Exception as error:  # The parser has several classes of errors.
            reason = str(error) or type(error).__name__
            if isinstance(error, KeyError):
                reason = f"{error.args[0]} is not in the data ID, which has {', '.join(sorted(kinds))}"
            elif isinstance(error, NotImplementedError):
                reason = "functions, tuples and bound names cannot be used here"
            problem = (
                f"{name}={text!r} is not a Butler expression on the data ID of this task: {reason}. "
                "Write it like: band IN ('g') AND NOT detector IN (1, 4..6)"
            )
            raise FieldValidationError(self._fields[name], self, problem) from None


def _matches(expression: str, data_id: Mapping[str, Any]) -> bool:
    # Parser and mocks take a tenth of a second to import, which most quanta do not need.
    from lsst.pipe.base.tests.mocks import DataIdMatch

    return DataIdMatch(expression).match(data_id)


def _sample(name: str, kind: type[int] | type[str]) -> int | str:
    """Make a value that compares with values of its kind only: to others it would never be equal."""

    def compare(self: object, other: object) -> bool:
        if not isinstance(other, kind):
            raise TypeError(f"{name} is compared with {other!r}, but it is of type {kind.__name__}")
        return True

    methods = dict.fromkeys(("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"), compare)
    sample: int | str = type("Sample", (kind,), {**methods, "__hash__": kind.__hash__})(1)
    return sample


def _make_trouble(config: StarTaskConfig, data_id: Mapping[str, int | str]) -> object:
    """Do to a quantum what its options ask for; return what holds the memory that was taken."""
    if config.sleepSeconds and (not config.sleepIf.strip() or _matches(config.sleepIf, data_id)):
        _LOG.info("Sleeping %s seconds, as asked for", config.sleepSeconds)
        time.sleep(config.sleepSeconds)
    attempt = os.environ.get(ATTEMPT_VARIABLE, "")
    if config.failAttempts and attempt.isdecimal() and int(attempt) >= config.failAttempts:
        return None
    if not config.failIf.strip() or not _matches(config.failIf, data_id):
        return None
    text = f"deliberate failure of {dict(data_id)} (failIf={config.failIf!r})"
    memory = np.empty(config.useMemoryMb * 1024 * 1024, dtype=np.uint8)
    memory[::_PAGE] = 1  # Pages that are touched are resident.
    if config.killSignal or config.exitCode:
        _LOG.error("%s: signal %d, exit code %d", text, config.killSignal, config.exitCode)
        # Neither a signal nor os._exit writes these out.
        sys.stdout.flush()
        sys.stderr.flush()
        if config.killSignal:
            signal.raise_signal(signal.Signals(config.killSignal))
        else:
            os._exit(config.exitCode)
    elif not config.useMemoryMb:
        raise doImportType(config.exception)(text)
    return memory


class StarTask(PipelineTask):
    """A task whose ``run`` gets plain values.

    An input with several datasets arrives as a dictionary, ordered by its
    keys: the values of the dimension that the quantum does not have (for
    instance ``{detector: image}``).  So nothing depends on the order in which
    the Butler gives datasets.
    """

    ConfigClass: ClassVar[type[StarTaskConfig]] = StarTaskConfig
    config: StarTaskConfig
    run_dimensions: ClassVar[tuple[str, ...]] = ()
    """Dimensions of the quantum whose values ``run`` gets as arguments."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:  # noqa: D102
        data_id = dict(butlerQC.quantum.dataId.mapping)
        memory = _make_trouble(self.config, data_id)
        own = butlerQC.quantum.dataId.dimensions.names
        inputs = {name: datasets(butlerQC, refs, own) for name, refs in inputRefs}
        values = {name: data_id[name] for name in self.run_dimensions}
        butlerQC.put(self.run(**inputs, **values), outputRefs)
        del memory


def datasets(butlerQC: Any, refs: Any, own: Iterable[str]) -> Any:
    """Read an input: a dataset, or a dictionary by the dimension that the quantum lacks, in order."""
    if not isinstance(refs, list | tuple):
        return butlerQC.get(refs)
    known = {*own, "instrument"}
    by_key = {}
    for ref in refs:
        (name,) = (name for name in ref.dataId.dimensions.required if name not in known)
        by_key[ref.dataId[name]] = ref
    return {key: butlerQC.get(by_key[key]) for key in sorted(by_key)}
