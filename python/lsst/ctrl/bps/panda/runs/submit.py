"""Submit a run exactly once or not at all, and record it."""

from __future__ import annotations

__all__ = ["add_to_request", "refuse_known", "send", "submit_run", "tell_how_to_follow"]

import contextlib
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from ..errors import PandaBpsError, RefusedError, ReplyError, SubmissionUncertainError, TransportError
from ..idds.workflow import Submission, render_update
from ..rest.relay import Relay
from ..staging import CANCELLED, write_marker
from ..status.records import RequestRecord
from ..status.replies import parse_requests
from .client import Connection, describe_request
from .intention import lock_submission, look_up, record_submission
from .record import RequestPart, RunRecord

_LOG = logging.getLogger(__name__)

TWIN_MARGIN = 10.0
"""Seconds before a submission within which another one of its name may have gone unseen."""

TWIN_DISTANCE = 20
"""Most requests before its own that a submission looks at."""

_HAS_WORKFLOW = "already has defined workflow"
"""What iDDS says to a build task that brings its run once more."""

LOOK_UP_SECONDS = 120.0
"""How long a run that may have been created is looked for by its name."""


def tell_how_to_follow(connection: Connection, run_id: str, service_class: str) -> None:
    """Log the commands that follow a run; ``bps report`` reads no configuration, and takes another plugin's
    class by default.
    """
    name, known = (
        text.replace(".service.", ".")
        for text in (service_class, connection.settings.environment.get("BPS_WMS_SERVICE_CLASS", ""))
    )
    export = f"export BPS_WMS_SERVICE_CLASS={name}; " if known != name else ""
    _LOG.info("Next: %sbps report --id %s, or panda_bps watch %s", export, run_id, run_id)


def submit_run(
    connection: Connection,
    record: RunRecord,
    submission: Submission,
    *,
    stage: Callable[[], object] | None = None,
    build: bool = False,
    request_bytes: int | None = None,
    alone: bool = False,
) -> int:
    """Submit a run, record it in its submit directory, and return the number of its request.

    ``stage`` is called when it is certain that no run of this name exists, so that no file of another run
    is touched.  The record says what is about to be sent before it is sent.  If it says so already, an
    earlier submission was interrupted: the run is looked up first, and nothing is sent if it is there.
    Errors are those of `send`; a `SubmissionUncertainError` is raised also if nobody knows what became of
    the earlier one.

    With ``alone``, the caller knows that nobody else submits a run of this name at the same moment, and it is
    not looked whether somebody did.
    """
    relay, settings = connection.relay, connection.settings
    with lock_submission(record.submit_path):
        record = record.prepared_again(record.submit_path)
        if record.intention is not None and (found := look_up(relay, settings, record).request_id):
            return found
        if stage is not None:
            refuse_known(relay, record.name)
            stage()
        record = record.unsent()

        def note(part: RequestPart) -> None:
            nonlocal record
            record = record.intended(part, server=settings.url)
            record.write()

        try:
            place = record.submit_path
            request_id = send(relay, submission, record.name, build=build, note=note, place=place)
            if not alone:
                _settle_twins(relay, record, request_id)
        except PandaBpsError as error:
            if record.intention is not None and not getattr(error, "maybe_sent", False):
                with contextlib.suppress(OSError):
                    record.unsent().write()
            raise
        except BaseException:
            if record.intention is not None:
                _LOG.warning(
                    "The submission of run %s was interrupted. Before you submit it again, see what became "
                    "of it: bps report --id %s", record.name, record.submit_path,
                )  # fmt: skip
            raise
        record_submission(settings, record, request_id, request_bytes=request_bytes)
    return request_id


def add_to_request(relay: Relay, submission: Submission, *, request_id: int, signature: str) -> None:
    """Give a run to the request of its build task, which proves itself by the signature; doing so twice does
    no harm.
    """
    for step in submission.steps:
        relay.submit_step(step, submission.keywords)
    arguments = render_update(submission, request_id=request_id, signature=signature)
    try:
        relay.call("update_build_request", arguments, safe=True, what=f"update request {request_id}")
    except RefusedError as error:
        if _HAS_WORKFLOW not in str(error):
            raise
        _LOG.warning("iDDS has the workflow of request %d already, from an earlier attempt", request_id)


def refuse_known(relay: Relay, name: str) -> None:
    """Raise `RefusedError` if the server knows a run of a name."""
    if existing := relay.get_request_ids_by_name(name):
        raise RefusedError(
            f"A run named {name!r} exists already: request {existing[name]}. Submitting it again would run "
            "everything twice; use another outputRun, or bps restart for what is left of it. To extend its "
            "collection (--extend-run), set uniqProcName to a name that no run has."
        )


