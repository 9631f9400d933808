"""The web server: one table of all routes, each with its handler and who may call it."""

from __future__ import annotations

__all__ = ["LARGEST_BODY", "ROUTES", "Caller", "Route", "WebParts", "make_application", "owner_of_peer"]

import enum
import gzip
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flask
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from .api import Api, ApiCall, ApiError, CacheError, FileCache
from .endpoint import TOKEN_HEADER
from .faults import Faults
from .idds_host import IddsRelay, decode_body
from .identity import Identity, IdentityRules, NotAllowedError, identify
from .settings import parse_faults

_TABLES = (("/proc/net/tcp", "0100007F"), ("/proc/net/tcp6", "0000000000000000FFFF00000100007F"))


def owner_of_peer(
    peer_port: int, own_port: int, *, tables: tuple[tuple[str, str], ...] = _TABLES
) -> int | None:
    """Find the user id that owns the client's end of a connection to 127.0.0.1.

    ``tables`` are the kernel's tables of connections, each with its notation
    of the loopback address.  It is `None` if the connection is not found, for
    instance because the client has closed it already.
    """
    for path, loopback in tables:
        local = f"{loopback}:{peer_port:04X}"
        remote = f"{loopback}:{own_port:04X}"
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        for line in lines[1:]:
            fields = line.split()
            if fields[1] == local and fields[2] == remote:
                return int(fields[7])
    return None


LARGEST_BODY = 1024**3
"""Largest body of a request, bytes."""

_NOBODY = Identity("", production=False)


@dataclass(frozen=True, slots=True)
class WebParts:
    """What the web server serves."""

    api: Api
    relay: IddsRelay
    cache: FileCache
    logs: Path
    rules: IdentityRules
    faults: Faults
    status: Callable[[], Mapping[str, Any]]
    token: str
    """Secret of this instance: for the agents inside, and for control."""

    all_users: bool = False
    """Whether other users of this machine are let in."""


class Caller(enum.Enum):
    """Who may call a route.

    Before that, each connection of another user of this machine is refused,
    unless all users are let in.
    """

    ANYONE = "whoever reaches the server"
    USER = "a user who is named by a token, by a header or by default"
    TASK_OWNER = "the user to whom the task belongs, or a production user"
    CONTROLLER = "who sends the secret of the instance"


_Handler = Callable[..., flask.Response]


@dataclass(frozen=True, slots=True)
class Route:
    """One route."""

    method: str
    path: str
    caller: Caller
    handler: _Handler
    """Called with the parts, the caller's identity (without rights for
    `Caller.ANYONE` and `Caller.CONTROLLER`) and the variables of the path."""


# -- Requests and replies -----------------------------------------------------


def _parameters() -> dict[str, Any]:
    request = flask.request
    if request.method == "GET":
        return {key: values[0] if len(values) == 1 else values for key, values in request.args.lists()}
    try:
        body = request.get_data()
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        value = json.loads(body or b"{}")
    except (ValueError, OSError, EOFError) as error:
        raise ApiError(f"could not read the request: {error}") from None
    if not isinstance(value, dict):
        raise ApiError("could not read the request: the body is not an object")
    return value


def _envelope(success: bool, message: str, data: Any) -> flask.Response:
    text = json.dumps({"success": success, "message": message, "data": data})
    return flask.Response(text, content_type="application/json")


def _text(message: str, status: int) -> flask.Response:
    return flask.Response(message, status=status, content_type="text/plain")


# -- Handlers -----------------------------------------------------------------


def _relay(parts: WebParts, who: Identity) -> flask.Response:
    try:
        body = decode_body(flask.request.get_data())
    except (ValueError, OSError) as error:
        success, reply = False, f"could not read the request: {error}"
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
    return flask.Response(parts.relay.render(value), content_type="application/json")


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


def _download(parts: WebParts, who: Identity, name: str) -> flask.Response:
    try:
        directory = parts.cache.path(name).parent
    except CacheError as error:
        return _text(str(error), 404)
    return flask.send_from_directory(directory, name)


def _log(parts: WebParts, who: Identity, job: str, name: str) -> flask.Response:
    return flask.send_from_directory(parts.logs / job, name, mimetype="text/plain")


def _status(parts: WebParts, who: Identity) -> flask.Response:
    return _envelope(True, "", dict(parts.status()))


def _set_faults(parts: WebParts, who: Identity) -> flask.Response:
    try:
        rules = parse_faults(json.loads(flask.request.get_data() or b"[]"))
    except ValueError as error:
        return _envelope(False, str(error), None)
    parts.faults.set(rules)
    return _envelope(True, "", len(rules))


# -- Routes -------------------------------------------------------------------

_PRODUCTION_COMMANDS = (
    "pause", "resume", "release", "reactivate", "avalanche", "increase_attempts", "change_priority",
    "change_attribute", "change_split_rule",
)  # fmt: skip

