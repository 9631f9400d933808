"""Settings of a remote build: the section ``remoteBuild`` over the rest of
the configuration.
"""

from __future__ import annotations

__all__ = ["BuildSettings", "is_batch_submission", "is_remote_build", "read_build_settings"]

import os
from collections.abc import Mapping
from dataclasses import dataclass

from lsst.ctrl import bps
from lsst.ctrl.bps import BpsConfig

from ..errors import SettingsError
from .search import KeyLookup

SECTION = "remoteBuild"

DEFAULT_MEMORY = 4096
"""Memory of the build task if none is asked for, MB."""

DEFAULT_ATTEMPTS = 3


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
    memory: int
    """MB."""

    attempts: int


_STAGES = ("buildQuantumGraph", "preparePayloadWorkflow")
"""Sections of the jobs that BPS makes of the stages of a submission."""


def is_remote_build(config: BpsConfig) -> bool:
    """Tell whether the plan of a run is to be made by a task.

    Parameters
    ----------
    config : `~lsst.ctrl.bps.BpsConfig`
        Configuration of the run.
    """
    section = config.get(SECTION)
    enabled = isinstance(section, BpsConfig) and bool(section.get("enabled", False))
    return enabled or is_batch_submission(config)


def is_batch_submission(config: BpsConfig) -> bool:
    """Tell whether BPS is to make jobs of the stages of the submission, as it
    can from 30.2026.4300 on.

    Parameters
    ----------
    config : `~lsst.ctrl.bps.BpsConfig`
        Configuration of the run.
    """
    return hasattr(bps, "GenericWorkflowLazyGroup") and bool(config.get("bpsBatchSubmission", False))


def read_build_settings(config: BpsConfig, environment: Mapping[str, str]) -> BuildSettings:
    """Read the settings of a remote build.

    Parameters
    ----------
    config : `~lsst.ctrl.bps.BpsConfig`
        Configuration of the run.
    environment : mapping of `str` to `str`
        The environment.

    Raises
    ------
    SettingsError
        Raised if a value is missing or cannot be used.
    """
    lookup = KeyLookup(config, environment)
    section = config.get(SECTION) or BpsConfig({})
    key = "runnerCommand" if "runnerCommand" in section else "buildCommand"
    lookup.check_variables(key, [SECTION])
    retries = _number(config, section, "numberOfRetries", least=0, default=DEFAULT_ATTEMPTS - 1)
    return BuildSettings(
        command=lookup.get(key, SECTION, raw=True).strip(),
        files=_files(section),
        site=lookup.get("computeSite", SECTION),
        cloud=lookup.get("computeCloud", SECTION),
        queue=lookup.get("queue", SECTION),
        processing_type=lookup.get("processingType", SECTION),
        priority=lookup.get("priority", SECTION),
        memory=_memory(config, section),
        attempts=retries + 1,
    )


def _memory(config: BpsConfig, section: BpsConfig) -> int:
    """Memory of the task, MB: what the larger of BPS's two stages asks for, if
    they are what it stands for.
    """
    sections = [section]
    if is_batch_submission(config) and "requestMemory" not in section:
        sections += [stage for stage in map(config.get, _STAGES) if isinstance(stage, BpsConfig)]
    return max(_number(config, each, "requestMemory", least=1, default=DEFAULT_MEMORY) for each in sections)


def _files(section: BpsConfig) -> tuple[str, ...]:
    """Read the list of files."""
    _, files = section.search("files", opt={"default": [], "expandEnvVars": True})
    if isinstance(files, str):
        files = [name.strip() for name in files.split(",") if name.strip()]
    missing = [str(name) for name in files if not os.path.exists(os.path.expandvars(str(name)))]
    if missing:
        raise SettingsError(f"remoteBuild.files names what is not there: {', '.join(missing)}.")
    return tuple(os.path.expandvars(str(name)) for name in files)


def _number(config: BpsConfig, section: BpsConfig, name: str, *, least: int, default: int) -> int:
    """Read a whole number of the section, or of the configuration."""
    _, value = config.search(name, opt={"searchobj": section, "default": default})
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = least - 1
    if number < least:
        raise SettingsError(f"{name} of remoteBuild is {value!r}; it must be a whole number from {least} on.")
    return number
