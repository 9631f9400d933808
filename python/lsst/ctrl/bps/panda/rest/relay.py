"""iDDS through PanDA's relay: one method per command, JSON text in, JSON values out.  The classes of iDDS are
not needed here.

Protocol of ``relay_idds_command`` as panda-client 2.2.0 speaks it to ``/server/panda``: a gzipped JSON object
*without* ``Content-Encoding``, whose ``args`` and ``kwargs`` are JSON texts themselves.  ``json_outputs`` is
never sent: it wraps each reply once more, and a created request then looks like a failure.
"""

__all__ = ["MAX_LIST", "Relay", "render_command", "unwrap_relay"]

import gzip
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import SettingsError, TransportError
from .faults import Fault, make_idds_down, make_refusal, make_reply_error
from .panda_api import PandaApi, api_base
from .transport import Transport

_LOG = logging.getLogger(__name__)

MAX_LIST = 64 * 1024**2
"""Longest list of everybody's requests that is read, bytes: some 30,000 requests."""

DOUBT_AFTER = 1.0
"""Seconds that a question waits before PanDA and iDDS are asked, beside it, whether they answer at all."""

PROBE_SECONDS = 3.0
"""How long iDDS has for that, s.  With iDDS down, PanDA's relay itself tries for 12 to 45 s (seen with
panda-server 1.0.4) before it says so."""

DOWN_SECONDS = 30.0
"""For so long nothing more is asked of an iDDS that was found to be down, s."""

# iDDS puts the name into a URL without quoting it.
_UNSAFE_IN_NAMES = frozenset("/?#%")


def render_command(command: str, arguments: str | None, keywords: str | None) -> bytes:
    """Render the body of a relayed command, gzipped; the same input gives the same bytes."""
    content: dict[str, object] = {"command_name": command}
    if arguments:
        content["args"] = arguments
    if keywords:
        content["kwargs"] = keywords
    content["manager"] = True
    return gzip.compress(json.dumps(content).encode(), compresslevel=6, mtime=0)


def unwrap_relay(value: Any, *, endpoint: str, what: str) -> Any:
    """Take iDDS's value out of the relay's decoded reply.

    The relay answers ``[true, value]`` or ``[false, text]``; iDDS's client, which the relay runs, gives
    ``[false, text]`` as value when it failed; and commands give ``[[status, {"status":..., "message":...}]]``
    as value, with a negative status for a refusal.  A refusal at any depth raises `RefusedError`, another
    shape `ReplyError`.
    """
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], bool)):
        words = "The relay's reply has an unknown shape."
        raise make_reply_error(words, value, endpoint=endpoint, what=what)
    done, inner = value
    if not done:
        raise make_refusal(Fault.RELAY, inner, endpoint=endpoint, what=what)
    if _is_pair(inner, bool) and inner[0] is False:
        raise make_refusal(Fault.IDDS, inner[1], endpoint=endpoint, what=what)
    outcomes = inner if isinstance(inner, list) else []
    if _is_pair(inner, int) and not isinstance(inner[0], bool):
        outcomes = [*outcomes, inner]
    for item in outcomes:
        if _is_pair(item, int) and item[0] < 0:
            raise make_refusal(Fault.IDDS, item[1], endpoint=endpoint, what=what, who="iDDS refused")
    return inner


def _is_pair(value: Any, first: type) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], first)


