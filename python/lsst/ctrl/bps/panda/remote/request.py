"""Remote build: the plan of a run is made at a site, by a task that gets the
configuration and its files through PanDA's file cache.

The program that the task runs is `~lsst.ctrl.bps.panda.remote.site`.
"""

from __future__ import annotations

__all__ = ["make_archive", "split_for_task", "submit_build", "submit_stages"]

import json
import logging
import os
import shlex
import tarfile
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lsst.ctrl.bps import BpsConfig, GenericWorkflow

from ..errors import PlanError, SettingsError
from ..files import replacing
from ..idds.workflow import make_build_submission
from ..plan.commands import LINE_END
from ..plan.document import RunAttributes
from ..plan.lazy import Stages, split
from ..rest.panda_api import MAX_CACHE_FILE
from ..runs.client import Connection
from ..runs.files import REST_NAME, STAGES_NAME, protect_environment_dumps
from ..runs.record import RunRecord, RunSection
from ..runs.submit import submit_run
from ..settings.bps_command import configuration_file, log_into
from ..settings.configuration import RunConfiguration
from ..settings.remote import REQUEST_VARIABLE, read_build_settings
from ..workflow import PandaBpsWmsWorkflow

_LOG = logging.getLogger(__name__)

_SERVICE = "lsst.ctrl.bps.panda.PanDAService"
_LOCAL_SERVICE = "lsst.ctrl.bps.panda.LocalPanDAService"

SITE_SUBMIT_PATH = "${PWD}/submit/{outputRun}"
"""Submit directory of the site: that of the submit host is not there."""


def split_for_task(workflow: GenericWorkflow, environment: Mapping[str, str]) -> Stages | None:
    """Return the stages that a build task runs if a workflow has a lazy group; `None` if it has none.

    The jobs of a lazy group may not hold another one, which is a `PlanError`.
    """
    stages = split(workflow)
    if stages is not None and environment.get(REQUEST_VARIABLE):
        raise PlanError(
            f"The lazy group of this run has made another one, {stages.jobs[-1].name!r}. iDDS takes the "
            "tasks of a run that its build task makes once, so lazy groups cannot be nested."
        )
    return stages


def submit_stages(connection: Connection, workflow: PandaBpsWmsWorkflow) -> None:
    """Submit the task that runs the stages of a workflow without a plan, and set the
    workflow's id and submit directory.
    """
    run = RunConfiguration(workflow.config)
    file = configuration_file() or run.file
    if not file:
        # A program has made the configuration.
        directory = Path(run.submit_path).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        file = os.fspath(directory / f"{run.name}_config.yaml")
        Path(file).write_text(yaml.safe_dump(run.content), encoding="utf-8")
    built = submit_build(connection, config=workflow.config, config_file=file, stages=workflow.stages)
    workflow.run_id, workflow.submit_path = built.run_id, built.submit_path


def submit_build(
    connection: Connection,
    *,
    config: BpsConfig,
    config_file: str,
    stages: Stages | None = None,
    **kwargs: Any,
) -> PandaBpsWmsWorkflow:
    """Submit the task that makes the plan of a run at a site; return a workflow with the run's name and id.

    The submit directory must exist.  Of the other arguments of BPS, ``compute_site`` is used.
    """
    run = RunConfiguration(config)
    submit_path = Path(run.submit_path).absolute()
    log_into(str(submit_path))
    protect_environment_dumps(submit_path)
    settings = read_build_settings(config, connection.settings.environment, stages.jobs if stages else ())
    overlay = _write_overlay(run, Path(config_file), submit_path)
    archive = submit_path / f"jobO.{uuid.uuid4()}.tar.gz"
    own = [overlay, *(_write_stages(stages, submit_path) if stages else ())]
    files = [config_file, *settings.files, *(stages.files if stages else ())]
    make_archive(archive, files, own)
    site = str(kwargs.get("compute_site") or "")
    # How many jobs it has is not known yet.
    attributes = RunAttributes(
        name=run.name, operator=run.operator, project=run.project, campaign=run.campaign, payload=run.payload
    )
    url = connection.api.upload_cache_file(archive)
    command = _fill(settings.command, archive=url, config=overlay.name, site=site)
    submission = make_build_submission(settings, command, attributes)
    # The site chooses the staging area.
    places = {"output_run": run.output_run, "site": run.site, "submit_path": os.fspath(submit_path)}
    section = RunSection.model_validate(attributes).model_copy(update={**places, "staging_area": ""})
    record = RunRecord.planned_at_site(section, archive=archive.name)
    request_id = submit_run(connection, record, submission, build=True)
    _LOG.info("A task at the site makes the plan of run %s", run.name)
    workflow = PandaBpsWmsWorkflow(attributes.name, config)
    workflow.run_id = str(request_id)
    workflow.submit_path = os.fspath(submit_path)
    return workflow


