"""Where an embedded PanDA keeps its state and how to reach it: the state directory, the file
``endpoint.json`` that a running server leaves in it, and a client that runs small samples.
"""

from __future__ import annotations

__all__ = [
    "ENDPOINT_FILE",
    "EXIT_BUSY",
    "LOCK_FILE",
    "LOGS_FOLDER",
    "SERVER_MARKER",
    "Endpoint",
    "EndpointClient",
    "SampleRun",
    "SampleTask",
    "TaskCounts",
    "check_own_panda",
    "check_owner",
    "diamond",
    "environment",
    "find_own_panda",
    "is_alive",
    "job_folder",
    "make_private_folder",
    "read_endpoint",
    "start_ticks",
    "state_directory",
    "token_folder",
    "write_endpoint",
    "write_token",
]

import gzip
import importlib
import json
import os
import stat
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lsst.ctrl.bps.panda.errors import LocalPandaError

ENDPOINT_FILE = "endpoint.json"
"""Name of the file in the state directory."""

LOCK_FILE = "lock"
"""Name of the file in the state directory that a running server has locked."""

LOGS_FOLDER = "logs"
"""Name of the folder in the state directory with the logs of jobs."""

EXIT_BUSY = 75
"""Exit code of a server that found another one with its state directory."""

SERVER_MARKER = "PANDA_LOCAL_SERVER"
"""Environment variable of a server; its value is different for each start."""

_TOKEN_FOLDER = "client"
_TOKEN_FILE = ".token"
"""The token of the owner, named and formatted as panda-client's own."""

_VO = "local"
"""Virtual organisation, which panda-client wants beside a token."""


