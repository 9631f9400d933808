"""What the demo's tasks have in common: how they get their inputs, and options that make quanta slow, hungry
or fail on purpose.  Butler's expression language chooses them, as it does for the mock tasks of pipe_base.
"""

# pex_config is not typed.
# mypy: allow-untyped-calls

from __future__ import annotations

__all__ = ["ATTEMPT_VARIABLE", "StarTask", "StarTaskConfig", "TroubleError", "datasets"]

import inspect
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
"""Number of the attempt, from 0; the demo's BPS configuration sets it to ``<WMS:attemptNum>``."""


class TroubleError(RuntimeError):
    """A failure that was asked for."""


_DEFAULT = f"{TroubleError.__module__}.{TroubleError.__qualname__}"


class _NoConnections(PipelineTaskConnections, dimensions=()):
    """`PipelineTaskConfig` wants connections even of a parent class."""


class StarTaskConfig(PipelineTaskConfig, pipelineConnections=_NoConnections):
    """Options to make chosen quanta slow or fail, all off by default, for a task's own options to extend."""

    sleepSeconds = Field[float]("Seconds that a quantum sleeps before its work.", default=0.0)
    sleepIf = Field[str]("Butler expression on the data ID: which quanta sleep (empty: all).", default="")
    failIf = Field[str]("Butler expression on the data ID: which quanta fail (empty: none).", default="")
    failAttempts = Field[int](
        "Fail in the first N attempts only, where the attempt is known; 0: in all.", default=0
    )
    exception = Field[str](
        "Fail by raising this exception; lsst.pipe.base.NoWorkFound counts as success.", default=_DEFAULT
    )
    exitCode = Field[int]("Fail by ending the process with this code, if not 0.", default=0)
    killSignal = Field[int]("Fail by sending the process this signal, if not 0.", default=0)
    useMemoryMb = Field[int](
        "Megabytes that a quantum chosen by failIf takes first. With neither exitCode nor killSignal it "
        "then goes on to work, holding them: whoever limits memory has to stop it.",
        default=0,
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
        known = dimensions.universe.dimensions
        sample = {key: _sample(key, known[key].primaryKey.getPythonType()) for key in dimensions.names}
        try:
            _matches(text, sample)
        except KeyError as error:
            reason = f"{error.args[0]} is not in the data ID, which has {', '.join(sorted(sample))}"
        except NotImplementedError:
            reason = "functions, tuples and bound names cannot be used here"
        except Exception as error:  # The parser has several classes of errors.
            reason = str(error) or type(error).__name__
        else:
            return
        problem = (
            f"{name}={text!r} is not a Butler expression on the data ID of this task: {reason}. "
            "Write it like: band IN ('g') AND NOT detector IN (1, 4..6)"
        )
        raise FieldValidationError(self._fields[name], self, problem)


def _matches(expression: str, data_id: Mapping[str, Any]) -> bool:
    # Parser and mocks take a tenth of a second to import, which most quanta do not need.
    from lsst.pipe.base.tests.mocks import DataIdMatch

    return DataIdMatch(expression).match(data_id)


def _sample(name: str, kind: type[int] | type[str]) -> Any:
    """Make a value that compares with values of its kind only: to others it would never be equal."""

    def compare(self: object, other: object) -> bool:
        if not isinstance(other, kind):
            raise TypeError(f"{name} is compared with {other!r}, but it is of type {kind.__name__}")
        return True

    methods = dict.fromkeys(("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"), compare)
    return type("Sample", (kind,), {**methods, "__hash__": kind.__hash__})(1)


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
    memory[::4096] = 1  # Pages that are touched are resident.
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
    """A task whose ``run`` gets plain values: its inputs, and what it names of the data ID.

    An input with several datasets arrives as a dictionary, ordered by its keys: the values of the dimension
    that the quantum does not have (for instance ``{detector: image}``).  So nothing depends on the order in
    which the Butler gives datasets.
    """

    ConfigClass: ClassVar[type[StarTaskConfig]] = StarTaskConfig
    config: StarTaskConfig

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:  # noqa: D102
        data_id = butlerQC.quantum.dataId
        memory = _make_trouble(self.config, dict(data_id.mapping))
        inputs = {name: datasets(butlerQC, refs, data_id.dimensions.names) for name, refs in inputRefs}
        named = inspect.signature(self.run).parameters
        values = {name: value for name, value in data_id.mapping.items() if name in named}
        butlerQC.put(self.run(**inputs, **values), outputRefs)
        del memory


def datasets(butlerQC: Any, refs: Any, own: Iterable[str]) -> Any:
    """Read an input: a dataset, or a dictionary by the dimension that the quantum lacks, in order."""
    if not isinstance(refs, list | tuple):
        return butlerQC.get(refs)
    by_key = {}
    for ref in refs:
        (name,) = ref.dataId.dimensions.required - {*own, "instrument"}
        by_key[ref.dataId[name]] = ref
    return {key: butlerQC.get(by_key[key]) for key in sorted(by_key)}
