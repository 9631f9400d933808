"""The web server: one table of all routes, each with its handler and who may call it; and the checks that
each request has to pass, which `~.connections` makes before it reads a body.
"""

from __future__ import annotations

__all__ = [
    "ROUTES",
    "Body",
    "Caller",
    "AdmissionError",
    "Request",
    "Route",
    "WebParts",
    "admit",
    "make_application",
]

import enum
import html
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import flask
from werkzeug.exceptions import HTTPException, NotFound, RequestEntityTooLarge

from .api import Api, ApiCall, ApiError, CacheError, FileCache
from .endpoint import job_folder
from .faults import Faults
from .idds_host import IddsRelay, decode_body
from .identity import Identity, Links, NotAllowedError, Role, Tokens
from .pages import Pages, PagesError
from .request_bodies import LARGEST_FORM, LARGEST_UPLOAD, BodyError, parse_json, unpack
from .settings import parse_faults
from .storage import is_storage_error

_MB = 1024 * 1024
_COOKIE = "panda_local"


@dataclass(frozen=True, slots=True)
class WebParts:
    """What the web server serves."""

    api: Api
    relay: IddsRelay
    cache: FileCache
    logs: Path
    tokens: Tokens
    faults: Faults
    status: Callable[[], Mapping[str, Any]]
    port: int
    pages: Pages
    links: Links = field(default_factory=Links)

    @property
    def hosts(self) -> tuple[str, str]:
        """The names by which the server may be called."""
        return f"127.0.0.1:{self.port}", f"localhost:{self.port}"


class Caller(enum.Enum):
    """Who may call a route; nobody without a secret of this instance."""

    USER = "a user who is named by a token"
    TASK_OWNER = "the user to whom the task belongs, or a production user"
    CONTROLLER = "who started the server"
    READER = "a browser that was let in by a link, or the owner; the pages themselves check what it changes"
    LINK = "who has a link that was not used yet"


@dataclass(frozen=True, slots=True)
class Body:
    """What a request may send."""

    kinds: tuple[str, ...] = ()
    """Content types; an empty text stands for none."""

    largest: int = 0
    """Bytes as they travel."""

    unpacked: int = 0
    """Bytes when they are unpacked."""


_NOTHING = Body()
_JSON = "application/json"
_CALL = Body((_JSON,), 8 * _MB, 64 * _MB)
_TASK = Body((_JSON,), 64 * _MB, 256 * _MB)
# The request of a run of two million jobs has 22 MB.  panda-client packs it, or else names no type.
_COMMAND = Body((_JSON, "application/x-www-form-urlencoded", ""), 256 * _MB, 512 * _MB)
_FORM = Body(("application/x-www-form-urlencoded",), LARGEST_FORM)
_CATALOG = Body(("multipart/form-data",), LARGEST_UPLOAD)
_FILE = Body(("multipart/form-data",), 769 * _MB)

_Handler = Callable[..., flask.Response]


@dataclass(frozen=True, slots=True)
class Route:
    """One route."""

    method: str
    path: str
    caller: Caller
    handler: _Handler
    """Called with the parts, the caller's identity and the variables of the path."""

    body: Body = _NOTHING

    @property
    def pattern(self) -> re.Pattern[str]:
        """The paths of the route."""
        return re.compile(re.sub(r"<(path:)?\w+>", lambda mark: ".+" if mark[1] else "[^/]+", self.path))


# -- Who is let in ------------------------------------------------------------