def _settle_twins(relay: Relay, record: RunRecord, request_id: int) -> None:
    """Look once more whether a run of this name was submitted at the same moment: iDDS takes both.

    The later request is cancelled by whoever sent it, and that is a `RefusedError`; the earlier one goes on.
    """
    name = record.name
    begun_at = record.intention.begun_at if record.intention else datetime.now(UTC)
    seconds = (datetime.now(UTC) - begun_at).total_seconds() + TWIN_MARGIN
    try:
        twins = _find_twins(relay, name, request_id, seconds=seconds)
    except TransportError as error:
        _LOG.warning("Whether another run is named %s as well could not be looked up: %s", name, error)
        return
    if not twins:
        return
    first, words = twins[0], "; ".join(map(describe_request, twins))
    if first.request_id > request_id:
        _LOG.warning(
            "Run %s was submitted twice at the same moment: yours is request %d, and goes on; the other is "
            "%s. It should be cancelled by whoever submitted it: bps cancel --id %d",
            name, request_id, words, first.request_id,
        )  # fmt: skip
        return
    try:
        if not record.origin_path and record.staging_area:
            # The final job of a cancelled run still starts.  A restart shares its area with the other one.
            write_marker(record.staging_area, CANCELLED, name + "\n")
        relay.abort(request_id)
        outcome = f"this one, request {request_id}, was cancelled"
    except TransportError as error:
        outcome = (
            f"this one, request {request_id}, could not be cancelled ({error.message}): cancel it with bps "
            f"cancel --id {request_id}"
        )
    raise RefusedError(
        f"Run {name!r} was submitted twice at the same moment. The first is request {words}; {outcome}, so "
        "that nothing runs twice. Use another outputRun if both are wanted."
    )


def _find_twins(relay: Relay, name: str, request_id: int, *, seconds: float) -> list[RequestRecord]:
    """Find the other requests of a name, those of the last seconds and a later one; the first one first.

    iDDS gives one number for a name.  So the requests just before are looked at one by one.
    """

    def look(number: int) -> RequestRecord | None:
        return next(iter(parse_requests(relay.get_requests(number))), None)

    last = relay.get_request_ids_by_name(name).get(name, request_id)
    found = [look(last)] if last != request_id else []
    own = look(request_id)
    for number in range(request_id - 1, max(0, request_id - 1 - TWIN_DISTANCE), -1):
        before = look(number)
        if before is None:
            continue
        found.append(before)
        dates = (own.created_at if own else None, before.created_at)
        if dates[0] and dates[1] and (dates[0] - dates[1]).total_seconds() > seconds:
            break
    twins = {item.request_id: item for item in found if item is not None and item.name == name}
    return [twins[number] for number in sorted(twins)]


def send(
    relay: Relay,
    submission: Submission,
    name: str,
    *,
    build: bool = False,
    note: Callable[[RequestPart], None] = lambda part: None,
    place: str = "",
    patience: float = LOOK_UP_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Send a run and return the number of its request.

    The steps of a long request are sent first; sending one twice does no harm.  The request itself is sent
    once: if the outcome is not known, the run is looked up by its name for ``patience`` seconds, and nothing
    is sent again.  If it still is not known, that is a `SubmissionUncertainError`; an existing run of this
    name is a `RefusedError`.

    With ``build``, it is the task that makes the plan at a site.  ``note`` is called before something is
    sent; ``place`` is the submit directory, for messages.
    """
    refuse_known(relay, name)
    if submission.steps:
        note(RequestPart.STEPS)
        _send_steps(relay, submission, name)
    note(RequestPart.REQUEST)
    try:
        return relay.submit(submission.request, submission.keywords, build=build)
    except TransportError as error:
        if not getattr(error, "maybe_sent", False):
            raise
        _LOG.warning("Whether run %s was submitted is not known (%s); looking it up", name, error)
        return _settle(relay, name, error, place=place, patience=patience, sleep=sleep, clock=clock)


def _send_steps(relay: Relay, submission: Submission, name: str) -> None:
    """Send the steps of a long request.

    The server only stores them.  Nothing runs without the request itself, so
    an interrupted submission leaves nothing that has to be cancelled.
    """
    count = len(submission.steps)
    for number, step in enumerate(submission.steps, 1):
        try:
            relay.submit_step(step, submission.keywords)
        except TransportError as error:
            raise type(error)(
                f"Step {number} of {count} of run {name!r} could not be sent: {error.message} Nothing was "
                "submitted and nothing runs: without the last part, the server only keeps what it got. "
                "Submit the run again.",
                endpoint=error.endpoint,
                request=error.request,
                reply=error.reply,
                fault=error.fault,
                cause=error.cause,
                status=error.status,
            ) from error
        _LOG.info("Sent step %d of %d", number, count)


def _settle(
    relay: Relay,
    name: str,
    cause: TransportError,
    *,
    place: str,
    patience: float,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> int:
    """Look up a run by its name until it is found or patience ends."""
    end = clock() + patience
    pause = 1.0
    answered = False
    while True:
        try:
            found = relay.get_request_ids_by_name(name)
            answered = True
        except (TransportError, ReplyError) as error:
            _LOG.info("Looking up run %s failed: %s", name, error)
            found = {}
        if found:
            return found[name]
        if clock() >= end:
            break
        sleep(min(pause, max(0.0, end - clock())))
        pause = min(2 * pause, 15.0)
    known = "the server does not know it so far" if answered else "the server did not answer"
    raise SubmissionUncertainError(
        f"It is not known whether run {name!r} was submitted: {cause.message} After {patience:.0f} s "
        f"{known}. Nothing was sent again. Look with 'bps report --id {place or name}' before you submit it "
        "once more.",
        endpoint=relay.endpoint,
        request=f"submit {name}",
        maybe_sent=True,
    ) from cause
