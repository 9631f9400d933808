"""Repairs of what grows with the number of jobs of a task: whatever iDDS does
anew for all jobs when one of them has news.
"""

from __future__ import annotations

__all__ = ["REPAIRS"]

import threading
import time
from typing import Any

from ..pace import Pace
from .record import Repair, module

_CARRIER = "idds.agents.carrier"
_LARGE_TASK = 300

_KEPT_AS_OBJECTS = ("transform_jobid_contentid_map_", "transform_input_contentid_map_")
"""Keys of the cache whose values map texts to lists of numbers, which JSON
does not change."""

_MAPS = 200
"""Maps of jobs to keep; what is dropped is made again from the database."""

_UNKNOWN_FOR = 0.3
"""Seconds; a task that was just submitted is known soon after."""


def _keep_maps_of_jobs(pace: Pace) -> None:
    cache = module("idds.agents.common.cache.redis").RedisCache
    stock_get, stock_set = cache.get, cache.set
    maps: dict[str, Any] = {}

    def get(self: Any, key: str, default: Any = None) -> Any:
        if key.startswith(_KEPT_AS_OBJECTS):
            return maps.get(key) or default
        return stock_get(self, key, default=default)

    def put(self: Any, key: str, value: Any, expire_seconds: float = 21600) -> None:
        if not key.startswith(_KEPT_AS_OBJECTS):
            stock_set(self, key, value, expire_seconds=expire_seconds)
            return
        maps.pop(key, None)
        maps[key] = value
        while len(maps) > _MAPS:
            maps.pop(next(iter(maps)))

    cache.get, cache.set = get, put


def _remember_unknown_tasks(pace: Pace) -> None:
    carrier = module(f"{_CARRIER}.utils")
    stock = carrier.get_workload_id_transform_id_map
    unknown: dict[int, float] = {}

    def find(workload_id: int, *args: Any, **kwargs: Any) -> Any:
        now = time.monotonic()
        if unknown.get(workload_id, 0.0) > now:
            return None
        found = stock(workload_id, *args, **kwargs)
        if not found:
            if len(unknown) > _MAPS:
                unknown.clear()
            unknown[workload_id] = now + _UNKNOWN_FOR
        return found

    carrier.get_workload_id_transform_id_map = find


def _contents_of_changed_jobs(request_id: int, transform_id: int) -> list[dict[str, Any]]:
    """List inputs and outputs of the jobs of a transform that have news."""
    models = module("idds.orm.base.models")
    content = models.Content
    kinds = module("idds.common.constants").ContentRelationType

    @module("idds.orm.base.session").read_session  # type: ignore[untyped-decorator]
    def look(session: Any = None) -> list[dict[str, Any]]:
        own = (
            content.request_id == request_id,
            content.transform_id == transform_id,
            content.content_relation_type != kinds.InputDependency,
        )
        changed = session.query(content.map_id).filter(*own, content.status != content.substatus).distinct()
        query = session.query(content).filter(*own, content.map_id.in_(changed)).order_by(content.map_id)
        return [row.to_dict() for row in query.all()]

    return list(look())


def _trigger_changed_jobs_only(pace: Pace) -> None:
    trigger = module(f"{_CARRIER}.trigger")
    contents = module("idds.core.transforms").orm_contents
    stock_handle, stock_get = trigger.handle_trigger_processing, contents.get_contents_by_request_transform
    inside = threading.local()

    def handle(*args: Any, **kwargs: Any) -> Any:
        inside.trigger = True
        try:
            return stock_handle(*args, **kwargs)
        finally:
            inside.trigger = False

    def get(*args: Any, **kwargs: Any) -> Any:
        # As handle_trigger_processing calls it: all contents but dependencies.
        given = {key for key, value in kwargs.items() if value} - {"session"}
        if getattr(inside, "trigger", False) and not args and given == {"request_id", "transform_id"}:
            return _contents_of_changed_jobs(kwargs["request_id"], kwargs["transform_id"])
        return stock_get(*args, **kwargs)

    trigger.handle_trigger_processing = handle
    contents.get_contents_by_request_transform = get


def _poll_large_tasks_less(pace: Pace) -> None:
    poller = module(f"{_CARRIER}.poller").Poller
    stock = poller.load_poll_period

    def load(self: Any, processing: Any, parameters: Any, *args: Any, **kwargs: Any) -> Any:
        answer = stock(self, processing, parameters, *args, **kwargs)
        inner = (processing.get("processing_metadata") or {}).get("processing")
        size = getattr(getattr(inner, "work", None), "num_inputs", None) or 0
        if size > _LARGE_TASK:
            period = max(pace.poll, min(size // _LARGE_TASK, 30))
            answer["update_poll_period"] = period
        return answer

    poller.load_poll_period = load


REPAIRS = (
    Repair(
        "maps of jobs as JSON",
        "for each message about a job, a map of all jobs of its task is read from JSON and written to it",
        "messages about a task of thousands of jobs take more time than the jobs",
        (
            "idds.agents.common.cache.redis:RedisCache.get",
            "idds.agents.common.cache.redis:RedisCache.set",
            f"{_CARRIER}.utils:get_jobid_content_id_map",
            f"{_CARRIER}.utils:get_input_name_content_id_map",
        ),
        _keep_maps_of_jobs,
    ),
    Repair(
        "messages about unknown tasks",
        "for each message about a task that has ended, or is not known yet, all running tasks are read from "
        "the database; what is remembered of unknown tasks is used only after ten minutes",
        "a tenth of a core and more for minutes after a restart, or when a large task is submitted",
        (f"{_CARRIER}.utils:get_workload_id_transform_id_map",),
        _remember_unknown_tasks,
    ),
    Repair(
        "trigger of all jobs",
        "when a job has news, the trigger reads inputs and outputs of all jobs of its task, and then skips "
        "those without news",
        "a third of a core for a task of thousands of jobs",
        (
            f"{_CARRIER}.trigger:handle_trigger_processing",
            f"{_CARRIER}.utils:get_updated_contents_by_input_output_maps",
            "idds.core.transforms:orm_contents.get_contents_by_request_transform",
            "idds.orm.base.models:Content.substatus",
            "idds.orm.base.models:Content.map_id",
        ),
        _trigger_changed_jobs_only,
    ),
    Repair(
        "polls of large tasks",
        "all jobs of a task are asked for and gone through at every poll; messages tell most of it before",
        "a task of thousands of jobs takes a whole core for its polls",
        (f"{_CARRIER}.poller:Poller.load_poll_period",),
        _poll_large_tasks_less,
    ),
)
