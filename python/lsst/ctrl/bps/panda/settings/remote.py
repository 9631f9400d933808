"""Settings of a remote build: the section ``remoteBuild`` over the rest of the configuration."""

from __future__ import annotations

__all__ = [
    "BuildSettings",
    "REQUEST_VARIABLE",
    "REST_VARIABLE",
    "RemoteBuildSection",
    "SIGNATURE_VARIABLE",
    "is_remote_build",
    "read_build_settings",
]

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lsst.ctrl import bps
from lsst.ctrl.bps import BpsConfig, GenericWorkflowJob

from ..errors import SettingsError
from ..plan.model import Resources
from .files import locate_in
from .keys import (
    BuildKeys,
    LabelKeys,
    Number,
    Section,
    TextList,
    WholeMegabytes,
    WholeNumber,
    YesOrNo,
    is_no,
    key,
    keys_of,
)
from .search import KeyLookup

SECTION = "remoteBuild"

REQUEST_VARIABLE = "IDDS_BUILD_REQUEST_ID"
"""Variable of the environment of a build task: the request that it makes the plan for."""

SIGNATURE_VARIABLE = "IDDS_BUIL_SIGNATURE"
"""Variable of the environment of a build task by which it proves itself, as iDDS spells it."""

REST_VARIABLE = "BPS_PANDA_REST_OF_WORKFLOW"
"""Variable that a build task sets for its stages: the file with what comes after them."""


class RemoteBuildSection(Section):
    """How the plan of a run is made at a site."""

    enabled: YesOrNo = key(False, "Whether the quantum graph of the run is made by a task at the site.")
    files: TextList = key([], "Files and directories that the configuration needs at the site.")
    request_memory: WholeMegabytes = key(4096, "Memory of the build task.", least=1)
    request_memory_max: WholeMegabytes = key(
        0, "Memory that no attempt of the build task exceeds; 0 means `memoryLimit`.", least=0
    )
    memory_multiplier: Number = key(
        1.0, "Growth of the memory of the build task from one attempt to the next.", least=0
    )
    number_of_retries: WholeNumber = key(2, "Attempts of the build task after the first one.", least=0)


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """Where and how the plan of a run is made at a site."""

    command: str
    """Command of the build task, with ``_download_cmd_line_``,
    ``_build_cmd_line_`` and ``_compute_site_``."""

    files: tuple[str, ...]
    """Files and directories that go with the configuration."""

    site: str
    cloud: str
    queue: str
    processing_type: str
    priority: int
    resources: Resources
    """Memory and attempts; the rest has no effect on a build."""


def is_remote_build(config: BpsConfig) -> bool:
    """Tell whether the plan of a run is to be made by a task."""
    section = config.get(SECTION)
    enabled = isinstance(section, BpsConfig) and not is_no(section.get("enabled", False))
    # BPS makes jobs of the stages of a submission from 30.2026.4300 on.
    return enabled or (
        hasattr(bps, "GenericWorkflowLazyGroup") and bool(config.get("bpsBatchSubmission", False))
    )


def read_build_settings(
    config: BpsConfig, environment: Mapping[str, str], stages: Sequence[GenericWorkflowJob] = ()
) -> BuildSettings:
    """Read the settings of a remote build; raise `SettingsError` for a value that is missing or wrong.

    For what the section does not say, the task has the largest that one of its stages asks for.
    """
    lookup = KeyLookup(config, environment)
    section = config.get(SECTION) or BpsConfig({})
    enabled = section.get("enabled")
    if isinstance(enabled, str) and enabled and is_no(enabled):
        raise SettingsError(
            f"{SECTION}.enabled is {enabled!r}, a text, which BPS takes for yes whatever it says. Write "
            "enabled: no, without quotes."
        )
    own_command = "runnerCommand" in section
    lookup.check_variables("runnerCommand" if own_command else "buildCommand", [SECTION])
    keys = lookup.read(LabelKeys, SECTION)
    build = _read_section(config, section, environment)
    build = build.model_copy(update=_largest_of(stages, without=section))
    memory = build.request_memory
    return BuildSettings(
        command=(
            keys.runner_command if own_command else lookup.read(BuildKeys, SECTION).build_command
        ).strip(),
        files=_existing(build.files),
        site=keys.compute_site,
        cloud=keys.compute_cloud,
        queue=keys.queue,
        processing_type=keys.processing_type,
        priority=keys.priority,
        resources=Resources(
            memory=memory,
            memory_max=max(memory, build.request_memory_max or keys.memory_limit),
            memory_growth=max(1.0, build.memory_multiplier),
            cores=1,
            disk=0,
            walltime=0,
            attempts=build.number_of_retries + 1,
        ),
    )


def _read_section(
    config: BpsConfig, section: BpsConfig, environment: Mapping[str, str]
) -> RemoteBuildSection:
    """Read the section, and what is not in it from the configuration."""
    values = {
        name: config.search(name, opt={"searchobj": section, "default": None})[1]
        for name in keys_of(RemoteBuildSection)
    }
    return RemoteBuildSection.parse(
        values, source=locate_in(SECTION, environment), title=f"{{}} of {SECTION}"
    )


def _largest_of(stages: Sequence[GenericWorkflowJob], *, without: Iterable[str]) -> dict[str, Any]:
    """Return the largest value that a stage has for each key of the section, except for those in ``without``.

    A stage without ``memoryMultiplier`` does not grow, and one without ``requestMemoryMax`` has no limit.
    """
    found: dict[str, Any] = {}
    for name, each in keys_of(RemoteBuildSection).items():
        if name in without or not hasattr(GenericWorkflowJob, each.field):
            continue
        values = []
        for stage in stages:
            given = getattr(stage, each.field)
            if given is None and name == "memoryMultiplier":
                given = 1
            read = RemoteBuildSection.parse(
                {name: given}, source="as the job has it", title=f"{{}} of job {stage.name!r}"
            )
            if given is not None:
                values.append(getattr(read, each.field))
        if values and (name != "requestMemoryMax" or len(values) == len(stages)):
            found[each.field] = max(values)
    return found


def _existing(files: Iterable[str]) -> tuple[str, ...]:
    """Return files with variables replaced; refuse what is not there."""
    paths = tuple(os.path.expandvars(name) for name in files)
    if missing := [path for path in paths if not os.path.exists(path)]:
        raise SettingsError(f"remoteBuild.files names what is not there: {', '.join(missing)}.")
    return paths