class AdmissionError(Exception):
    """A request that is not let in."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Request(NamedTuple):
    """The first line and the headers of a request, as they came."""

    method: str
    target: str
    """Path and query, not decoded."""

    header: Callable[[str, str], str]
    """Returns the value of a header, given in capitals and with ``_``, or else the second argument."""


_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})|%(2f|5c|2e|25|7f|[01])", re.IGNORECASE)


def _path(target: str) -> str:
    """Decode the path of a request; what could lead elsewhere is refused, however it is written."""
    raw = target.partition("?")[0]
    try:
        path = unquote(raw, errors="strict")
    except UnicodeDecodeError:
        path = ""
    odd = not raw.isascii() or _BAD_ESCAPE.search(raw) or re.search(r"[\x00-\x20\\#;\x7f]", raw)
    if odd or not path.startswith("/") or {"", ".", ".."} & set(path.rstrip("/").split("/")[1:]):
        raise AdmissionError(400, "the path of the request is not one of this server")
    return path


def _check_place(request: Request, hosts: tuple[str, str]) -> None:
    """Refuse requests that pages of others make a browser send."""
    host = request.header("HOST", "")
    if host not in hosts:
        raise AdmissionError(403, f"this server is {hosts[0]} (Host), not {host[:80]!r}")
    origin = request.header("ORIGIN", "")
    # panda-client puts its virtual organisation there, which is no URL.
    if origin == "null" or ("://" in origin and origin.partition("://")[2] not in hosts):
        raise AdmissionError(403, f"pages of {origin[:80]!r} (Origin) may not call this server")


def _find_route(method: str, path: str) -> Route | None:
    method = "GET" if method == "HEAD" else method
    if (exact := _EXACT.get((method, path))) is not None:
        return exact
    return next((r for r, pattern in _PATTERNS if r.method == method and pattern.fullmatch(path)), None)


def _cookie(request: Request) -> str:
    try:
        cookies = SimpleCookie(request.header("COOKIE", "")[:8192])
    except CookieError:
        return ""
    return cookies[_COOKIE].value if _COOKIE in cookies else ""


def _identify(request: Request, route: Route | None, path: str, parts: WebParts) -> Identity:
    if route is not None and route.caller is Caller.LINK:
        if not parts.links.is_open(path.rpartition("/")[2]):
            raise NotAllowedError("this link was used before, or is too old; make another: panda_local open")
        return _NOBODY
    scheme, _, token = request.header("AUTHORIZATION", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return parts.tokens.identify(token.strip())
    if route is not None and route.caller is Caller.READER:
        parts.tokens.check_reader(_cookie(request), path.split("/")[2])
        return _NOBODY
    raise NotAllowedError(
        'a bearer token is needed. Commands have it after: eval "$(panda_local env)"; logs are opened in a '
        "browser with: panda_local open"
    )


_NOBODY = Identity("", production=False)


def admit(request: Request, parts: WebParts) -> tuple[Route | None, Identity]:
    """Decide whether a request is let in, by its first line and its headers alone.

    Returns the route, `None` if there is none, and who asks; `AdmissionError` says
    why not.
    """
    _check_place(request, parts.hosts)
    path = _path(request.target)
    route = _find_route(request.method, path)
    try:
        identity = _identify(request, route, path, parts)
    except NotAllowedError as error:
        raise AdmissionError(401, str(error)) from None
    private = route is not None and route.caller in (Caller.CONTROLLER, Caller.READER)
    if private and identity is not _NOBODY and not identity.owner:
        raise AdmissionError(403, "only who started this embedded PanDA may call this")
    _check_body(request, route)
    return route, identity


def _check_body(request: Request, route: Route | None) -> None:
    body = route.body if route is not None else _NOTHING
    text = request.header("CONTENT_LENGTH", "") or "0"
    length = int(text) if text.isdecimal() and len(text) < 19 else 2**63
    if length > body.largest:
        raise AdmissionError(413, f"the body has {text[:20]} bytes; at most {body.largest} are accepted here")
    kind = request.header("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if length and kind not in body.kinds:
        known = " or ".join(filter(None, body.kinds))
        raise AdmissionError(415, f"the body is {kind[:80]!r} (Content-Type); this takes {known}")


# -- Requests and replies -----------------------------------------------------


def _parameters() -> dict[str, Any]:
    request = flask.request
    if request.method == "GET":
        return {key: values[0] if len(values) == 1 else values for key, values in request.args.lists()}
    try:
        value = parse_json(unpack(request.get_data(), _route().body.unpacked) or b"{}")
    except BodyError as error:
        raise ApiError(f"could not read the request: {error}", status=error.status) from None
    if not isinstance(value, dict):
        raise ApiError("could not read the request: the body is not an object", status=400)
    return value


def _route() -> Route:
    route: Route = flask.g.route
    return route


def _envelope(success: bool, message: str, data: Any, status: int = 200) -> flask.Response:
    text = json.dumps({"success": success, "message": message, "data": data})
    return flask.Response(text, status=status, content_type=_JSON)


def _text(message: str, status: int) -> flask.Response:
    return flask.Response(message, status=status, content_type="text/plain")


# -- Handlers -----------------------------------------------------------------


def _relay(parts: WebParts, who: Identity) -> flask.Response:
    status = 200
    try:
        body = decode_body(unpack(flask.request.get_data(), _COMMAND.unpacked))
    except ValueError as error:
        success, reply = False, f"could not read the request: {error}"
        status = error.status if isinstance(error, BodyError) else 400
    else:
        success, reply = parts.relay.call(body, who)
    if flask.request.path.startswith("/api"):
        value: Any = {
            "success": success,
            "message": "" if success else reply,
            "data": reply if success else None,
        }
    else:
        value = [success, reply]
    return flask.Response(parts.relay.render(value), status=status, content_type=_JSON)


def _api(call: ApiCall) -> _Handler:
    """Make the handler of a call of PanDA's API."""

    def handle(parts: WebParts, who: Identity) -> flask.Response:
        data, message = parts.api.call(call, _parameters(), who)
        return _envelope(True, message, data)

    return handle