class _Doubt:
    """Finds out, beside a question that is not answered at once, whether it is iDDS that does not answer."""

    def __init__(self, transport: Transport, endpoint: str, suffix: str, what: str) -> None:
        self._transport, self._endpoint, self._suffix, self._what = transport, endpoint, suffix, what
        self._answered: dict[str, bool] = {}
        self._begin = 0.0

    def check(self, seconds: float) -> None:
        """Raise an error if PanDA answers, and iDDS behind it does not."""
        if not self._begin and seconds >= DOUBT_AFTER:
            self._begin = time.monotonic()
            for name, ask in (("PanDA", self._ask_panda), ("iDDS", self._ask_idds)):
                threading.Thread(target=self._probe, args=(name, ask), daemon=True).start()
        if self._answered.get("PanDA") and self._answered.get("iDDS") is False:
            words = f"no answer to a ping within {PROBE_SECONDS:.0f} s"
            raise make_idds_down(words, endpoint=self._endpoint, what=self._what)

    def _probe(self, name: str, ask: Callable[[], object]) -> None:
        try:
            ask()
            answered = True
        except TransportError as error:
            if name == "PanDA":
                # An answer that says no is one.
                answered = error.status is not None and error.status < 500
            else:
                answered = error.fault not in (Fault.READ_TIMEOUT, Fault.IDDS_DOWN)
        # Where PanDA itself is slow, nothing follows from a ping that is.
        slow = name == "PanDA" and time.monotonic() - self._begin > PROBE_SECONDS / 3
        self._answered[name] = answered and not slow

    def _ask_panda(self) -> None:
        PandaApi(self._transport.clone(seconds=PROBE_SECONDS), api_base(self._endpoint)).is_alive()

    def _ask_idds(self) -> None:
        transport = self._transport.clone(seconds=PROBE_SECONDS)
        ping = render_command("ping" + self._suffix, None, None)
        reply = transport.post(
            self._endpoint, body=ping, content_type="application/json", safe=True, what="ping"
        )
        reply.unwrap(unwrap_relay, "ping")


