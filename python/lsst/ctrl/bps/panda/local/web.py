"""The web server: URLs of PanDA, of the relay, of the file cache and of the job logs, with who may ask."""

from __future__ import annotations

__all__ = ["WebParts", "make_application", "owner_of_peer"]

import gzip
import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flask
from werkzeug.exceptions import RequestEntityTooLarge

from .api import Api, ApiError, CacheError, FileCache
from .faults import Faults, parse_faults
from .idds_host import IddsRelay, decode_body
from .identity import Identity, IdentityRules, NotAllowedError, identify

_TABLES = (("/proc/net/tcp", "0100007F"), ("/proc/net/tcp6", "0000000000000000FFFF00000100007F"))


def owner_of_peer(
    peer_port: int, own_port: int, *, tables: tuple[tuple[str, str], ...] = _TABLES
) -> int | None:
    """Tell the user id that owns the client's end of a connection."""
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


_LOG = logging.getLogger(__name__)

_LARGEST_BODY = 1024**3
TOKEN_HEADER = "X-PanDA-Local-Token"
"""Header with the secret of the instance."""


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


def _check_peer(environ: Mapping[str, Any], all_users: bool) -> None:
    if all_users or not environ.get("REMOTE_PORT"):
        return
    uid = owner_of_peer(int(environ["REMOTE_PORT"]), int(environ["SERVER_PORT"]))
    if uid is not None and uid not in (os.getuid(), 0):
        raise NotAllowedError("this embedded PanDA belongs to another user of this machine")


def _parameters() -> dict[str, Any]:
    request = flask.request
    if request.method == "GET":
        return {key: values[0] if len(values) == 1 else values for key, values in request.args.lists()}
    body = request.get_data()
    if body[:2] == b"\x1f\x8b":
        body = gzip.decompress(body)
    value = json.loads(body or b"{}")
    if not isinstance(value, dict):
        raise ValueError("the body is not an object")
    return value


def _envelope(success: bool, message: str, data: Any) -> flask.Response:
    text = json.dumps({"success": success, "message": message, "data": data})
    return flask.Response(text, content_type="application/json")


def make_application(parts: WebParts) -> flask.Flask:
    """Make the WSGI application."""
    application = flask.Flask(__name__)
    application.config["MAX_CONTENT_LENGTH"] = _LARGEST_BODY

    def who() -> Identity:
        headers = flask.request.headers
        # The agents of iDDS send the secret as panda-client sends a token.
        given = headers.get(TOKEN_HEADER) or headers.get("Authorization", "").removeprefix("Bearer ")
        inside = secrets.compare_digest(given.encode(), parts.token.encode())
        return identify(headers, parts.rules, inside=inside)

    @application.before_request
    def check() -> None:
        _check_peer(flask.request.environ, parts.all_users)

    @application.errorhandler(NotAllowedError)
    def refuse(error: NotAllowedError) -> flask.Response:
        return flask.Response(str(error), status=403, content_type="text/plain")

    @application.errorhandler(RequestEntityTooLarge)
    def too_large(error: RequestEntityTooLarge) -> flask.Response:
        return flask.Response("request entity too large", status=413, content_type="text/plain")

    _add_relay(application, parts, who)
    _add_api(application, parts, who)
    _add_files(application, parts, who)
    _add_control(application, parts)
    return application


def _add_relay(application: flask.Flask, parts: WebParts, who: Callable[[], Identity]) -> None:
    def relay() -> flask.Response:
        identity = who()
        try:
            body = decode_body(flask.request.get_data())
        except (ValueError, OSError) as error:
            success, reply = False, f"could not read the request: {error}"
        else:
            success, reply = parts.relay.call(body, identity)
        if flask.request.path.startswith("/api"):
            value: Any = {
                "success": success,
                "message": "" if success else reply,
                "data": reply if success else None,
            }
        else:
            value = [success, reply]
        return flask.Response(parts.relay.render(value), content_type="application/json")

    for number, path in enumerate(
        (
            "/server/panda/relay_idds_command",
            "/server/panda/relayIddsCommand",
            "/api/v1/idds/relay_idds_command",
            "/api/v1/relay_idds_command",
        )
    ):
        application.add_url_rule(path, f"relay{number}", relay, methods=["POST"])


def _add_api(application: flask.Flask, parts: WebParts, who: Callable[[], Identity]) -> None:
    @application.route("/api/v1/<module>/<method>", methods=["GET", "POST"])
    def api(module: str, method: str) -> flask.Response:
        try:
            identity = who()
            data, message = parts.api.call(
                flask.request.method, f"{module}/{method}", _parameters(), identity
            )
        except ApiError as error:
            return _envelope(False, str(error), error.data)
        except ValueError as error:
            return _envelope(False, f"could not read the request: {error}", None)
        except LookupError as error:
            return flask.Response(str(error), status=403, content_type="text/plain")
        return _envelope(True, message, data)


def _add_files(application: flask.Flask, parts: WebParts, who: Callable[[], Identity]) -> None:
    @application.route("/api/v1/file_server/upload_cache_file", methods=["POST"])
    def upload() -> flask.Response:
        who()
        item = flask.request.files.get("file")
        if item is None or not item.filename:
            return _envelope(False, "the request holds no file", None)
        try:
            parts.cache.put(item.filename, item.stream)  # type: ignore[arg-type]
        except CacheError as error:
            return _envelope(False, str(error), None)
        return _envelope(True, "", None)

    actions: dict[str, Callable[[str], bool]] = {
        "touch_cache_file": parts.cache.touch,
        "validate_cache_file": lambda name: parts.cache.path(name).exists(),
        "delete_cache_file": parts.cache.delete,
    }

    @application.route("/api/v1/file_server/<action>", methods=["POST"])
    def other(action: str) -> flask.Response:
        who()
        if action not in actions:
            return flask.Response(f"no call {action}", status=403, content_type="text/plain")
        name = str(_parameters().get("file_name", ""))
        try:
            found = actions[action](name)
        except CacheError as error:
            return _envelope(False, str(error), None)
        return _envelope(found, "" if found else f"{name} is not in the cache", None)

    @application.route("/cache/<name>")
    def download(name: str) -> flask.Response:
        return flask.send_from_directory(parts.cache.path(name).parent, name)

    @application.route("/logs/<job>/<path:name>")
    def log(job: str, name: str) -> flask.Response:
        return flask.send_from_directory(parts.logs / job, name, mimetype="text/plain")


def _add_control(application: flask.Flask, parts: WebParts) -> None:
    def check_token() -> None:
        given = flask.request.headers.get(TOKEN_HEADER, "")
        if not secrets.compare_digest(given, parts.token):
            raise NotAllowedError(f"{TOKEN_HEADER} is needed; it is in endpoint.json")

    @application.route("/api/v1/local/status")
    def status() -> flask.Response:
        check_token()
        return _envelope(True, "", dict(parts.status()))

    @application.route("/api/v1/local/faults", methods=["POST"])
    def faults() -> flask.Response:
        check_token()
        try:
            rules = parse_faults(json.loads(flask.request.get_data() or b"[]"))
        except ValueError as error:
            return _envelope(False, str(error), None)
        parts.faults.set(rules)
        return _envelope(True, "", len(rules))
