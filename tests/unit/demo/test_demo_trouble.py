"""Quanta that are slow or fail on purpose."""

import signal
from typing import Any

import pytest
from lsst.pex.config import FieldValidationError

from lsst.ctrl.bps.panda.demo.single_frame import IsrTask
from lsst.ctrl.bps.panda.demo.star_task import (
    ATTEMPT_VARIABLE,
    ConditionError,
    Trouble,
    TroubleConfig,
    TroubleError,
)

_CHOSEN = {"detector": 3, "visit": 5}
_OTHER = {"detector": 2, "visit": 5}


class _World:
    """Notes what would happen to the process."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.codes: list[int] = []
        self.signals: list[int] = []

    def trouble(self, environment: dict[str, str] | None = None, **options: Any) -> Trouble:
        config = TroubleConfig()
        for name, value in options.items():
            setattr(config, name, value)
        config.validate()
        return Trouble(
            config,
            environment or {},
            sleep=self.slept.append,
            exit_process=self.codes.append,
            send_signal=lambda pid, number: self.signals.append(number),
        )


def test_nothing_is_done_by_default() -> None:
    world = _World()
    assert world.trouble().apply(_CHOSEN) is None
    assert (world.slept, world.codes, world.signals) == ([], [], [])


def test_only_chosen_quanta_fail() -> None:
    trouble = _World().trouble(failIf="detector is 3")
    trouble.apply(_OTHER)
    with pytest.raises(TroubleError, match="detector is 3"):
        trouble.apply(_CHOSEN)


def test_exit_code_and_signal() -> None:
    world = _World()
    world.trouble(failIf="visit = 5", exitCode=42).apply(_CHOSEN)
    world.trouble(failIf="visit = 5", killSignal=9).apply(_CHOSEN)
    assert world.codes == [42]
    assert world.signals == [signal.SIGKILL]


def test_memory_is_held_while_the_quantum_works() -> None:
    held = _World().trouble(failIf="visit = 5", useMemoryMb=3).apply(_CHOSEN)
    assert getattr(held, "nbytes", 0) == 3 * 1024 * 1024


def test_sleep_of_all_or_of_chosen_ones() -> None:
    world = _World()
    world.trouble(sleepSeconds=0.5).apply(_OTHER)
    chosen = world.trouble(sleepSeconds=7.0, sleepIf="detector = 3")
    chosen.apply(_OTHER)
    chosen.apply(_CHOSEN)
    assert world.slept == [0.5, 7.0]


@pytest.mark.parametrize(
    ("attempt", "fails"), [(None, True), ("", True), ("x", True), ("0", True), ("1", True), ("2", False)]
)
def test_first_attempts_only(attempt: str | None, fails: bool) -> None:
    environment = {} if attempt is None else {ATTEMPT_VARIABLE: attempt}
    trouble = _World().trouble(environment, failIf="detector = 3", failAttempts=2)
    if fails:
        with pytest.raises(TroubleError):
            trouble.apply(_CHOSEN)
    else:
        assert trouble.apply(_CHOSEN) is None


def test_a_wrong_condition_is_found_when_the_graph_is_built() -> None:
    config = IsrTask.ConfigClass()
    config.failIf = "detector is"
    with pytest.raises((ConditionError, FieldValidationError), match="detector is"):
        config.validate()