class Relay:
    """iDDS as seen through PanDA.

    Every method raises `TransportError` or one of its children: connection, authentication, server and reply
    errors of the transport, `RefusedError` for refusals at any depth.  The URL is ``PANDA_URL_SSL``, which
    ends in ``/server/panda``; ``idds_server`` is another iDDS than the relay's own.
    """

    def __init__(self, transport: Transport, url: str, *, idds_server: str | None = None) -> None:
        self._transport = transport
        self.endpoint = url.rstrip("/") + "/relay_idds_command"
        self._suffix = f"+{idds_server}" if idds_server else ""
        self._down: tuple[float, str] = (-DOWN_SECONDS, "")

    def call(
        self,
        command: str,
        arguments: str | None = None,
        keywords: str | None = None,
        *,
        safe: bool = False,
        patient: bool = False,
        what: str = "",
        longest: int | None = None,
    ) -> Any:
        """Have a method of iDDS's ``ClientManager`` executed, and return its value out of all envelopes.

        Arguments and keywords are JSON texts as iDDS's ``json_dumps`` makes them.  What is safe may be sent
        again when the outcome is not known: doing it twice is the same as doing it once.
        What is not safe, or ``patient``, is waited for as long as the relay waits for iDDS; else an iDDS that
        is down is told within seconds, and not asked again for `DOWN_SECONDS`.  ``longest`` is the longest
        reply that is read, bytes.
        """
        what = what or command
        question = safe and not patient
        if question and time.monotonic() - self._down[0] < DOWN_SECONDS:
            raise make_idds_down(self._down[1], endpoint=self.endpoint, what=what)
        try:
            reply = self._transport.post(
                self.endpoint,
                body=render_command(command + self._suffix, arguments, keywords),
                content_type="application/json",
                safe=safe,
                patient=patient,
                what=what,
                longest=longest,
                watch=_Doubt(self._transport, self.endpoint, self._suffix, what).check if question else None,
            )
            return reply.unwrap(unwrap_relay, what)
        except TransportError as error:
            if question and error.fault == Fault.IDDS_DOWN:
                self._down = (time.monotonic(), error.cause)
            raise

    def ping(self) -> None:
        """Ask whether relay and iDDS are alive; return if so."""
        value = self._ask("ping", "ping")
        if not (isinstance(value, dict) and value.get("Status") == "OK"):
            self._misunderstood("iDDS does not say that it is well.", value, "ping", Fault.IDDS)

    def submit(self, arguments: str, keywords: str | None = None, *, build: bool = False) -> int:
        """Submit a workflow and return the number of its request; ``build`` if the plan is made remotely.

        It is sent once, or again after attempts that certainly had no effect. An error has ``maybe_sent`` set
        if the request may exist all the same: look it up by its name before anything is sent again.
        """
        command = "submit_build" if build else "submit"
        value = self.call(command, arguments, keywords, what=command)
        if type(value) is not int or value <= 0:
            self._misunderstood("The number of the new request was expected.", value, command)
        return value

    def submit_step(self, arguments: str, keywords: str | None = None) -> None:
        """Submit one step of a workflow that was split; doing it twice is the
        same as doing it once.  Arguments are as for `submit`.
        """
        value = self.call("submit", arguments, keywords, safe=True, patient=True, what="submit a step")
        if type(value) is not int or value != 0:
            self._misunderstood("The reply to a step should be 0.", value, "submit a step")

    def get_requests(self, request_id: int, *, with_detail: bool = False) -> list[dict[str, Any]]:
        """Get a request in one row, or with detail in a row for each transform; no row if it is unknown."""
        what = f"get_requests {request_id}{' with detail' if with_detail else ''}"
        # With metadata, the reply would hold the whole workflow.
        value = self._ask(
            "get_requests", what, request_id=request_id, with_detail=with_detail, with_metadata=False
        )
        return self._rows(value, what)

    def _rows(self, value: Any, what: str) -> list[dict[str, Any]]:
        if not (isinstance(value, list) and all(isinstance(row, dict) for row in value)):
            self._misunderstood("Rows of requests were expected.", value, what)
        return value

    def get_all_requests(self) -> list[dict[str, Any]]:
        """Get the requests of everybody in a row each, 2 kB: iDDS cannot be asked for those of a user or of a
        time, so a reply of more than `MAX_LIST` is left.
        """
        what = "get_requests of everybody"
        keywords = json.dumps({"with_detail": False, "with_metadata": False})
        value = self.call("get_requests", None, keywords, safe=True, what=what, longest=MAX_LIST)
        return self._rows(value, what)

    def get_contents(self, request_id: int, transform_id: int | None = None) -> dict[str, Any]:
        """Get the outputs of a request, or of one transform, with what became of their jobs.

        They are 3 kB a job, in lists by the transform's number as text.
        """
        what = f"get_contents_output_ext {request_id}"
        keywords: dict[str, Any] = {"request_id": request_id}
        if transform_id is not None:
            what += f" transform {transform_id}"
            keywords["transform_id"] = transform_id
        value = self._ask("get_contents_output_ext", what, **keywords)
        if not isinstance(value, dict):
            self._misunderstood("Contents by transform were expected.", value, what)
        return value

    def get_request_ids_by_name(self, name: str) -> dict[str, int]:
        """Look a run up by its exact name; `SettingsError` is raised for one that the server cannot look up.

        The server compares with SQL ``LIKE``; what it finds beyond the exact name is left out here.  It gives
        one number even if several requests have that name.
        """
        if bad := sorted(_UNSAFE_IN_NAMES & set(name)):
            raise SettingsError(f"The run name {name!r} holds {bad}; iDDS cannot look such a name up.")
        what = f"get_request_id_by_name {name}"
        value = self._ask("get_request_id_by_name", what, name=name)
        if value == []:
            return {}
        if not isinstance(value, dict):
            self._misunderstood("Numbers of requests by name were expected.", value, what)
        found = value.get(name)
        if found is None:
            return {}
        if type(found) is not int:
            self._misunderstood("The number of a request was expected.", value, what)
        return {name: found}

    def abort(self, request_id: int) -> str:
        """Register the command to abort a request and return the server's words.

        The command is only registered, and may be lost: look afterwards.
        """
        what = f"abort {request_id}"
        value = self._ask("abort", what, request_id=request_id)
        match value:
            case [[0, {"message": str(message)}]]:
                return message
        self._misunderstood("The outcome of a command was expected.", value, what)

    def _ask(self, command: str, what: str, /, **keywords: Any) -> Any:
        """Call a command that may be repeated, with plain values."""
        text = json.dumps(keywords) if keywords else None
        return self.call(command, None, text, safe=True, what=what)

    def _misunderstood(self, words: str, value: Any, what: str, fault: Fault = Fault.SHAPE) -> NoReturn:
        raise make_reply_error(words, value, endpoint=self.endpoint, what=what, fault=fault)
