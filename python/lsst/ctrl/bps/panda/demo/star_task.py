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
    "Condition",
    "ConditionError",
    "StarTask",
    "StarTaskConfig",
    "Trouble",
    "TroubleConfig",
    "TroubleError",
    "datasets",
    "parse_condition",
]

import logging
import operator
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from lsst.pex.config import Config, Field
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections

_LOG = logging.getLogger(__name__)

ATTEMPT_VARIABLE = "STARCAM_ATTEMPT"
"""Environment variable that holds the number of the attempt, from 0; the
demo's BPS configuration sets it to ``<WMS:attemptNum>``."""

_PAGE = 4096


# --- conditions on data ids ---

DataIdValue = int | str
DataId = Mapping[str, DataIdValue]
Condition = Callable[[DataId], bool]

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<range>-?\d+\.\.-?\d+)
    | (?P<number>-?\d+(?![\w.]))
    | (?P<word>[A-Za-z_][\w-]*)
    | (?P<quoted>'[^']*'|"[^"]*")
    | (?P<operator><=|>=|!=|==|[=<>:])
    | (?P<mark>[(),])
    )""",
    re.VERBOSE,
)
_OPERATORS: dict[str, Callable[[DataIdValue, DataIdValue], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "is": operator.eq,
    ":": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_KEYWORDS = frozenset({"and", "or", "not", "in", "is"})


class ConditionError(ValueError):
    """A condition that cannot be understood, or that does not fit the data
    id it is asked about.
    """


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int


def parse_condition(text: str) -> Condition:
    """Read a condition on data ids, in a small language of its own.

    .. code-block:: text

        detector is 3 and visit in (1, 4..6)
        not (band is g or band is r)
        exposure > 7

    A comparison is the name of a dimension, an operator (``=``, ``==``, ``is``,
    ``:``, ``!=``, ``<``, ``<=``, ``>``, ``>=``) and a value, or ``NAME in (...)`` with
    values and inclusive ranges; ``not`` binds tighter than ``and``, that tighter
    than ``or``.  Values are integers, words or quoted texts.  Nothing is ever
    evaluated as Python.  The word ``is`` and the colon are there because
    ``pipetask --config`` takes no second ``=``.

    Parameters
    ----------
    text : `str`
        The condition; blank means one that is never true.

    Returns
    -------
    condition : `~collections.abc.Callable`
        Takes a data id as a mapping and says whether the condition holds for
        it.  It raises `ConditionError` if the data id lacks a dimension that
        it names, or has a number where the condition has a word.

    Raises
    ------
    ConditionError
        Raised if the text is not a condition.
    """
    if not text.strip():
        return lambda data_id: False
    parser = _Parser(text, _tokens(text))
    condition = parser.alternatives()
    parser.expect_end()
    return condition


def _tokens(text: str) -> list[_Token]:
    tokens, position = [], 0
    end = len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise ConditionError(f"condition {text!r}: cannot read {text[position:].strip()!r}")
        tokens.append(_Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)))
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent; one method a rule of the grammar."""

    def __init__(self, text: str, tokens: list[_Token]) -> None:
        self._text = text
        self._tokens = tokens
        self._next = 0

    def alternatives(self) -> Condition:
        parts = [self._conjunction()]
        while self._accept("or"):
            parts.append(self._conjunction())
        return parts[0] if len(parts) == 1 else lambda data_id: any(part(data_id) for part in parts)

    def expect_end(self) -> None:
        if self._next < len(self._tokens):
            raise self._error("the end, 'and' or 'or'")

    def _conjunction(self) -> Condition:
        parts = [self._factor()]
        while self._accept("and"):
            parts.append(self._factor())
        return parts[0] if len(parts) == 1 else lambda data_id: all(part(data_id) for part in parts)

    def _factor(self) -> Condition:
        if self._accept("not"):
            inner = self._factor()
            return lambda data_id: not inner(data_id)
        if self._accept("("):
            inner = self.alternatives()
            self._require(")")
            return inner
        return self._comparison()

    def _comparison(self) -> Condition:
        name = self._take({"word"}, "the name of a dimension").text
        if name in _KEYWORDS:
            self._next -= 1
            raise self._error("the name of a dimension")
        if self._accept("in"):
            return self._membership(name)
        sign = self._take({"operator", "word"}, "an operator")
        if sign.text not in _OPERATORS:
            self._next -= 1
            raise self._error("an operator")
        compare, value = _OPERATORS[sign.text], self._value()
        return lambda data_id: compare(_look_up(data_id, name, value), value)

    def _membership(self, name: str) -> Condition:
        self._require("(")
        tests = [self._member(name)]
        while self._accept(","):
            tests.append(self._member(name))
        self._require(")")
        return lambda data_id: any(test(data_id) for test in tests)

    def _member(self, name: str) -> Condition:
        if self._peek() is not None and self._tokens[self._next].kind == "range":
            first, last = map(int, self._take({"range"}, "a range").text.split(".."))

            def inside(data_id: DataId) -> bool:
                number = _look_up(data_id, name, first)
                return isinstance(number, int) and first <= number <= last

            return inside
        value = self._value()
        return lambda data_id: _look_up(data_id, name, value) == value

    def _value(self) -> DataIdValue:
        token = self._take({"number", "word", "quoted"}, "a value")
        if token.kind == "number":
            return int(token.text)
        return token.text[1:-1] if token.kind == "quoted" else token.text

    def _peek(self) -> str | None:
        return self._tokens[self._next].text if self._next < len(self._tokens) else None

    def _accept(self, text: str) -> bool:
        if self._peek() != text:
            return False
        self._next += 1
        return True

    def _require(self, text: str) -> None:
        if not self._accept(text):
            raise self._error(repr(text))

    def _take(self, kinds: set[str], wanted: str) -> _Token:
        if self._next >= len(self._tokens) or self._tokens[self._next].kind not in kinds:
            raise self._error(wanted)
        self._next += 1
        return self._tokens[self._next - 1]

    def _error(self, wanted: str) -> ConditionError:
        if self._next < len(self._tokens):
            token = self._tokens[self._next]
            where = f"found {token.text!r} at position {token.start}"
        else:
            where = "found its end"
        return ConditionError(f"condition {self._text!r}: wanted {wanted}, {where}")


def _look_up(data_id: DataId, name: str, like: DataIdValue) -> DataIdValue:
    """Get a value of the data id, which must be of the type of ``like``."""
    if name not in data_id:
        raise ConditionError(f"condition names {name!r}; the data id has {', '.join(sorted(data_id))}")
    value = data_id[name]
    if isinstance(value, int) != isinstance(like, int):
        raise ConditionError(f"condition compares {name}={value!r} of the data id with {like!r}")
    return value


# --- trouble ---


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
