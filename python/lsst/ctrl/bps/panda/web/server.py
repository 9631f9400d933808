"""Lets browsers in to the live pages: those of this machine by a link that is good once, and a cookie for one
place, whose name nobody else knows; those of a group after a log-in at the OpenID provider, to pages of their
own, which ask PanDA with the token of who has logged in.
"""

from __future__ import annotations

__all__ = ["GroupServer", "GroupSettings", "PagesServer", "serve_behind"]

import contextlib
import hashlib
import logging
import os
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import flask
from waitress import create_server  # type: ignore[import-untyped]
from werkzeug.exceptions import Forbidden, HTTPException, Unauthorized
from werkzeug.wrappers import Request, Response

from ..auth.login import (
    BrowserLogin,
    LoginSettings,
    Provider,
    finish_browser_login,
    make_renewer,
    start_browser_login,
)
from ..errors import AuthenticationError, PandaBpsError
from ..local.identity import VISIT_SECONDS, Links, NotAllowedError, Tokens, keep_printable
from ..local.request_bodies import LARGEST_UPLOAD
from ..rest.credentials import make_bearer
from ..rest.tokens import TokenSet, parse_claims
from ..runs.client import Connection, connect
from ..settings.run import ServiceSettings
from .application import HEADERS, Allowance, Visitor, make_application, make_static_application
from .looks import LogPlaces, Looks
from .page import render

_LOG = logging.getLogger(__name__)

_Application = Callable[[dict[str, Any], Any], Iterable[bytes]]

_COOKIE = "panda_bps"
_LIMITS = {
    "threads": 6, "connection_limit": 60, "max_request_body_size": 65_536, "channel_timeout": 60, "ident": "",
}  # fmt: skip
_AGAIN = "; for another link, look where panda_bps web runs"