_API = "/api/v1"
ROUTES = (
    Route("POST", "/server/panda/relay_idds_command", Caller.USER, _relay),
    Route("POST", "/server/panda/relayIddsCommand", Caller.USER, _relay),
    Route("POST", f"{_API}/idds/relay_idds_command", Caller.USER, _relay),
    Route("POST", f"{_API}/relay_idds_command", Caller.USER, _relay),
    Route("POST", f"{_API}/task/submit", Caller.USER, _api(Api.submit_task)),
    Route("GET", f"{_API}/task/get_details", Caller.USER, _api(Api.task_details)),
    Route("GET", f"{_API}/task/get_status", Caller.USER, _api(Api.task_status)),
    Route("GET", f"{_API}/task/get_task_parameters", Caller.USER, _api(Api.task_parameters)),
    Route("GET", f"{_API}/task/get_job_ids", Caller.USER, _api(Api.task_job_ids)),
    Route("GET", f"{_API}/task/get_datasets_and_files", Caller.USER, _api(Api.task_datasets)),
    Route("GET", f"{_API}/task/get_job_descriptions", Caller.USER, _api(Api.task_job_descriptions)),
    Route("GET", f"{_API}/task/get_detailed_info", Caller.USER, _api(Api.task_record)),
    Route("GET", f"{_API}/task/get_tasks_detailed_info_since", Caller.USER, _api(Api.task_records_since)),
    Route("POST", f"{_API}/task/kill", Caller.TASK_OWNER, _api(Api.kill_task)),
    Route("POST", f"{_API}/task/finish", Caller.TASK_OWNER, _api(Api.finish_task)),
    Route("POST", f"{_API}/task/retry", Caller.TASK_OWNER, _api(Api.retry_task)),
    Route("POST", f"{_API}/task/reload_input", Caller.TASK_OWNER, _api(Api.reload_task_input)),
    *(Route("POST", f"{_API}/task/{name}", Caller.USER, _api(Api.refuse)) for name in _PRODUCTION_COMMANDS),
    Route("POST", f"{_API}/job/get_description", Caller.USER, _api(Api.job_records)),
    Route("POST", f"{_API}/job/get_description_incl_archive", Caller.USER, _api(Api.job_records)),
    Route("GET", f"{_API}/job/get_status", Caller.USER, _api(Api.job_states)),
    Route("POST", f"{_API}/job/kill", Caller.USER, _api(Api.kill_jobs)),
    Route("GET", f"{_API}/event/get_event_range_statuses", Caller.USER, _api(Api.event_states)),
    Route("GET", f"{_API}/system/is_alive", Caller.USER, _api(Api.is_alive)),
    Route("GET", f"{_API}/system/get_attributes", Caller.USER, _api(Api.user_attributes)),
    Route("GET", f"{_API}/system/get_user_attributes", Caller.USER, _api(Api.user_attributes)),
    Route("POST", f"{_API}/file_server/upload_cache_file", Caller.USER, _upload),
    Route("POST", f"{_API}/file_server/touch_cache_file", Caller.USER, _cache(FileCache.touch)),
    Route("POST", f"{_API}/file_server/validate_cache_file", Caller.USER, _cache(FileCache.exists)),
    Route("POST", f"{_API}/file_server/delete_cache_file", Caller.USER, _cache(FileCache.delete)),
    Route("GET", "/cache/<name>", Caller.ANYONE, _download),
    Route("GET", "/logs/<job>/<path:name>", Caller.ANYONE, _log),
    Route("GET", f"{_API}/local/status", Caller.CONTROLLER, _status),
    Route("POST", f"{_API}/local/faults", Caller.CONTROLLER, _set_faults),
)
"""All routes: the application has no others."""


# -- Application --------------------------------------------------------------


def _check_peer(environ: Mapping[str, Any], all_users: bool) -> None:
    if all_users or not environ.get("REMOTE_PORT"):
        return
    uid = owner_of_peer(int(environ["REMOTE_PORT"]), int(environ["SERVER_PORT"]))
    if uid is not None and uid not in (os.getuid(), 0):
        raise NotAllowedError("this embedded PanDA belongs to another user of this machine")


def _admit(caller: Caller, parts: WebParts) -> Identity:
    """Check that a request comes from who may call the route, and return who that is."""
    if caller is Caller.ANYONE:
        return _NOBODY
    headers = flask.request.headers
    if caller is Caller.CONTROLLER:
        if not secrets.compare_digest(headers.get(TOKEN_HEADER, "").encode(), parts.token.encode()):
            raise NotAllowedError(f"{TOKEN_HEADER} is needed; it is in endpoint.json")
        return _NOBODY
    # The agents of iDDS send the secret as panda-client sends a token.
    given = headers.get(TOKEN_HEADER) or headers.get("Authorization", "").removeprefix("Bearer ")
    inside = secrets.compare_digest(given.encode(), parts.token.encode())
    identity = identify(headers, parts.rules, inside=inside)
    if caller is Caller.TASK_OWNER:
        parts.api.call(Api.check_owner, _parameters(), identity)
    return identity


def _view(route: Route, parts: WebParts) -> Callable[..., flask.Response]:
    def view(**variables: str) -> flask.Response:
        return route.handler(parts, _admit(route.caller, parts), **variables)

    return view


def make_application(parts: WebParts) -> flask.Flask:
    """Make the WSGI application of `ROUTES`."""
    application = flask.Flask(__name__, static_folder=None)
    application.config["MAX_CONTENT_LENGTH"] = LARGEST_BODY

    @application.before_request
    def check() -> None:
        _check_peer(flask.request.environ, parts.all_users)

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
    @application.errorhandler(NotAllowedError)
    def refuse(error: NotAllowedError) -> flask.Response:
        return _text(str(error), 403)

    @application.errorhandler(ApiError)
    def api_error(error: ApiError) -> flask.Response:
        return _envelope(False, str(error), error.data)

    @application.errorhandler(CacheError)
    def cache_error(error: CacheError) -> flask.Response:
        return _envelope(False, str(error), None)

    @application.errorhandler(RequestEntityTooLarge)
    def too_large(error: RequestEntityTooLarge) -> flask.Response:
        return _text("request entity too large", 413)

    @application.errorhandler(404)
    @application.errorhandler(405)
    def unknown(error: HTTPException) -> Any:
        request = flask.request
        call = request.path.removeprefix(f"{_API}/")
        # As panda-server answers: unknown calls of its API are forbidden.
        if call != request.path and call.count("/") == 1:
            return _text(f"{request.method} {call} is not a call of this PanDA", 403)
        return error