def _upload(parts: WebParts, who: Identity) -> flask.Response:
    item = flask.request.files.get("file")
    if item is None or not item.filename:
        return _envelope(False, "the request holds no file", None)
    parts.cache.put(item.filename, item.stream)  # type: ignore[arg-type]
    return _envelope(True, "", None)


def _cache(action: Callable[[FileCache, str], bool]) -> _Handler:
    """Make the handler of an action on a file in the cache."""

    def handle(parts: WebParts, who: Identity) -> flask.Response:
        name = str(_parameters().get("file_name", ""))
        found = action(parts.cache, name)
        return _envelope(found, "" if found else f"{name} is not in the cache", None)

    return handle


def _send(folder: Path, name: str, mimetype: str | None = None) -> flask.Response:
    """Send a file of a folder: no link in it that leads elsewhere, and nothing but files."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise NotFound
    return flask.send_from_directory(folder, name, mimetype=mimetype)


def _download(parts: WebParts, who: Identity, name: str) -> flask.Response:
    try:
        return _send(parts.cache.path(name).parent, name)
    except CacheError as error:
        return _text(str(error), 404)


def _log_folder(parts: WebParts, job: str) -> Path:
    """Find the folder with a job's logs; nothing else, however it is named."""
    folder = parts.logs / job
    if not re.fullmatch(r"PandaJob_[0-9]{1,18}", job) or folder.is_symlink() or not folder.is_dir():
        raise NotFound
    return folder


def _log(parts: WebParts, who: Identity, job: str, name: str, view: str = "") -> flask.Response:
    return _send(_log_folder(parts, job), name, mimetype="text/plain")


def _open(parts: WebParts, who: Identity, code: str) -> flask.Response:
    """Let a browser in: it gets a cookie for one view, whose name nobody else knows."""
    try:
        target = parts.links.use(code)
    except NotAllowedError as error:
        return _text(str(error), 401)
    path, cookie = parts.tokens.admit()
    reply = flask.redirect(f"{path}{target}", 303)
    reply.set_cookie(_COOKIE, **cookie)
    return reply  # type: ignore[return-value]


def _pages(parts: WebParts, who: Identity, view: str, path: str = "") -> flask.Response:
    """Forward a request to the live pages."""
    request = flask.request
    place = f"/view/{view}"
    target = str(request.environ["REQUEST_URI"]).removeprefix(place)
    try:
        reply = parts.pages.forward(place, request.method, target, dict(request.headers), request.get_data())
    except PagesError as error:
        return _text(f"{error}\n", 503)
    return flask.Response(reply.body, status=reply.status, headers=reply.headers)


def _files(parts: WebParts, who: Identity, view: str, job: str) -> flask.Response:
    names = sorted(path.name for path in _log_folder(parts, job).iterdir() if path.is_file())
    items = "".join(f'<li><a href="{quote(name)}">{html.escape(name)}</a></li>' for name in names)
    head = f"<!DOCTYPE html><html lang=en><meta charset=utf-8><title>{job}</title><h1>{job}</h1>"
    return flask.Response(
        f"{head}<ul>{items or '<li>nothing yet</li>'}</ul></html>", content_type="text/html"
    )


def _make_link(parts: WebParts, who: Identity) -> flask.Response:
    job = _parameters().get("job")
    if job is not None and (isinstance(job, bool) or not isinstance(job, int) or not 0 < job < 10**18):
        return _envelope(False, "the job is not an id", None, 400)
    target = f"logs/{job_folder(job)}/" if job is not None else ""
    return _envelope(True, "", f"/open/{parts.links.make(target)}")


def _make_token(parts: WebParts, who: Identity) -> flask.Response:
    user = _parameters().get("user")
    if not isinstance(user, str) or not user.isprintable() or not 0 < len(user) <= 20:
        return _envelope(False, "the user needs a name of 1 to 20 characters", None, 400)
    return _envelope(True, "", parts.tokens.issue(Role.USER, user))