class PagesServer:
    """The pages of one user, on the loopback address of this machine.

    Parameters
    ----------
    application : `flask.Flask`
        The pages.
    port : `int`
        Where to listen; 0 means anywhere.
    tell : callable
        Called with each link, the next one when one has been used.
    """

    def __init__(self, application: flask.Flask, port: int, tell: Callable[[str], None]) -> None:
        self._application = application
        self._tell = tell
        self._links, self._tokens = Links(seconds=VISIT_SECONDS), Tokens("")
        self._server = create_server(self, host="127.0.0.1", port=port, **_LIMITS)
        self._port = int(self._server.effective_port)
        self._hosts = (f"127.0.0.1:{self._port}", f"localhost:{self._port}")

    def run(self) -> None:
        """Serve until the process is interrupted."""
        self._tell(self._make_link())
        self._server.run()

    def _make_link(self) -> str:
        return f"http://127.0.0.1:{self._port}/open/{self._links.make('')}"

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Serve a request."""
        request = Request(environ)
        try:
            if request.host not in self._hosts:
                raise Forbidden(f"this server is {self._hosts[0]} (Host)")
            kind, _, rest = request.path.removeprefix("/").partition("/")
            if kind == "open" and request.method == "GET":
                return self._open(rest)(environ, start_response)
            if kind != "view":
                raise Unauthorized(f"these pages are opened by a link{_AGAIN}")
            view, _, rest = rest.partition("/")
            self._tokens.check_reader(request.cookies.get(_COOKIE, ""), view)
        except (HTTPException, NotAllowedError) as error:
            status = error.code if isinstance(error, HTTPException) else 401
            text = error.description if isinstance(error, HTTPException) else f"{error}{_AGAIN}"
            return Response(f"{text}\n", status or 400, mimetype="text/plain")(environ, start_response)
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = f"/view/{view}", f"/{rest}"
        return self._application(environ, start_response)

    def _open(self, code: str) -> Response:
        """Let a browser in."""
        self._links.use(code)
        path, cookie = self._tokens.admit()
        reply = Response(status=303, headers={"Location": path})
        reply.set_cookie(_COOKIE, **cookie)
        self._tell(self._make_link())
        return reply


def serve_behind(application: flask.Flask, listener: socket.socket, *, idle: float) -> None:
    """Serve another server of this user, which has let the browser in and says below which path it is, and
    end when nobody has asked for so many seconds.
    """
    asked = time.monotonic()

    def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        nonlocal asked
        asked = time.monotonic()
        environ["SCRIPT_NAME"] = environ.pop("HTTP_X_SCRIPT_NAME", "")
        return application(environ, start_response)

    def watch() -> None:
        while (rest := asked + idle - time.monotonic()) > 0:
            time.sleep(rest)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    limits = {**_LIMITS, "max_request_body_size": LARGEST_UPLOAD}
    create_server(call, sockets=[listener], **limits).run()


# --- a group ----------------------------------------------------------------

# Browsers take a cookie of this name only from https, for one host and all of its paths.
_SESSION, _LOGIN = "__Host-panda_bps", "__Host-panda_bps_login"
_COOKIES: dict[str, Any] = {"path": "/", "secure": True, "httponly": True, "samesite": "Lax"}
"""Strict ones would not come with the way back from the provider."""

_LOGIN_SECONDS = 600.0
_LOGINS = (20.0, 200.0)
"""Log-ins a second that are begun, and how many at once; just as many may be finished.  Beginning one costs
little, so that it takes a flood to keep others from it, and such a flood keeps nobody from finishing.
"""

_MOST_LOGINS = int(_LOGIN_SECONDS * _LOGINS[0] + _LOGINS[1])
"""Log-ins that are going on: all that can be begun until the first is too old."""

_LONGEST_TARGET = 2000
"""Characters of where a log-in leads back to, which is kept for whoever begins one."""

_MOST_SESSIONS, _SESSIONS_OF_USER = 500, 5
_LONGEST_NAME = 100

_PROVIDER_SECONDS = 300.0
"""For how long it is believed what the provider has said of itself."""

_RENEWAL_PAUSE = 30.0
"""Seconds after which a token that could not be renewed is tried again."""

_GROUP_LIMITS = _LIMITS | {"threads": 16, "connection_limit": 200}


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """How a group is served."""

    address: str
    """Where browsers find the pages: ``https://`` and a host, behind a proxy."""

    panda: ServiceSettings
    login: LoginSettings
    least: float
    """Seconds between two questions about the same thing, at least."""

    log_hosts: frozenset[str] = frozenset()
    """Hosts besides PanDA's from which logs are read."""

    idle: float = 2 * 3600.0
    longest: float = 12 * 3600.0
    """Seconds after which a session ends without and with use."""

    @property
    def redirect_uri(self) -> str:
        """Where the provider sends browsers back to."""
        return f"{self.address}/callback"


class _Session:
    """A user who has logged in: the tokens, which are kept here and nowhere else, and the pages made with
    them.  Nothing of what one user is shown is kept where another one's pages look.
    """

    def __init__(
        self, settings: GroupSettings, tokens: TokenSet, now: float, leave: Callable[[], None]
    ) -> None:
        claims = parse_claims(tokens.id_token)
        names = map(keep_printable, (claims.username, claims.name, claims.subject))
        # It stands in logs.
        self.name = next(filter(None, names), "")[:_LONGEST_NAME]
        self.who = (claims.issuer, claims.subject)
        self.began = self.used = now
        self._tokens = tokens
        self._lock = threading.Lock()
        self._renew = make_renewer({}, settings.login)
        self._next_renewal = 0.0
        self._credentials = make_bearer(settings.login.vo, self.load, self._renew_now)
        panda = settings.panda
        key = hashlib.sha256("\0".join(self.who).encode()).hexdigest()[:16]
        self._panda = replace(
            panda,
            user=self.name,
            # The records of who has started the server are not the user's.
            state_directory=str(Path(panda.state_directory, "web", key)),
            environment={"PANDA_VERIFY_HOST": "" if settings.login.verify else "off"},
        )
        hosts = settings.log_hosts | {urlsplit(panda.require_url()).hostname or ""}
        looks = Looks(self._connect, settings.least, logs=LogPlaces(hosts))
        self.application = make_application(looks, Visitor(self.name, leave))

    def load(self) -> TokenSet:
        """Return the tokens."""
        return self._tokens

    def save(self, tokens: TokenSet) -> None:
        """Replace the tokens."""
        self._tokens = tokens

    def lock(self) -> contextlib.AbstractContextManager[object]:
        """Let one at a time get new tokens."""
        return self._lock

    def _renew_now(self) -> bool:
        if time.monotonic() < self._next_renewal:
            return False
        self._next_renewal = time.monotonic() + _RENEWAL_PAUSE
        return self._renew(self)

    def _connect(self) -> Connection:
        return connect(self._panda, credentials=self._credentials)

    def has_token(self) -> bool:
        """Whether there is a token that is valid, after a renewal if need be."""
        try:
            self._credentials.headers()
        except AuthenticationError as error:
            _LOG.info("The session of %s ends: %s", self.name, error)
            return False
        return True


