"""The iDDS workflow of a remote build: one task, which makes the plan of a run
at a site and then gives it to iDDS.
"""

from __future__ import annotations

__all__ = ["BuildTask", "make_build_submission", "render_update"]

import json
from dataclasses import dataclass

from .attributes import RunAttributes, render_attributes
from .idds_workflow import _TASK_LOG, Submission, _idds, render_call
from .pipeline import BUILD_TASK


@dataclass(frozen=True, slots=True)
class BuildTask:
    """What the build task runs, and where."""

    command: str
    site: str = ""
    cloud: str = ""
    queue: str = ""
    processing_type: str = ""
    priority: int = 0
    memory: int = 0
    """MB."""

    attempts: int = 1


def make_build_submission(task: BuildTask, attributes: RunAttributes) -> Submission:
    """Make what is sent for a remote build.

    Parameters
    ----------
    task : `BuildTask`
        The one task.
    attributes : `RunAttributes`
        Attributes of the run; the request keeps them when the plan comes.
    """
    idds = _idds()
    workflow = idds.Workflow(name=attributes.name)
    for name, value in render_attributes(attributes).items():
        setattr(workflow, name, value)
    workflow.add_work(
        idds.DomaPanDAWork(
            executable=task.command,
            task_type="lsst_build",
            primary_input_collection={"scope": "pseudo_dataset", "name": "pseudo_input_collection#1"},
            output_collections=[{"scope": "pseudo_dataset", "name": "pseudo_output_collection#1"}],
            log_collections=[],
            dependency_map=None,
            task_name=BUILD_TASK,
            task_queue=task.queue or None,
            task_site=task.site or None,
            task_cloud=task.cloud or None,
            task_priority=task.priority,
            processing_type=task.processing_type or None,
            prodSourceLabel="managed",
            encode_command_line=True,
            task_log=dict(_TASK_LOG),
            task_rss=task.memory,
            maxattempt=task.attempts,
        )
    )
    keywords: str = idds.json_dumps({"username": None, "use_dataset_name": False})
    return Submission((), render_call(workflow), keywords)


def render_update(submission: Submission, *, request_id: int, signature: str) -> str:
    """Render the arguments of ``update_build_request``.

    Parameters
    ----------
    submission : `Submission`
        The run, as it would be submitted.
    request_id : `int`
        Request of the build task.
    signature : `str`
        What iDDS gave the build task to prove itself.
    """
    workflow = submission.request.strip().removeprefix("[").removesuffix("]")
    return f"[{request_id}, {json.dumps(signature)}, {workflow}]"