def _status(parts: WebParts, who: Identity) -> flask.Response:
    return _envelope(True, "", dict(parts.status()))


def _set_faults(parts: WebParts, who: Identity) -> flask.Response:
    try:
        rules = parse_faults(parse_json(flask.request.get_data() or b"[]"))
    except ValueError as error:
        return _envelope(False, str(error), None)
    parts.faults.set(rules)
    return _envelope(True, "", len(rules))


# -- Routes -------------------------------------------------------------------

_PRODUCTION_COMMANDS = (
    "release", "reactivate", "avalanche", "increase_attempts", "change_priority", "change_split_rule",
)  # fmt: skip

_API = "/api/v1"
ROUTES = (
    Route("POST", "/server/panda/relay_idds_command", Caller.USER, _relay, _COMMAND),
    Route("POST", "/server/panda/relayIddsCommand", Caller.USER, _relay, _COMMAND),
    Route("POST", f"{_API}/idds/relay_idds_command", Caller.USER, _relay, _COMMAND),
    Route("POST", f"{_API}/relay_idds_command", Caller.USER, _relay, _COMMAND),
    Route("POST", f"{_API}/task/submit", Caller.USER, _api(Api.submit_task), _TASK),
    Route("GET", f"{_API}/task/get_details", Caller.USER, _api(Api.task_details)),
    Route("GET", f"{_API}/task/get_status", Caller.USER, _api(Api.task_status)),
    Route("GET", f"{_API}/task/get_task_parameters", Caller.USER, _api(Api.task_parameters)),
    Route("GET", f"{_API}/task/get_job_ids", Caller.USER, _api(Api.task_job_ids)),
    Route("GET", f"{_API}/task/get_datasets_and_files", Caller.USER, _api(Api.task_datasets)),
    Route("GET", f"{_API}/task/get_job_descriptions", Caller.USER, _api(Api.task_job_descriptions)),
    Route("GET", f"{_API}/task/get_detailed_info", Caller.USER, _api(Api.task_record)),
    Route("GET", f"{_API}/task/get_tasks_detailed_info_since", Caller.USER, _api(Api.task_records_since)),
    Route("POST", f"{_API}/task/kill", Caller.TASK_OWNER, _api(Api.kill_task), _CALL),
    Route("POST", f"{_API}/task/finish", Caller.TASK_OWNER, _api(Api.finish_task), _CALL),
    Route("POST", f"{_API}/task/retry", Caller.TASK_OWNER, _api(Api.retry_task), _CALL),
    Route("POST", f"{_API}/task/reload_input", Caller.TASK_OWNER, _api(Api.reload_task_input), _CALL),
    Route("POST", f"{_API}/task/reassign", Caller.USER, _api(Api.reassign_task), _CALL),
    Route("POST", f"{_API}/task/pause", Caller.USER, _api(Api.pause_task), _CALL),
    Route("POST", f"{_API}/task/resume", Caller.USER, _api(Api.resume_task), _CALL),
    Route("POST", f"{_API}/task/change_attribute", Caller.USER, _api(Api.change_attribute), _CALL),
    *(
        Route("POST", f"{_API}/task/{name}", Caller.USER, _api(Api.refuse), _CALL)
        for name in _PRODUCTION_COMMANDS
    ),
    Route("POST", f"{_API}/job/get_description", Caller.USER, _api(Api.job_records), _CALL),
    Route("POST", f"{_API}/job/get_description_incl_archive", Caller.USER, _api(Api.job_records), _CALL),
    Route("GET", f"{_API}/job/get_status", Caller.USER, _api(Api.job_states)),
    Route("POST", f"{_API}/job/kill", Caller.USER, _api(Api.kill_jobs), _CALL),
    Route("GET", f"{_API}/event/get_event_range_statuses", Caller.USER, _api(Api.event_states)),
    Route("GET", f"{_API}/system/is_alive", Caller.USER, _api(Api.is_alive)),
    Route("GET", f"{_API}/system/get_attributes", Caller.USER, _api(Api.user_attributes)),
    Route("GET", f"{_API}/system/get_user_attributes", Caller.USER, _api(Api.user_attributes)),
    Route("POST", f"{_API}/file_server/upload_cache_file", Caller.USER, _upload, _FILE),
    Route("POST", f"{_API}/file_server/touch_cache_file", Caller.USER, _cache(FileCache.touch), _CALL),
    Route("POST", f"{_API}/file_server/validate_cache_file", Caller.USER, _cache(FileCache.exists), _CALL),
    Route("POST", f"{_API}/file_server/delete_cache_file", Caller.USER, _cache(FileCache.delete), _CALL),
    Route("GET", "/cache/<name>", Caller.USER, _download),
    Route("GET", "/logs/<job>/<path:name>", Caller.USER, _log),
    Route("GET", "/open/<code>", Caller.LINK, _open),
    Route("GET", "/view/<view>/logs/<job>/", Caller.READER, _files),
    Route("GET", "/view/<view>/logs/<job>/<path:name>", Caller.READER, _log),
    Route("GET", "/view/<view>/", Caller.READER, _pages),
    Route("GET", "/view/<view>/<path:path>", Caller.READER, _pages),
    Route("POST", "/view/<view>/portal/catalog", Caller.READER, _pages, _CATALOG),
    Route("POST", "/view/<view>/<path:path>", Caller.READER, _pages, _FORM),
    Route("GET", f"{_API}/local/status", Caller.CONTROLLER, _status),
    Route("POST", f"{_API}/local/faults", Caller.CONTROLLER, _set_faults, _CALL),
    Route("POST", f"{_API}/local/link", Caller.CONTROLLER, _make_link, _CALL),
    Route("POST", f"{_API}/local/token", Caller.CONTROLLER, _make_token, _CALL),
)
"""All routes: the application has no others."""