def _fill(command: str, *, archive: str, config: str, site: str) -> str:
    """Fill in the arguments of the build command."""
    for mark, value in (("_download_cmd_line_", archive), ("_build_cmd_line_", config)):
        if mark not in command:
            raise SettingsError(
                f"remoteBuild.runnerCommand does not hold {mark}, so it cannot build anything."
            )
        command = command.replace(mark, shlex.quote(value))
    command = command.replace("_compute_site_", shlex.quote(site) if site else "")
    return command.replace(LINE_END, "\n")


def _write_overlay(run: RunConfiguration, config_file: Path, submit_path: Path) -> Path:
    """Write the configuration that the site reads: the user's YAML, and over it the values that BPS has
    defined here, so that both sides mean the same run, and those of the command line.
    """
    values = run.command_line
    values.update(timestamp=run.timestamp, operator=run.operator, submitPath=SITE_SUBMIT_PATH)
    values.pop("remoteBuild", None)
    path = submit_path / f"{config_file.stem}_at_site.yaml"
    if run.service_class == _LOCAL_SERVICE:
        # The task knows where PanDA is; it must not look for one of its own.
        values["wmsServiceClass"] = _SERVICE
    content = {
        "includeConfigs": [config_file.name],
        "bps_cmdline": values,
        # There, it is an ordinary run.
        "remoteBuild": {"enabled": False},
        "bpsBatchSubmission": False,
    }
    text = yaml.safe_dump(content)
    path.write_text(text, encoding="utf-8")
    return path


def _write_stages(stages: Stages, submit_path: Path) -> list[Path]:
    """Write what the build task needs to run stages: their commands, and what comes after them."""
    commands, rest = submit_path / STAGES_NAME, submit_path / REST_NAME
    commands.write_text(json.dumps(stages.commands), encoding="utf-8")
    if not stages.rest:
        return [commands]
    rest.write_bytes(stages.rest)
    return [commands, rest]


def make_archive(archive: Path, files: Iterable[str], own: Iterable[Path]) -> None:
    """Pack files and directories, side by side, for PanDA's file cache, and the plugin's own as they are.

    YAML files that a configuration includes by a relative path are added.  Two files of one name, or too many
    bytes, are a `SettingsError`.
    """
    members: dict[str, str] = {}
    for name, path in (*_members(files), *((path.name, os.fspath(path)) for path in own)):
        if members.setdefault(name, path) != path:
            raise SettingsError(
                f"Two files of the remote build are called {name}: {members[name]} and {path}. Rename one."
            )
    # Readable by its owner only: it may hold what the user keeps private.
    with replacing(archive, mode=0o600) as temporary:
        with tarfile.open(temporary, "w:gz", dereference=True) as tar:
            for name, path in members.items():
                tar.add(path, arcname=name)
        _check_size(temporary.stat().st_size, members)


def _members(files: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Yield the name in the archive and the path of each file."""
    for file in files:
        path = Path(file).resolve()
        yield path.name, os.fspath(path)
        if path.suffix in (".yaml", ".yml") and path.is_file():
            yield from _included(path, path.parent)


def _included(path: Path, top: Path) -> Iterable[tuple[str, str]]:
    """Yield the files that a YAML file includes from its own directory or below."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError):
        return  # BPS has read it; this one has tags of its own
    names = content.get("includeConfigs", ()) if isinstance(content, Mapping) else ()
    for name in [names] if isinstance(names, str) else names or ():
        included = (path.parent / str(name)).resolve()
        # What is elsewhere, or named by a variable, is found by the site itself.
        if (
            "$" in str(name)
            or "://" in str(name)
            or not included.is_file()
            or not included.is_relative_to(top)
        ):
            continue
        yield os.fspath(included.relative_to(top)), os.fspath(included)
        yield from _included(included, top)


def _check_size(size: int, members: Mapping[str, str]) -> None:
    """Refuse an archive that the cache would refuse."""
    if size <= MAX_CACHE_FILE:
        return
    sizes = sorted(((_size_of(Path(path)), name) for name, path in members.items()), reverse=True)
    largest = ", ".join(f"{name} ({number} bytes)" for number, name in sizes[:3])
    raise SettingsError(
        f"The files of the remote build have {size} bytes when packed; PanDA's file cache takes "
        f"{MAX_CACHE_FILE}. Largest: {largest}. Put what is large where the site can read it, and take it "
        "out of remoteBuild.files."
    )


def _size_of(path: Path) -> int:
    if path.is_dir():
        return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
    return path.stat().st_size