def start_ticks(pid: int) -> int:
    """Read when a process was started, in clock ticks since boot.

    It is 0 for a process that does not exist or is a zombie.  Not read with
    psutil: its time since the epoch shifts when the clock is set, and a
    server would be taken for dead.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The command's name stands in parentheses and may hold anything.
    fields = text[text.rindex(")") + 2 :].split()
    return 0 if fields[0] in ("Z", "X") else int(fields[19])


def is_alive(pid: int, started: int) -> bool:
    """Whether this very process lives, and not a later one with its number."""
    return pid > 0 and started > 0 and start_ticks(pid) == started


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running embedded PanDA."""

    url: str
    """``http://127.0.0.1:PORT/server/panda``, the value of PANDA_URL."""

    pid: int
    """Process of the server."""

    started: int
    """Start of that process, see `start_ticks`."""

    version: str
    """Version of this package that the server runs."""

    directory: str
    """State directory, absolute."""

    mark: str = ""
    """Value of `SERVER_MARKER` in the server's environment."""

    @property
    def base(self) -> str:
        """The URL without its path."""
        return self.url.removesuffix("/server/panda")

    @property
    def token(self) -> str:
        """The owner's token, from its file; `LocalPandaError` if it cannot be read."""
        path = token_folder(self.directory) / _TOKEN_FILE
        try:
            return str(json.loads(path.read_text())["id_token"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LocalPandaError(
                f"the token of the embedded PanDA, {path}, cannot be read: {error}"
            ) from None

    def check(self) -> None:
        """Check that this very server lives, since another process may have its port otherwise."""
        if not is_alive(self.pid, self.started):
            raise LocalPandaError(
                f"the embedded PanDA of {self.directory} does not run any more, so nothing is sent to "
                f"{self.base}; start it again with: panda_local start"
            )


def state_directory(variables: Mapping[str, str]) -> Path:
    """Choose the default state directory.

    Parameters
    ----------
    variables : `~collections.abc.Mapping`
        Environment variables: ``PANDA_LOCAL_DIR``, ``XDG_STATE_HOME``,
        ``HOME``.

    Returns
    -------
    path : `~pathlib.Path`
        ``$PANDA_LOCAL_DIR``, else ``panda_local`` in ``$XDG_STATE_HOME``,
        else ``~/.local/state/panda_local``.
    """
    if chosen := variables.get("PANDA_LOCAL_DIR"):
        return Path(chosen).absolute()
    base = variables.get("XDG_STATE_HOME")
    if not base or not os.path.isabs(base):
        base = os.path.join(variables.get("HOME") or os.path.expanduser("~"), ".local", "state")
    return Path(base) / "panda_local"


def job_folder(panda_id: int) -> str:
    """Return the name of the folder with the logs, or the work, of a job."""
    return f"PandaJob_{panda_id}"


def check_owner(path: Path) -> None:
    """Check that a directory is one of this user, if there is one: `LocalPandaError` for that of another,
    who could lead us to a server, a process or a file of their choice.
    """
    try:
        owner = path.stat().st_uid
    except PermissionError as error:
        raise LocalPandaError(
            f"the state directory {path} cannot be looked into: {error.strerror}"
        ) from error
    except OSError:
        return
    if owner != os.getuid():
        raise LocalPandaError(f"the state directory {path} belongs to another user; use another directory")


def read_endpoint(directory: str | Path) -> Endpoint | None:
    """Read ``endpoint.json``; `None` if it is absent or not usable.

    `LocalPandaError` is raised for a directory of another user.
    """
    check_owner(Path(directory))
    try:
        value = json.loads((Path(directory) / ENDPOINT_FILE).read_text())
        return Endpoint(
            url=str(value["url"]),
            pid=int(value["pid"]),
            started=int(value["started"]),
            version=str(value["version"]),
            directory=str(value["directory"]),
            mark=str(value.get("mark", "")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def make_private_folder(path: Path) -> Path:
    """Make a folder that only its owner can use, or check that it is one; `LocalPandaError` for a link, and
    for what belongs to somebody else.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise LocalPandaError(f"{path} is a link, where a folder is needed; remove it")
        if found.st_uid != os.getuid():
            raise LocalPandaError(f"{path} belongs to another user; remove it, or use another directory")
        path.chmod(0o700)
    except OSError as error:
        raise LocalPandaError(f"the folder {path} cannot be used: {error}") from error
    return path


def _write_private(target: Path, value: object) -> None:
    """Write a file of JSON for its owner only, so that a reader sees all of it or nothing."""
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        json.dump(value, stream, indent=1)
    os.replace(temporary, target)


def write_endpoint(endpoint: Endpoint) -> None:
    """Write ``endpoint.json``."""
    _write_private(Path(endpoint.directory) / ENDPOINT_FILE, asdict(endpoint))


def token_folder(directory: str | Path) -> Path:
    """Return the folder of a state directory that is ``PANDA_CONFIG_ROOT`` of its clients."""
    return Path(directory) / _TOKEN_FOLDER


def write_token(folder: Path, token: str | None) -> None:
    """Write a token where panda-client looks for it, or remove the one that is there."""
    if token is None:
        (folder / _TOKEN_FILE).unlink(missing_ok=True)
    else:
        _write_private(make_private_folder(folder) / _TOKEN_FILE, {"id_token": token, "token_type": "Bearer"})


def find_own_panda(variables: Mapping[str, str]) -> Path | None:
    """Find the state directory of the embedded PanDA whose token the variables of a client name.

    It counts where the token is, whatever became of the other variables since `environment` made them.
    """
    root = variables.get("PANDA_CONFIG_ROOT")
    if not root or (folder := Path(root)).name != _TOKEN_FOLDER:
        return None
    named = variables.get("PANDA_LOCAL_DIR") == str(folder.parent)
    return folder.parent if named or (folder.parent / LOCK_FILE).exists() else None


def check_own_panda(variables: Mapping[str, str]) -> None:
    """Check that the server of a client's variables is the one that lives with the state directory of their
    token, if that is of an embedded PanDA: `LocalPandaError` before it is sent to whoever has its port now,
    or to another host.
    """
    directory = find_own_panda(variables)
    if directory is None:
        return
    endpoint = read_endpoint(directory)
    if endpoint is None:
        raise LocalPandaError(
            f"no embedded PanDA runs with {directory}, to which PANDA_URL points; start it with: "
            "panda_local start"
        )
    endpoint.check()
    for name in ("PANDA_URL_SSL", "PANDA_URL", "PANDACACHE_URL"):
        url = urlsplit(variables.get(name, ""))
        if url.netloc and f"{url.scheme}://{url.netloc}" != endpoint.base:
            raise LocalPandaError(
                f"{name} is {variables[name]}, but the embedded PanDA of {directory}, whose token would be "
                f"sent there, is at {endpoint.base}; for the embedded PanDA, set the variables anew with: "
                'eval "$(panda_local env)"; for another one, set PANDA_CONFIG_ROOT to where its token is'
            )


def environment(endpoint: Endpoint) -> dict[str, str]:
    """Make the variables with which clients use this embedded PanDA.

    Returns
    -------
    variables : `dict` [`str`, `str`]
        An empty value means that the variable has to be unset: credentials
        for a facility must not be sent to a local server.
    """
    return {
        "PANDA_URL": endpoint.url,
        "PANDA_URL_SSL": endpoint.url,
        "PANDACACHE_URL": endpoint.url,
        # Otherwise panda-client resolves the cache server's host name when it is imported.
        "PANDA_BEHIND_REAL_LB": "1",
        "PANDA_LOCAL_DIR": endpoint.directory,
        # Where idds-server is installed, idds.common otherwise behaves as a
        # server and wants a server's configuration file.
        "IDDS_CLIENT_MODE": "1",
        # Otherwise idds.workflowv2 makes ~/.idds when it is imported.
        "IDDS_LOCAL_CONFIG_ROOT": str(Path(endpoint.directory) / "idds" / "client"),
        # The token itself is in a file, which only its owner can read.
        "PANDA_AUTH": "oidc",
        "PANDA_AUTH_VO": _VO,
        "PANDA_CONFIG_ROOT": str(token_folder(endpoint.directory)),
        "PANDA_AUTH_ID_TOKEN": "",
        "OIDC_AUTH_ID_TOKEN": "",
        "OIDC_AUTH_TOKEN_FILE": "",
        "OIDC_AUTH_VO": "",
    }


_ENDED = ("Finished", "SubFinished", "Failed", "Cancelled", "Expired", "Broken")
_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}


@dataclass(frozen=True, slots=True)
class SampleTask:
    """A task of a sample run."""

    label: str
    jobs: Mapping[str, Sequence[tuple[str, str]]]
    """Jobs by name; each with the (label, job) pairs it waits for."""

    command: str = "true"
    """Bash, with ``${IN/L}`` for the job's name."""

    attempts: int = 1
    memory: int = 2000
    """MB a core."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of iDDS's work."""


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """Status of a task of a sample run, and its jobs by state."""

    status: str
    total: int
    finished: int
    failed: int
    missing: int


@dataclass(frozen=True, slots=True)
class SampleRun:
    """A sample run that was submitted."""

    request_id: int
    name: str
    tasks: tuple[str, ...]


class EndpointClient:
    """Calls an embedded PanDA, and runs samples made directly of iDDS's
    classes: for ``panda_local``, tests and benchmarks.

    Parameters
    ----------
    endpoint : `Endpoint`
        The server.
    token : `str`, optional
        Token to send, if not the owner's: see `~.instance.make_token`.
    timeout : `float`, optional
        Seconds to wait for a reply.
    """

    def __init__(self, endpoint: Endpoint, *, token: str | None = None, timeout: float = 120) -> None:
        self._endpoint = endpoint
        self._token = token
        self._timeout = timeout

    def request(self, url: str, body: bytes | None = None) -> Any:
        """Send a request and decode the reply: POST with a body, else GET."""
        self._endpoint.check()
        headers = {**_HEADERS, "Authorization": f"Bearer {self._token or self._endpoint.token}"}
        request = urllib.request.Request(url, data=body, headers=headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=self._timeout) as reply:
            return json.load(reply)

    def api(self, path: str, parameters: object = None) -> Any:
        """Call PanDA's API: POST with parameters, else GET."""
        url = f"{self._endpoint.base}/api/v1/{path}"
        return self.request(url, None if parameters is None else json.dumps(parameters).encode())

    def relay(self, command: str, *args: Any, **kwargs: Any) -> Any:
        """Call iDDS through PanDA's relay.

        Raises
        ------
        LocalPandaError
            Raised if the relay says that it failed.
        """
        dumps = self._idds("idds.common.utils").json_dumps
        body = {
            "command_name": command,
            "args": dumps(list(args)),
            "kwargs": dumps(kwargs),
            "manager": True,
        }
        packed = gzip.compress(json.dumps(body).encode(), 1)
        success, value = self.request(f"{self._endpoint.url}/relay_idds_command", packed)
        if not success:
            raise LocalPandaError(f"{command}: {value}")
        return value

    def _idds(self, module: str) -> Any:
        """Import a module of iDDS as a client does, see `environment`."""
        for name in ("IDDS_CLIENT_MODE", "IDDS_LOCAL_CONFIG_ROOT"):
            os.environ.setdefault(name, environment(self._endpoint)[name])
        return importlib.import_module(module)

    def submit(self, name: str, tasks: Sequence[SampleTask], *, final: SampleTask | None = None) -> SampleRun:
        """Submit a sample run.

        Parameters
        ----------
        name : `str`
            Name of the run.
        tasks : `~collections.abc.Sequence` [`SampleTask`]
            Its tasks.
        final : `SampleTask`, optional
            A task that starts when all others are terminated.
        """
        workflows = self._idds("idds.workflowv2.workflow")
        kind = self._idds("idds.doma.workflowv2.domapandawork").DomaPanDAWork
        # A format of its own, which only `fetch_status` reads.
        names = {task.label: f"{name}_{number:02d}_{task.label}_01" for number, task in enumerate(tasks)}
        workflow = workflows.Workflow(name=name)
        works = []
        for task in tasks:
            works.append(kind(**_work_arguments(task, names)))
            workflow.add_work(works[-1])
        if final is not None:
            names[final.label] = f"{name}_{len(tasks):02d}_{final.label}_01"
            last = kind(**_work_arguments(final, names))
            workflow.add_work(last)
            ends = [work.is_terminated for work in works]
            workflow.add_condition(workflows.AndCondition(conditions=ends, true_works=[last]))
        reply = self.relay("submit", workflow, username=None, use_dataset_name=False)
        if not isinstance(reply, int):
            raise LocalPandaError(f"the run was not accepted: {reply}")
        return SampleRun(reply, name, tuple(names))

    def fetch_status(self, run: SampleRun) -> tuple[str, dict[str, TaskCounts]]:
        """Fetch the status of a run, and its tasks by label."""
        rows = self.relay("get_requests", request_id=run.request_id, with_detail=True)
        counts = {}
        for row in rows:
            if not row["transform_name"]:
                continue
            label = row["transform_name"].removeprefix(f"{run.name}_")[3:-3]
            counts[label] = TaskCounts(
                _enum_name(row["transform_status"]),
                row["output_total_files"] or 0,
                row["output_processed_files"] or 0,
                row["output_failed_files"] or 0,
                row["output_missing_files"] or 0,
            )
        return (_enum_name(rows[0]["status"]) if rows else ""), counts

    def wait(
        self, run: SampleRun, *, timeout: float, show: Callable[[str], None] | None = None
    ) -> tuple[str, dict[str, TaskCounts]]:
        """Wait for the end of a run: the request and all its tasks.

        Raises
        ------
        LocalPandaError
            Raised if it does not end in time.
        """
        end = time.monotonic() + timeout
        shown = ""
        while True:
            status, counts = self.fetch_status(run)
            line = ", ".join(f"{label} {item.finished}/{item.total}" for label, item in counts.items())
            if show and line != shown:
                show(f"{status}: {line}")
                shown = line
            complete = len(counts) == len(run.tasks)
            if complete and status in _ENDED and all(item.status in _ENDED for item in counts.values()):
                return status, counts
            if time.monotonic() > end:
                raise LocalPandaError(f"run {run.name} did not end within {timeout:g} s: {status}, {counts}")
            time.sleep(0.2)


def _enum_name(value: Any) -> str:
    return str(value["attributes"]["_name_"]) if isinstance(value, dict) else str(value)


def _work_arguments(task: SampleTask, names: Mapping[str, str]) -> dict[str, Any]:
    """Make the arguments of iDDS's ``DomaPanDAWork``."""
    jobs = [
        {
            "name": job,
            "order_id": number,
            "dependencies": [{"task": names[label], "inputname": parent} for label, parent in parents],
        }
        for number, (job, parents) in enumerate(task.jobs.items())
    ]
    return {
        "executable": task.command,
        "primary_input_collection": {"scope": "pseudo_dataset", "name": "pseudo_input_collection#1"},
        "output_collections": [{"scope": "pseudo_dataset", "name": "pseudo_output_collection#1"}],
        "log_collections": [],
        "dependency_map": jobs,
        "task_name": names[task.label],
        "task_queue": "LOCAL",
        "task_site": "LOCAL",
        "task_cloud": "LOCAL",
        "task_type": "test",
        "task_log": {
            "destination": "local",
            "value": "log.tgz",
            "dataset": "PandaJob_#{pandaid}/",
            "token": "local",
            "param_type": "log",
            "type": "template",
        },
        "encode_command_line": True,
        "task_rss": task.memory,
        "maxattempt": task.attempts,
        "maxwalltime": 3600,
        "core_count": 1,
        "task_priority": 900,
        "prodSourceLabel": "managed",
        "working_group": "lsst",
        "vo": "wlcg",
        **task.options,
    }


def diamond(width: int, *, command: str = "true", attempts: int = 1) -> list[SampleTask]:
    """Make the tasks of a diamond: one job, twice ``width`` jobs, one job."""
    shapes: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
        "first": {"first:0": ()},
        "left": {f"left:{i}": (("first", "first:0"),) for i in range(width)},
        "right": {f"right:{i}": (("left", f"left:{i}"),) for i in range(width)},
        "last": {"last:0": tuple(("right", f"right:{i}") for i in range(width))},
    }
    return [SampleTask(label, jobs, command, attempts) for label, jobs in shapes.items()]