_EXACT = {(route.method, route.path): route for route in ROUTES if "<" not in route.path}
_PATTERNS = tuple((route, route.pattern) for route in ROUTES if "<" in route.path)

# -- Application --------------------------------------------------------------

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Headers of each reply, the policy unless it has its own: pages of others cannot frame, embed or keep it."""


def _header(name: str, default: str) -> str:
    environ = flask.request.environ
    key = name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"
    return str(environ.get(key) or default)


def _view(route: Route, parts: WebParts) -> Callable[..., flask.Response]:
    def view(**variables: str) -> flask.Response:
        identity: Identity = flask.g.identity
        if _route() is not route:
            raise NotFound
        if route.caller is Caller.TASK_OWNER:
            parts.api.call(Api.check_owner, _parameters(), identity)
        return route.handler(parts, identity, **variables)

    return view


def make_application(parts: WebParts) -> flask.Flask:
    """Make the WSGI application of `ROUTES`."""
    application = flask.Flask(__name__, static_folder=None)
    application.config["MAX_CONTENT_LENGTH"] = max(route.body.largest for route in ROUTES)

    @application.before_request
    def check() -> None:
        environ = flask.request.environ
        request = Request(flask.request.method, str(environ.get("REQUEST_URI", "")), _header)
        flask.g.route, flask.g.identity = admit(request, parts)

    @application.after_request
    def protect(reply: flask.Response) -> flask.Response:
        for name, value in _HEADERS.items():
            reply.headers.setdefault(name, value)
        return reply

    for route in ROUTES:
        application.add_url_rule(
            route.path,
            f"{route.method} {route.path}".replace(".", "_"),
            _view(route, parts),
            methods=[route.method],
            provide_automatic_options=False,
        )
    _handle_errors(application)
    return application


def _handle_errors(application: flask.Flask) -> None:
    @application.errorhandler(AdmissionError)
    def refuse(error: AdmissionError) -> flask.Response:
        return _text(str(error), error.status)

    @application.errorhandler(ApiError)
    def api_error(error: ApiError) -> flask.Response:
        return _envelope(False, str(error), error.data, error.status)

    @application.errorhandler(CacheError)
    def cache_error(error: CacheError) -> flask.Response:
        return _envelope(False, str(error), None)

    @application.errorhandler(RequestEntityTooLarge)
    def too_large(error: RequestEntityTooLarge) -> flask.Response:
        return _text("request entity too large", 413)

    @application.errorhandler(Exception)
    def not_stored(error: Exception) -> Any:
        if isinstance(error, HTTPException):
            return error
        if not is_storage_error(error):
            raise error
        return _text(f"the embedded PanDA cannot do this now: {getattr(error, 'orig', None) or error}", 503)

    @application.errorhandler(404)
    @application.errorhandler(405)
    def unknown(error: HTTPException) -> Any:
        request = flask.request
        call = request.path.removeprefix(f"{_API}/")
        # As panda-server answers: unknown calls of its API are forbidden.
        if call != request.path and call.count("/") == 1:
            return _text(f"{request.method} {call} is not a call of this PanDA", 403)
        return error
