"""A command that is run while signals are passed on to it, so that whatever
ends us leaves nothing running.
"""

from __future__ import annotations

__all__ = ["Signalled", "attend", "ignored_signals", "raised_signals"]

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signalled(BaseException):
    """A signal came.

    Parameters
    ----------
    number : `int`
        Which one.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """Exit code of a process that the signal has ended, as a shell
        tells it.
        """
        return 128 + self.number


def _raise(number: int, frame: FrameType | None) -> None:
    raise Signalled(number)


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    # What is ignored from the start on (by nohup, say) stays so.
    changed = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in changed}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def raised_signals() -> Any:
    """Have signals that end a process raise `Signalled` meanwhile."""
    return _handled(_raise)


def ignored_signals() -> Any:
    """Have signals that end a process ignored meanwhile."""
    return _handled(signal.SIG_IGN)


def _has_terminal() -> bool:
    """Tell whether a terminal sends its signals to us and our children."""
    try:
        return os.tcgetpgrp(sys.__stdin__.fileno()) == os.getpgrp()  # type: ignore[union-attr]
    except (OSError, AttributeError, ValueError):
        return False


def attend(
    command: Sequence[str], environment: Mapping[str, str], *, grace: tuple[float, float] = (10.0, 3.0)
) -> int:
    """Run a command to its end.

    Parameters
    ----------
    command : `~collections.abc.Sequence` [`str`]
        What to run.
    environment : `~collections.abc.Mapping` [`str`, `str`]
        Its environment.
    grace : `tuple` [`float`, `float`], optional
        Seconds it has to end after a signal until SIGTERM is sent, and from
        then on until SIGKILL.

    Returns
    -------
    exit_code : `int`
        128 + n for signal n.

    Raises
    ------
    Signalled
        Raised if a signal came, after the command has ended.
    OSError
        Raised if it cannot be run.
    """
    # A terminal signals its whole foreground group, and lets only that read.
    own_group = None if _has_terminal() else 0
    with raised_signals():
        process = subprocess.Popen(command, env=dict(environment), process_group=own_group)
        try:
            code = process.wait()
        except Signalled as came:
            with ignored_signals():
                _end(process, came.number, grace=grace, group=own_group is not None)
            raise
    return 128 - code if code < 0 else code


def _end(process: subprocess.Popen[Any], number: int, *, grace: tuple[float, float], group: bool) -> None:
    def send(wanted: int) -> None:
        try:
            if group:
                os.killpg(process.pid, wanted)
            else:
                process.send_signal(wanted)
        except ProcessLookupError:
            return

    if group or number != signal.SIGINT:
        send(number)
    for seconds, then in zip(grace, (signal.SIGTERM, signal.SIGKILL), strict=True):
        try:
            process.wait(timeout=seconds)
            break
        except subprocess.TimeoutExpired:
            send(then)
    process.wait()
    if group:
        # What the command has left of its group.
        send(signal.SIGKILL)
