"""Small runs made directly of iDDS's classes, to check an embedded PanDA: by
``panda_local check``, the tests and the benchmark.
"""

from __future__ import annotations

__all__ = ["Trial", "TrialClient", "TrialCounts", "TrialTask", "diamond"]

import gzip
import importlib
import json
import os
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lsst.ctrl.bps.panda.errors import LocalPandaError

from .endpoint import Endpoint, environment

_ENDED = ("Finished", "SubFinished", "Failed", "Cancelled", "Expired", "Broken")
_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}


@dataclass(frozen=True, slots=True)
class TrialTask:
    """A task of a trial run."""

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
class TrialCounts:
    """Where a task of a trial run is."""

    status: str
    total: int
    finished: int
    failed: int
    missing: int


@dataclass(frozen=True, slots=True)
class Trial:
    """A submitted run."""

    request_id: int
    name: str
    tasks: tuple[str, ...]


class TrialClient:
    """Talks to an embedded PanDA.

    Parameters
    ----------
    endpoint : `Endpoint`
        The server.
    headers : `~collections.abc.Mapping`, optional
        Headers to send with each request, such as a token.
    """

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str] | None = None) -> None:
        self._endpoint = endpoint
        self._headers = {**_HEADERS, **(headers or {})}
        # Without the first one idds.common wants a server's configuration
        # where idds-server is installed; without the other one idds.workflowv2
        # makes a directory in HOME.
        for name in ("IDDS_CLIENT_MODE", "IDDS_LOCAL_CONFIG_ROOT"):
            os.environ.setdefault(name, environment(endpoint)[name])

    def post(self, url: str, body: bytes, timeout: float = 120) -> Any:
        """Send a request and decode the reply."""
        request = urllib.request.Request(url, data=body, headers=self._headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=timeout) as reply:
            return json.load(reply)

    def relay(self, command: str, *args: Any, **kwargs: Any) -> Any:
        """Call iDDS through the relay.

        Raises
        ------
        LocalPandaError
            Raised if the relay says that it failed.
        """
        dumps = importlib.import_module("idds.common.utils").json_dumps
        body = {
            "command_name": command,
            "args": dumps(list(args)),
            "kwargs": dumps(kwargs),
            "manager": True,
        }
        packed = gzip.compress(json.dumps(body).encode(), 1)
        success, value = self.post(f"{self._endpoint.url}/relay_idds_command", packed)
        if not success:
            raise LocalPandaError(f"{command}: {value}")
        return value

    def api(self, path: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """Call PanDA's API: GET with no parameters in the body, else POST."""
        url = self._endpoint.url.replace("/server/panda", f"/api/v1/{path}")
        if parameters is not None:
            return self.post(url, json.dumps(parameters).encode())
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(url, headers=self._headers), timeout=120) as reply:
            return json.load(reply)

    def submit(self, name: str, tasks: Sequence[TrialTask], *, final: TrialTask | None = None) -> Trial:
        """Submit a run.

        Parameters
        ----------
        name : `str`
            Name of the run.
        tasks : `~collections.abc.Sequence` [`TrialTask`]
            Its tasks.
        final : `TrialTask`, optional
            A task that starts when all others are terminated.
        """
        workflows = importlib.import_module("idds.workflowv2.workflow")
        names = {task.label: f"{name}_{number:02d}_{task.label}_01" for number, task in enumerate(tasks)}
        workflow = workflows.Workflow(name=name)
        works = []
        for task in tasks:
            works.append(_work(task, names))
            workflow.add_work(works[-1])
        if final is not None:
            names[final.label] = f"{name}_{len(tasks):02d}_{final.label}_01"
            last = _work(final, names)
            workflow.add_work(last)
            ends = [work.is_terminated for work in works]
            workflow.add_condition(workflows.AndCondition(conditions=ends, true_works=[last]))
        reply = self.relay("submit", workflow, username=None, use_dataset_name=False)
        if not isinstance(reply, int):
            raise LocalPandaError(f"the run was not accepted: {reply}")
        return Trial(reply, name, tuple(names))

    def look(self, trial: Trial) -> tuple[str, dict[str, TrialCounts]]:
        """Tell the status of a run, and where its tasks are by label."""
        rows = self.relay("get_requests", request_id=trial.request_id, with_detail=True)
        counts = {}
        for row in rows:
            if not row["transform_name"]:
                continue
            label = row["transform_name"].removeprefix(f"{trial.name}_")[3:-3]
            counts[label] = TrialCounts(
                _enum(row["transform_status"]),
                row["output_total_files"] or 0,
                row["output_processed_files"] or 0,
                row["output_failed_files"] or 0,
                row["output_missing_files"] or 0,
            )
        return (_enum(rows[0]["status"]) if rows else ""), counts

    def wait(
        self, trial: Trial, *, timeout: float, show: Callable[[str], None] | None = None
    ) -> tuple[str, dict[str, TrialCounts]]:
        """Wait for the end of a run: the request and all its tasks.

        Raises
        ------
        LocalPandaError
            Raised if it does not end in time.
        """
        end = time.monotonic() + timeout
        shown = ""
        while True:
            status, counts = self.look(trial)
            line = ", ".join(f"{label} {item.finished}/{item.total}" for label, item in counts.items())
            if show and line != shown:
                show(f"{status}: {line}")
                shown = line
            complete = len(counts) == len(trial.tasks)
            if complete and status in _ENDED and all(item.status in _ENDED for item in counts.values()):
                return status, counts
            if time.monotonic() > end:
                raise LocalPandaError(
                    f"run {trial.name} did not end within {timeout:g} s: {status}, {counts}"
                )
            time.sleep(0.2)


def _enum(value: Any) -> str:
    return str(value["attributes"]["_name_"]) if isinstance(value, dict) else str(value)


def _work(task: TrialTask, names: Mapping[str, str]) -> Any:
    works = importlib.import_module("idds.doma.workflowv2.domapandawork")
    jobs = [
        {
            "name": job,
            "order_id": number,
            "dependencies": [{"task": names[label], "inputname": parent} for label, parent in parents],
        }
        for number, (job, parents) in enumerate(task.jobs.items())
    ]
    arguments: dict[str, Any] = {
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
    return works.DomaPanDAWork(**arguments)


def diamond(width: int, *, command: str = "true", attempts: int = 1) -> list[TrialTask]:
    """Make the tasks of a diamond: one job, twice ``width`` jobs, one job."""
    first = {"first:0": ()}
    left = {f"left:{i}": (("first", "first:0"),) for i in range(width)}
    right = {f"right:{i}": (("left", f"left:{i}"),) for i in range(width)}
    last = {"last:0": tuple(("right", f"right:{i}") for i in range(width))}
    shapes: Mapping[str, Mapping[str, Sequence[tuple[str, str]]]] = {
        "first": first,
        "left": left,
        "right": right,
        "last": last,
    }
    return [TrialTask(label, jobs, command, attempts) for label, jobs in shapes.items()]
