"""Quanta that are slow or fail on purpose."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from lsst.daf.butler import DataCoordinate, DimensionUniverse
from lsst.pex.config import FieldValidationError
from lsst.pipe.base import NoWorkFound

from lsst.ctrl.bps.panda.demo.star_task import ATTEMPT_VARIABLE, TroubleError
from lsst.ctrl.bps.panda.demo.tasks import IsrTask


class _Quantum:
    """What a task sees of the Butler; it has no datasets, as the task reads and writes none."""

    def __init__(self, detector: int) -> None:
        names = {"instrument": "StarCam", "exposure": 5, "detector": detector, "band": "g"}
        names |= {"physical_filter": "star_g", "day_obs": 20260315, "group": "SC_5"}
        universe = DimensionUniverse()
        data_id = DataCoordinate.standardize(
            names, dimensions=universe.conform(("instrument", "exposure", "detector"))
        )
        self.quantum = type("Quantum", (), {"dataId": data_id})
        self.put_at: list[float] = []

    def put(self, values: Any, refs: Any) -> None:
        self.put_at.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


class _Task(IsrTask):
    """The quantum's trouble, and no work after it."""

    def run(self, **inputs: Any) -> Any:
        return None


def _config(**options: Any) -> Any:
    config = IsrTask.ConfigClass()
    for name, value in options.items():
        setattr(config, name, value)
    config.validate()
    return config


def _run(detector: int = 3, **options: Any) -> _Quantum:
    quantum = _Quantum(detector)
    _Task(config=_config(**options)).runQuantum(quantum, (), ())
    return quantum


def _ended(action: Callable[[], object]) -> int:
    """Do it in a process of its own, and say how that ended."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_nothing_is_done_by_default() -> None:
    assert _run().put_at


@pytest.mark.parametrize(
    ("expression", "fails"),
    [
        ("detector = 3", True),
        ("detector != 3", False),
        ("detector IN (1, 3..5) AND exposure IN (5)", True),
        ("detector > 3 OR exposure % 2 = 0", False),
        ("NOT (band = 'r' OR band = 'i')", True),
        ("physical_filter = 'star_g'", True),
        ("  ", False),
    ],
)
def test_only_chosen_quanta_fail(expression: str, fails: bool) -> None:
    if fails:
        with pytest.raises(TroubleError, match="deliberate failure"):
            _run(failIf=expression)
    else:
        assert _run(failIf=expression).put_at


def test_an_exception_can_be_chosen() -> None:
    with pytest.raises(NoWorkFound, match="deliberate failure"):
        _run(failIf="detector = 3", exception="lsst.pipe.base.NoWorkFound")


def test_exit_code_and_signal() -> None:
    assert _ended(lambda: _run(failIf="exposure = 5", exitCode=42)) == 42
    assert _ended(lambda: _run(failIf="exposure = 5", killSignal=9)) == -signal.SIGKILL
    assert _ended(lambda: _run(failIf="exposure = 6", exitCode=42)) == 99


def test_memory_is_held_while_the_quantum_works() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (held,) = _run(failIf="exposure = 5", useMemoryMb=int(before) + 100).put_at
    assert held > before + 99


def test_sleep_of_all_or_of_chosen_ones() -> None:
    begun = time.monotonic()
    _run(sleepSeconds=60.0, sleepIf="detector = 2")
    assert time.monotonic() < begun + 30.0
    _run(sleepSeconds=0.2)
    assert time.monotonic() > begun + 0.2


@pytest.mark.parametrize(
    ("attempt", "fails"), [(None, True), ("", True), ("x", True), ("0", True), ("1", True), ("2", False)]
)
def test_first_attempts_only(attempt: str | None, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if attempt is None:
        monkeypatch.delenv(ATTEMPT_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(ATTEMPT_VARIABLE, attempt)
    if fails:
        with pytest.raises(TroubleError):
            _run(failIf="detector = 3", failAttempts=2)
    else:
        assert _run(failIf="detector = 3", failAttempts=2).put_at


@pytest.mark.parametrize("name", ["failIf", "sleepIf"])
@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("detector is 3", "Syntax error at or near 'is'"),
        ("detector = 3 AND", "End of input"),
        ("detector", "non-boolean"),
        ("detectr = 3", "detectr is not in the data ID, which has band, day_obs, detector, exposure"),
        ("visit = 3", "visit is not in the data ID"),
        ("band = g", "g is not in the data ID"),
        ("detector = '3'", "detector is compared with '3', but it is of type int"),
        ("band IN (1..3)", "band is compared with 1, but it is of type str"),
        ("detector = one(3)", "functions"),
    ],
)
def test_a_wrong_expression_is_found_before_anything_runs(name: str, expression: str, reason: str) -> None:
    with pytest.raises(FieldValidationError, match=f"(?s)Field '{name}'.*{name}=.*({reason})"):
        _config(**{name: expression})


@pytest.mark.parametrize(
    "exception", ["NoSuchError", "lsst.pipe.base.NoSuchError", "os.path.join", "builtins.int"]
)
def test_an_unknown_exception_is_found_before_anything_runs(exception: str) -> None:
    with pytest.raises(FieldValidationError, match="is not the full name of an exception"):
        _config(exception=exception)
