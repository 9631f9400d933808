"""What the executor gets to run: one PanDA job with all that the pilot would
have been told.
"""

from __future__ import annotations

__all__ = ["JobOrder", "payload_commands"]

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JobOrder:
    """A PanDA job to run."""

    panda_id: int
    task_id: int
    task_name: str
    request_id: int | None
    attempt: int
    """Attempt number as PanDA counts, from 1."""

    template: str
    """Command with ``${IN/L}``."""

    pseudo_input: str
    """The job's input without JEDI's ``000012:``."""

    event_count: int
    """Payloads of an event service job, 0 for an ordinary job."""

    done_events: frozenset[int]
    """Payloads (from 1) that an earlier attempt has finished."""

    queue: str
    cores: int
    memory: int
    """Limit of resident memory of the whole job, MB; 0 means none."""

    walltime: int
    """Limit of the run time, seconds; 0 means none."""


def payload_commands(order: JobOrder) -> list[tuple[int, str]]:
    """List the command lines of a job.

    Returns
    -------
    commands : `list` [`tuple` [`int`, `str`]]
        Number of the payload (0 for an ordinary job, from 1 for event
        service) and command line.

    Notes
    -----
    PanDA puts the text in place unquoted.  With event service the pilot runs
    the payload once an event, with ``^`` and the event's number behind the
    name of the input.
    """
    if not order.event_count:
        return [(0, order.template.replace("${IN/L}", order.pseudo_input))]
    return [
        (number, order.template.replace("${IN/L}", f"{order.pseudo_input}^{number}"))
        for number in range(1, order.event_count + 1)
        if number not in order.done_events
    ]
