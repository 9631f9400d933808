"""Plug-ins that take the place of the message broker between iDDS and PanDA;
iDDS loads them by the names in its configuration.
"""

from __future__ import annotations

__all__ = ["Notifier", "Receiver", "connect"]

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, Queue
from typing import Any

from .faults import Faults
from .idds_repairs import BELL
from .jedi import Jedi
from .outbox import Outbox

_LOG = logging.getLogger(__name__)

_LONGEST_BATCH = 1.5
_BATCH_PER_INPUT = 0.001


class _Wires:
    """What the plug-ins connect; iDDS makes them without arguments."""

    jedi: Jedi
    outbox: Outbox
    faults: Faults


def connect(jedi: Jedi, outbox: Outbox, faults: Faults) -> None:
    """Set what the plug-ins connect, before iDDS's agents are started."""
    _Wires.jedi, _Wires.outbox, _Wires.faults = jedi, outbox, faults


class _Plugin(threading.Thread):
    """A thread with the methods that iDDS calls on its messaging plug-ins."""

    def __init__(self, logger: Any = None, **attributes: Any) -> None:
        super().__init__(daemon=True)
        self._stopped = threading.Event()
        self._suspended = threading.Event()
        self._requests: Queue[Any] = Queue()
        self._responses: Queue[Any] = Queue()
        self._output: Queue[Any] = Queue()

    def set_logger(self, logger: Any) -> None:
        """Accept a logger; ours is used."""

    def set_request_queue(self, queue: Queue[Any]) -> None:
        """Set where messages to send come from."""
        self._requests = queue

    def set_response_queue(self, queue: Queue[Any]) -> None:
        """Set where sent messages go."""
        self._responses = queue

    def set_output_queue(self, queue: Queue[Any]) -> None:
        """Set where received messages go."""
        self._output = queue

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def suspend(self) -> None:
        """Pause."""
        self._suspended.set()

    def resume(self) -> None:
        """Go on."""
        self._suspended.clear()

    def is_processing(self) -> bool:
        """Tell whether messages are handled."""
        return not self._stopped.is_set() and not self._suspended.is_set()

    def _repeat(self, action: Callable[[], None]) -> None:
        while not self._stopped.is_set():
            try:
                action()
            except Exception:
                _LOG.exception("%s: a message could not be passed on", type(self).__name__)
                time.sleep(1)


class Notifier(_Plugin):
    """Takes messages from iDDS to PanDA: releases of inputs."""

    def run(self) -> None:
        """Pass messages on until stopped."""
        self._repeat(self._pass_one)

    def _pass_one(self) -> None:
        try:
            message = self._requests.get(timeout=1)
        except Empty:
            return
        try:
            self.deliver(message["msg_content"])
        except Exception:
            self._requests.put(message)
            raise
        # iDDS marks it as delivered now, after PanDA has stored its effect.
        self._responses.put(message)

    @staticmethod
    def deliver(content: Any) -> None:
        """Pass one message on; all but releases of inputs are ignored, as
        JEDI does.
        """
        if not isinstance(content, dict) or content.get("msg_type") != "file_processing":
            return
        if content.get("relation_type") != "input" or not content.get("workload_id"):
            return
        for copy in _Wires.faults.flow("to_panda", "file_processing", content):
            _Wires.jedi.release(int(copy["workload_id"]), copy.get("files") or [])


class Receiver(_Plugin):
    """Takes messages from PanDA to iDDS: states of jobs and tasks."""

    def run(self) -> None:
        """Pass messages on until stopped."""
        self._repeat(self._pass_some)

    def _pass_some(self) -> None:
        if self._suspended.is_set():
            time.sleep(0.1)
            return
        bodies = _Wires.outbox.take(timeout=1)
        for body in bodies:
            for copy in _Wires.faults.flow("to_idds", str(body.get("msg_type")), body):
                headers = {"persistent": "true", "from_idds": "false"}
                self._output.put(
                    {"name": "default", "from_idds": "false", "msg": {"headers": headers, "body": copy}}
                )
        if bodies:
            BELL.ring()
        # iDDS goes through all inputs of a task for each batch of messages:
        # the larger the task, the larger the batches, up to a second's worth.
        size = _Wires.outbox.largest_task({int(body["taskid"]) for body in bodies})
        self._stopped.wait(min(_LONGEST_BATCH, size * _BATCH_PER_INPUT))
