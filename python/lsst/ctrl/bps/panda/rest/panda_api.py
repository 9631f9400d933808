"""PanDA's own API, version 1: tasks, jobs and the file cache."""

__all__ = ["PandaApi", "api_base"]

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from urllib3.filepost import encode_multipart_formdata

from ..errors import SettingsError
from .redaction import redact
from .replies import read_api, shape_error
from .transport import Transport

# The server sends Python text instead of JSON without it.
_HEADERS = {"Accept": "application/json"}

_JOBS_A_CALL = 1000

# What the file cache of panda-server 1.0.4 takes, in bytes.
_LIMIT = 10 * 1024**2
_SOURCES_LIMIT = 768 * 1024**2


def api_base(url: str) -> str:
    """Derive the API's URL as panda-client does.

    Parameters
    ----------
    url : `str`
        ``PANDA_URL_SSL`` or ``PANDACACHE_URL``, such as
        ``https://host:8443/server/panda``.

    Returns
    -------
    base : `str`
        Scheme and host of it, and ``/api/v1``.

    Raises
    ------
    SettingsError
        Raised if it is not an http(s) URL with a host.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingsError(f"{redact(url)!r} is not a URL of PanDA, such as https://host:8443/server/panda.")
    return f"{parts.scheme}://{parts.netloc}/api/v1"


class PandaApi:
    """PanDA's tasks, jobs and file cache.

    Every method raises `TransportError` or one of its children: connection,
    authentication, server and reply errors of the transport, `RefusedError`
    if the server says that it did not succeed.

    Parameters
    ----------
    transport : `Transport`
        How to send.
    base : `str`
        URL of the API, see `api_base`.
    cache_base : `str`, optional
        URL of the API at the file cache, if that is another server.
    """

    def __init__(self, transport: Transport, base: str, *, cache_base: str | None = None) -> None:
        self._transport = transport
        self._base = base.rstrip("/")
        self._cache_base = (cache_base or base).rstrip("/")

    def __repr__(self) -> str:
        return f"PandaApi({self._base!r})"

    def again(self) -> "PandaApi":
        """Give another one with connections of its own, for another thread."""
        return PandaApi(self._transport.again(), self._base, cache_base=self._cache_base)

    def is_alive(self) -> str:
        """Ask whether the server is alive; needs no credentials.

        Returns
        -------
        message : `str`
            The server's words.
        """
        return str(self._get("system/is_alive", "is_alive"))

    def tasks_since(
        self, since: datetime | None = None, *, filters: Mapping[str, str] | None = None, limit: int = 500
    ) -> list[dict[str, Any]]:
        """Get tasks, own ones unless a filter names another user.

        Parameters
        ----------
        since : `~datetime.datetime`, optional
            Modified since then; without a time zone it is UTC.  None means
            at any time.
        filters : `~collections.abc.Mapping` [`str`, `str`], optional
            Values that attributes must have, such as ``reqID`` or
            ``userName``.
        limit : `int`, optional
            Most tasks to get.

        Returns
        -------
        tasks : `list` [`dict`]
            Attributes of tasks.
        """
        params: dict[str, object] = {"n_tasks": limit}
        if since is not None:
            moment = since.astimezone(UTC) if since.tzinfo else since
            params["since"] = moment.strftime("%Y-%m-%d %H:%M:%S")
        if filters:
            # A number as value makes the server fail.
            params["filters"] = json.dumps({key: str(value) for key, value in filters.items()})
        what = f"tasks {dict(filters or {})} since {params.get('since', 'ever')}"
        return self._rows(self._get("task/get_tasks_detailed_info_since", what, **params), what)

    def job_descriptions(self, task_id: int, *, unsuccessful_only: bool = False) -> list[dict[str, Any]]:
        """Get the PanDA jobs of a task, all attempts, archived ones too.

        The server cuts the list at 5500 jobs.

        Parameters
        ----------
        task_id : `int`
            PanDA's number of the task.
        unsuccessful_only : `bool`, optional
            Only those that failed or did not run.

        Returns
        -------
        jobs : `list` [`dict`]
            Attributes of jobs.
        """
        what = f"job descriptions of task {task_id}"
        value = self._get(
            "task/get_job_descriptions", what, task_id=task_id, unsuccessful_only=unsuccessful_only
        )
        return self._rows(value, what)

    def files(self, task_id: int) -> list[dict[str, Any]]:
        """Get the inputs of a task with their states.

        Parameters
        ----------
        task_id : `int`
            PanDA's number of the task.

        Returns
        -------
        datasets : `list` [`dict`]
            Each with ``dataset`` and ``files``.
        """
        what = f"files of task {task_id}"
        value = self._get(
            "task/get_datasets_and_files", what, task_id=task_id, dataset_types=["input", "pseudo_input"]
        )
        return self._rows(value, what)

    def job_status(self, job_ids: Sequence[int]) -> list[dict[str, Any] | None]:
        """Get the present state of PanDA jobs.

        Parameters
        ----------
        job_ids : `~collections.abc.Sequence` [`int`]
            PanDA's numbers of the jobs.

        Returns
        -------
        jobs : `list` [`dict` or `None`]
            In the order asked; `None` for jobs that are not active any more.
        """
        jobs: list[dict[str, Any] | None] = []
        for start in range(0, len(job_ids), _JOBS_A_CALL):
            some = list(job_ids[start : start + _JOBS_A_CALL])
            what = f"state of {len(some)} jobs"
            value = self._post("job/get_description", what, {"job_ids": some}, safe=True)
            if not isinstance(value, list) or len(value) != len(some):
                words = "As many jobs as were asked for were expected."
                raise shape_error(words, value, endpoint=self._base, what=what)
            jobs.extend(item if isinstance(item, dict) else None for item in value)
        return jobs

    def kill_task(self, task_id: int) -> None:
        """Kill a task.

        Parameters
        ----------
        task_id : `int`
            PanDA's number of the task.
        """
        self._post("task/kill", f"kill task {task_id}", {"task_id": task_id}, safe=True)

    def reload_input(self, task_id: int) -> None:
        """Make a task look for its inputs again.

        It releases pruned inputs at once, whatever their dependencies.

        Parameters
        ----------
        task_id : `int`
            PanDA's number of the task.
        """
        self._post("task/reload_input", f"reload input of task {task_id}", {"task_id": task_id}, safe=True)

    def upload_cache_file(self, path: str | os.PathLike[str]) -> str:
        """Put a file into the cache, where anybody can read it.

        Parameters
        ----------
        path : path-like
            The file; its name in the cache is its own.

        Returns
        -------
        url : `str`
            Where it can be fetched.

        Raises
        ------
        SettingsError
            Raised if the file is larger than the cache takes.
        """
        path = Path(path)
        limit = _SOURCES_LIMIT if path.name.startswith("sources.") else _LIMIT
        if (size := path.stat().st_size) > limit:
            raise SettingsError(
                f"{path.name} has {size} bytes; PanDA's file cache takes {limit}. "
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
            what=what,
        )
        read_api(reply, what)
        return self.cache_url(path.name)

    def cache_url(self, name: str) -> str:
        """Give the URL of a file in the cache.

        Parameters
        ----------
        name : `str`
            Name of the file.

        Returns
        -------
        url : `str`
            It needs no credentials.
        """
        return f"{self._cache_base.removesuffix('/api/v1')}/cache/{quote(name)}"

    def download_cache_file(self, name: str, path: str | os.PathLike[str]) -> None:
        """Fetch a file from the cache.

        Parameters
        ----------
        name : `str`
            Name of the file.
        path : path-like
            Where to write it; it appears there complete or not at all.
        """
        reply = self._transport.get(self.cache_url(name), what=f"download {name}")
        path = Path(path)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(reply.body)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _get(self, method: str, what: str, /, **params: Any) -> Any:
        reply = self._transport.get(f"{self._base}/{method}", params=params, headers=_HEADERS, what=what)
        return read_api(reply, what)

    def _post(self, method: str, what: str, content: Mapping[str, object], *, safe: bool) -> Any:
        reply = self._transport.post(
            f"{self._base}/{method}",
            body=json.dumps(content).encode(),
            content_type="application/json",
            headers=_HEADERS,
            safe=safe,
            what=what,
        )
        return read_api(reply, what)

    def _rows(self, value: Any, what: str) -> list[dict[str, Any]]:
        if value is None:
            return []
        if not (isinstance(value, list) and all(isinstance(row, dict) for row in value)):
            raise shape_error("A list of records was expected.", value, endpoint=self._base, what=what)
        return value