class GroupServer:
    """The pages of a group, on the loopback address of this machine, behind a proxy that speaks TLS.

    Nothing that a proxy adds to a request is believed: where the pages are, the settings say.

    Parameters
    ----------
    settings : `GroupSettings`
        How the group is served.
    port : `int`
        Where to listen; 0 means anywhere.
    clock : callable, optional
        Time, for tests.
    """

    def __init__(
        self, settings: GroupSettings, port: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings = settings
        self._clock = clock
        # As browsers send it.
        self._host = urlsplit(settings.address).netloc.lower().removesuffix(":443")
        self._transport = settings.login.make_transport()
        self._provider = self.settings.login.find_provider(self._transport)
        self._provider_at = clock()
        # What is wrong with the provider is said at the start, not to the first user.
        start_browser_login(self._provider, settings.redirect_uri)
        self._front = make_static_application()
        self._beginnings, self._endings = Allowance(*_LOGINS), Allowance(*_LOGINS)
        self._logins: OrderedDict[str, tuple[float, str, str, BrowserLogin]] = OrderedDict()
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._lock = threading.Lock()
        self._server = create_server(self, host="127.0.0.1", port=port, **_GROUP_LIMITS)
        self.port = int(self._server.effective_port)

    def run(self) -> None:
        """Serve until the process is interrupted."""
        self._server.run()

    def close(self) -> None:
        """Listen no more."""
        self._server.close()

    def _find_provider(self) -> Provider:
        """Find the provider; it is not asked at each log-in, or whoever clicks could flood it."""
        if self._clock() > self._provider_at + _PROVIDER_SECONDS:
            self._provider = self.settings.login.find_provider(self._transport)
            self._provider_at = self._clock()
        return self._provider

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Serve a request."""
        application: _Application
        try:
            application = self._answer(Request(environ))
        except HTTPException as error:
            text = f"{error.description}\n"
            application = Response(text, error.code or 400, HEADERS, mimetype="text/plain")
        except PandaBpsError as error:
            application = self._told("Not logged in", str(error), status=502)
        return application(environ, start_response)

    def _answer(self, request: Request) -> _Application:
        """Find who answers a request."""
        if request.host != self._host:
            raise Forbidden(f"this server is {self._host} (Host)")
        self._end_sessions()
        if request.path.startswith("/static/"):
            return self._front
        if request.method == "GET" and request.path == "/login":
            return self._begin(request)
        if request.method == "GET" and request.path == "/callback":
            return self._finish(request)
        session = self._find(request)
        if session is not None:
            return session.application
        if request.method != "GET" or "If-None-Match" in request.headers or request.path.startswith("/api/"):
            raise Unauthorized(
                "You are not logged in, or your session has ended. Reload this page to log in."
            )
        return self._told("Log in", "You are not logged in, or your session has ended.", to=_target(request))

    def _told(self, title: str, text: str, *, to: str = "/", status: int = 401) -> Response:
        page = render("login.html", live={"root": "/", "tag": ""}, title=title, text=text, to=to)
        return Response(page, status, HEADERS, mimetype="text/html")

    # --- log-in -----------------------------------------------------------

    def _begin(self, request: Request) -> Response:
        """Send a browser to the provider; what it brings back has to fit what is remembered here, and the
        cookie that it is given.
        """
        self._beginnings.take()
        to = _own_path(request.args.get("to", "/"))
        login = start_browser_login(self._find_provider(), self.settings.redirect_uri)
        browser = secrets.token_urlsafe(32)
        with self._lock:
            end = self._clock() + _LOGIN_SECONDS
            self._logins[login.state] = (end, _digest(browser), to, login)
            while len(self._logins) > _MOST_LOGINS:
                self._logins.popitem(last=False)
        reply = Response("", 303, HEADERS | {"Location": login.url})
        reply.set_cookie(_LOGIN, browser, max_age=int(_LOGIN_SECONDS), **_COOKIES)
        return reply

    def _finish(self, request: Request) -> Response:
        """Let in a browser that the provider has sent back."""
        state, known = request.args.get("state", ""), _digest(request.cookies.get(_LOGIN, ""))
        with self._lock:
            end, browser, to, login = self._logins.get(state, (0.0, "", "/", None))
            fits = end >= self._clock() and secrets.compare_digest(browser, known)
            if fits:
                # Too many: the log-in stays good, and the browser may reload.
                self._endings.take()
            self._logins.pop(state, None)
        if login is None or not fits:
            return self._told(
                "Not logged in",
                "This log-in was started in another browser, has expired, or was already used.",
                status=403,
            )
        try:
            query = request.query_string.decode("ascii", "replace")
            tokens = finish_browser_login(self._transport, self._find_provider(), login, query)
        except AuthenticationError as error:
            return self._told("Not logged in", str(error), to=to, status=403)
        reply = Response("", 303, HEADERS | {"Location": self.settings.address + to})
        self._drop(_digest(request.cookies.get(_SESSION, "")))
        reply.set_cookie(_SESSION, self._admit(tokens), **_COOKIES)
        reply.delete_cookie(_LOGIN, **_COOKIES)
        return reply

    # --- sessions ---------------------------------------------------------

    def _admit(self, tokens: TokenSet) -> str:
        """Begin a session, and return the value of its cookie; who has many loses the one that was used least
        recently.
        """
        value = secrets.token_urlsafe(32)
        session = _Session(self.settings, tokens, self._clock(), partial(self._drop, _digest(value)))
        with self._lock:
            self._sessions[_digest(value)] = session
            own = [key for key, each in self._sessions.items() if each.who == session.who]
            for key in own[:-_SESSIONS_OF_USER]:
                del self._sessions[key]
            while len(self._sessions) > _MOST_SESSIONS:
                self._sessions.popitem(last=False)
        return value

    def _end_sessions(self) -> None:
        """Forget the sessions that are over, and their tokens, whoever asks for something."""
        with self._lock:
            for key in [key for key, each in self._sessions.items() if self._is_over(each)]:
                del self._sessions[key]

    def _drop(self, key: str) -> None:
        with self._lock:
            self._sessions.pop(key, None)

    def _is_over(self, session: _Session) -> bool:
        now = self._clock()
        return now > session.used + self.settings.idle or now > session.began + self.settings.longest

    def _find(self, request: Request) -> _Session | None:
        """Find the session of a request, if it has not ended."""
        key = _digest(request.cookies.get(_SESSION, ""))
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                return None
            self._sessions.move_to_end(key)
        if not session.has_token():
            self._drop(key)
            return None
        # A page that asks for itself does not tell that somebody is there.
        if "If-None-Match" not in request.headers:
            session.used = self._clock()
        return session


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def _own_path(to: str) -> str:
    """Return where to come back to: nowhere but here."""
    odd = not to.startswith("/") or to.startswith("//") or "\\" in to or not to.isprintable()
    return "/" if odd or len(to) > _LONGEST_TARGET else to


def _target(request: Request) -> str:
    """Return the path and the query of a request, to come back to."""
    query = request.query_string.decode("ascii", "replace")
    return quote(request.path) + (f"?{query}" if query else "")
