"""PanDA's own API, version 1: tasks, jobs and the file cache."""

__all__ = ["JOBS_A_TASK", "MAX_CACHE_FILE", "PandaApi", "api_base", "server_root", "unwrap_api"]

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from urllib3.filepost import encode_multipart_formdata

from ..errors import SettingsError
from ..files import replacing
from .credentials import redact
from .faults import Fault, make_refusal, make_reply_error
from .transport import Transport

# The server sends Python text instead of JSON without it.
_HEADERS = {"Accept": "application/json"}

# The kill code with which PanDA does not wait for a pilot; it takes it from owners of tasks that iDDS makes.
_FORCED_KILL = 9

JOBS_A_TASK = 5500
"""PanDA lists no more jobs of a task (panda-server 1.0.4)."""

MAX_CACHE_FILE = 10 * 1024**2
"""Largest file that PanDA's file cache takes, bytes (panda-server 1.0.4)."""


def server_root(url: str) -> str:
    """Return scheme and host of ``PANDA_URL_SSL`` or ``PANDACACHE_URL``, such as
    ``https://host:8443/server/panda``; `SettingsError` is raised for anything else.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingsError(
            f"{redact(url)!r} is not a URL of PanDA, such as https://host:8443/server/panda. "
            "Check PANDA_URL_SSL and PANDACACHE_URL."
        )
    return f"{parts.scheme}://{parts.netloc}"


def api_base(url: str) -> str:
    """Return the URL of the API, as panda-client derives it; otherwise like `server_root`."""
    return f"{server_root(url)}/api/v1"


def unwrap_api(value: Any, *, endpoint: str, what: str) -> Any:
    """Take the value out of the envelope of PanDA's own API.

    The envelope is ``{"success": bool, "message": str, "data": value}``; a refusal comes with HTTP status
    200.  It raises `RefusedError`, another shape `ReplyError`.
    """
    if not (isinstance(value, dict) and isinstance(value.get("success"), bool)):
        words = "The reply of PanDA's API has an unknown shape."
        raise make_reply_error(words, value, endpoint=endpoint, what=what)
    if not value["success"]:
        raise make_refusal(Fault.API, value.get("message"), endpoint=endpoint, what=what)
    return value.get("data")


class PandaApi:
    """PanDA's tasks, jobs and file cache.

    Every method raises `TransportError` or one of its children: connection, authentication, server and reply
    errors of the transport, `RefusedError` if the server says that it did not succeed.  ``cache_base`` is the
    URL of the API at the file cache, if that is another server (see `api_base`).
    """

    def __init__(self, transport: Transport, base: str, *, cache_base: str | None = None) -> None:
        self._transport = transport
        self._base = base.rstrip("/")
        self._cache_base = (cache_base or base).rstrip("/")

    def clone(self) -> "PandaApi":
        """Make a copy with connections of its own, for another thread."""
        return PandaApi(self._transport.clone(), self._base, cache_base=self._cache_base)

    def is_alive(self) -> None:
        """Ask whether PanDA answers, which it does without iDDS; return if so."""
        self._transport.get(f"{self._base}/system/is_alive", headers=_HEADERS, what="is_alive")

    def tasks_since(
        self, since: datetime | None = None, *, filters: Mapping[str, str] | None = None, limit: int = 500
    ) -> list[dict[str, Any]]:
        """Get the attributes of tasks, own ones unless a filter names another user.

        They were modified since a time, which is UTC if it has no time zone.  Filters are values that
        attributes must have, such as ``reqID`` or ``userName``.
        """
        params: dict[str, object] = {"n_tasks": limit}
        if since is not None:
            moment = since.astimezone(UTC) if since.tzinfo else since
            params["since"] = moment.strftime("%Y-%m-%d %H:%M:%S")
        if filters:
            # A number as value makes the server fail.
            params["filters"] = json.dumps({key: str(value) for key, value in filters.items()})
        what = f"tasks {dict(filters or {})} since {params.get('since', 'ever')}"
        return self._get_rows("task/get_tasks_detailed_info_since", what, **params)

    def job_descriptions(self, task_id: int, *, unsuccessful_only: bool = False) -> list[dict[str, Any]]:
        """Get the attributes of the PanDA jobs of a task, all attempts, archived ones too.

        The server cuts the list at `JOBS_A_TASK` jobs.  Unsuccessful are those that failed or did not run.
        """
        what = f"job descriptions of task {task_id}"
        return self._get_rows(
            "task/get_job_descriptions", what, task_id=task_id, unsuccessful_only=unsuccessful_only
        )

    def kill_jobs(self, panda_ids: Sequence[int], *, now: bool = False) -> list[bool]:
        """Kill PanDA jobs; return for each whether the server took the command.

        A job that waits ends at once, one that runs at its pilot's next heartbeat, and PanDA makes the next
        attempt if there is one left.  With ``now`` PanDA does not wait for the pilot, whose payload then runs
        on for a while in vain.  Jobs of others and jobs that have ended are not killed.
        """
        what = f"kill {len(panda_ids)} jobs"
        code: dict[str, Any] = {"code": _FORCED_KILL} if now else {}
        answer = self._command("job/kill", what, job_ids=list(panda_ids), **code)
        if not (isinstance(answer, list) and len(answer) == len(panda_ids)):
            raise make_reply_error(
                "A list with an answer for each job was expected.", answer, endpoint=self._base, what=what
            )
        return [answer is True for answer in answer]

    def kill_task(self, task_id: int) -> None:
        """Register that all jobs of a task are to be killed."""
        self._command("task/kill", f"kill task {task_id}", task_id=task_id)

    def move_task(self, task_id: int, queue: str, *, waiting_too: bool) -> None:
        """Register that a task goes on at another queue; jobs that run stay where they are.

        With ``waiting_too``, jobs that wait are given up and made anew there, which takes one of their
        attempts.
        """
        mode = "soft" if waiting_too else "nokill"
        what = f"move task {task_id}"
        # A second move would give up what the first one has made.
        self._command("task/reassign", what, again=False, task_id=task_id, site=queue, mode=mode)

    def change_task(self, task_id: int, attribute: str, value: int) -> None:
        """Change what a task asks for: ``ramCount`` (MB a core) or ``wallTime`` (s), which takes the
        production role.
        """
        self._command(
            "task/change_attribute",
            f"change {attribute} of task {task_id}",
            task_id=task_id,
            attribute_name=attribute,
            value=value,
        )

    def resume_task(self, task_id: int) -> None:
        """Register that a paused task goes on, which takes the production role."""
        self._command("task/resume", f"resume task {task_id}", task_id=task_id)

    def _command(self, method: str, what: str, /, *, again: bool = True, **body: Any) -> Any:
        """Send a command, more than once if that has the effect of one (``again``)."""
        reply = self._transport.post(
            f"{self._base}/{method}",
            body=json.dumps(body).encode(),
            content_type="application/json",
            headers=_HEADERS,
            safe=again,
            what=what,
        )
        return reply.unwrap(unwrap_api, what)

    def upload_cache_file(self, path: str | os.PathLike[str]) -> str:
        """Put a file into the cache, where anybody can read it under its own name, and return its URL.

        `SettingsError` is raised if the file is larger than the cache takes.
        """
        path = Path(path)
        if (size := path.stat().st_size) > MAX_CACHE_FILE:
            raise SettingsError(
                f"{path.name} has {size} bytes; PanDA's file cache takes {MAX_CACHE_FILE}. "
                "Use a staging area (fileDistributionEndPoint) instead."
            )
        body, content_type = encode_multipart_formdata(
            {"file": (path.name, path.read_bytes(), "application/octet-stream")}
        )
        what = f"upload {path.name}"
        reply = self._transport.post(
            f"{self._cache_base}/file_server/upload_cache_file",
            body=body,
            content_type=content_type,
            headers=_HEADERS,
            safe=True,
            patient=True,
            what=what,
        )
        reply.unwrap(unwrap_api, what)
        return self._cache_url(path.name)

    def _cache_url(self, name: str) -> str:
        """Return the URL of a file in the cache; it needs no credentials."""
        return f"{self._cache_base.removesuffix('/api/v1')}/cache/{quote(name)}"

    def download_cache_file(self, name: str, path: str | os.PathLike[str]) -> None:
        """Fetch a file from the cache; it appears at its path complete or not at all."""
        reply = self._transport.get(self._cache_url(name), what=f"download {name}")
        with replacing(Path(path), mode=0o600) as temporary:
            temporary.write_bytes(reply.body)

    def _get_rows(self, method: str, what: str, /, **params: Any) -> list[dict[str, Any]]:
        """Ask for a list of records; the server gives null for an empty one."""
        reply = self._transport.get(f"{self._base}/{method}", params=params, headers=_HEADERS, what=what)
        value = reply.unwrap(unwrap_api, what)
        if value is None:
            return []
        if not (isinstance(value, list) and all(isinstance(row, dict) for row in value)):
            words = "A list of records was expected."
            raise make_reply_error(words, value, endpoint=self._base, what=what)
        return value
