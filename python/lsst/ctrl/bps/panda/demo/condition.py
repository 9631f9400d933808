"""Conditions on data ids, in a small language of their own.

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
"""

from __future__ import annotations

__all__ = ["Condition", "ConditionError", "parse_condition"]

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
    """Read a condition.

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
