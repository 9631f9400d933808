"""Repairs of what iDDS reads without need, the more the larger a task or request is."""

from __future__ import annotations

__all__ = ["REPAIRS"]

import threading
import time
from typing import Any

from ..settings import Timing
from . import Repair, idds_module

_CARRIER = "idds.agents.carrier"

_KEPT_AS_OBJECTS = ("transform_jobid_contentid_map_", "transform_input_contentid_map_")
"""Keys of the cache whose values map texts to lists of numbers, which JSON
does not change."""

_MAPS = 200
"""Number of maps of jobs to keep; dropped ones are made again from the database."""

_UNKNOWN_FOR = 0.3
"""Seconds for which a task stays unknown; one that was just submitted is known
soon after."""


def _keep_maps_of_jobs(timing: Timing) -> None:
    cache = idds_module("idds.agents.common.cache.redis").RedisCache
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


def _remember_unknown_tasks(timing: Timing) -> None:
    carrier = idds_module(f"{_CARRIER}.utils")
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
    models = idds_module("idds.orm.base.models")
    content = models.Content
    kinds = idds_module("idds.common.constants").ContentRelationType

    @idds_module("idds.orm.base.session").read_session  # type: ignore[untyped-decorator]
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


def _trigger_changed_jobs_only(timing: Timing) -> None:
    trigger = idds_module(f"{_CARRIER}.trigger")
    contents = idds_module("idds.core.transforms").orm_contents
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


def _read_plain_values_at_once(timing: Timing) -> None:
    owner = idds_module("idds.common.dict_class").DictClass
    stock = owner.from_dict

    def from_dict(value: Any) -> Any:
        return value if value is None or type(value) in (str, int, float, bool) else stock(value)

    owner.from_dict = staticmethod(from_dict)


def _read_configuration_once(timing: Timing) -> None:
    work = idds_module("idds.doma.workflowv2.domapandawork").DomaPanDAWork
    stock = work.load_panda_config
    found: list[Any] = []

    def load(self: Any) -> Any:
        if not found:
            found.append(stock(self))
        return found[0]

    work.load_panda_config = load


def _read_names_only(timing: Timing) -> None:
    core = idds_module("idds.core.transforms")
    transform = idds_module("idds.orm.base.models").Transform
    kinds = idds_module("idds.common.constants").CollectionRelationType
    keys = ("coll_id", "transform_id", "workload_id", "scope", "name")

    @idds_module("idds.orm.base.session").read_session  # type: ignore[untyped-decorator]
    def names(request_id: int, session: Any = None) -> dict[int, str]:
        columns = (transform.transform_id, transform.name)
        return {row[0]: row[1] for row in session.query(*columns).filter_by(request_id=request_id)}

    def get_work_name_to_coll_map(request_id: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
        of_transform = {each: name for each, name in names(request_id).items() if name}
        found: dict[str, dict[str, list[dict[str, Any]]]]
        found = {name: {"inputs": [], "outputs": []} for name in of_transform.values()}
        places = {kinds.Input: "inputs", kinds.Output: "outputs"}
        for each in core.orm_collections.get_collections(request_id=request_id):
            name, place = of_transform.get(each["transform_id"]), places.get(each["relation_type"])
            if name and place:
                found[name][place].append({key: each[key] for key in keys})
        return found

    core.get_work_name_to_coll_map = get_work_name_to_coll_map


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
        "plain values as objects",
        "each number and text of what is read from the database goes through five functions that look for "
        "objects",
        "a tenth of iDDS's CPU",
        ("idds.common.dict_class:DictClass.from_dict",),
        _read_plain_values_at_once,
    ),
    Repair(
        "configuration of works",
        "the configuration of PanDA's client is read for each work that is read from the database",
        "a twentieth of iDDS's CPU",
        ("idds.doma.workflowv2.domapandawork:DomaPanDAWork.load_panda_config",),
        _read_configuration_once,
    ),
    Repair(
        "works read for their names",
        "whenever a transform is looked at, all works of its request are read from the database, of which no "
        "more than the names are used",
        "a seventh of iDDS's CPU for a request of nine tasks, and more for more",
        (
            "idds.core.transforms:get_work_name_to_coll_map",
            "idds.core.transforms:orm_collections.get_collections",
            "idds.orm.base.models:Transform.name",
        ),
        _read_names_only,
    ),
)
