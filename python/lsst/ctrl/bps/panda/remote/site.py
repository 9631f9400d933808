"""The program of the task of a remote build, at the site: it fetches the configuration, makes quantum graph
and plan with BPS or has the stages of a workflow do so, has the files staged and the workflow given to iDDS,
and sends record and plan to the submit host.
"""

from __future__ import annotations

__all__ = ["main", "send_reply"]

import gzip
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from lsst.ctrl.bps.drivers import prepare_driver
from lsst.ctrl.bps.initialize import init_submission

from lsst.ctrl.bps import BpsSubprocessError

from ..edgenode import cmd_line_decoder as runner
from ..errors import PandaBpsError, SettingsError
from ..plan.lazy import CONFIG_VARIABLE, GRAPH_VARIABLE
from ..rest.panda_api import PandaApi
from ..runs.client import PLAN_SUFFIX, RECORD_SUFFIX, Connection, connect
from ..runs.files import PLAN_NAME, REGISTRATION_NAME, REST_NAME, STAGES_NAME
from ..runs.record import BuildReply, read_record
from ..settings.configuration import RunConfiguration
from ..settings.remote import REQUEST_VARIABLE, REST_VARIABLE, SIGNATURE_VARIABLE
from ..settings.run import read_service_settings
from ..workflow import PandaBpsWmsWorkflow

_LOG = logging.getLogger(__name__)

LAST_LINES = 8
"""Lines of a failed command's output that the error repeats."""


class _StageError(PandaBpsError):
    """A stage that did not succeed."""

    def __init__(self, message: str, *, begun_at: float, output: Sequence[str]) -> None:
        super().__init__(message)
        self.begun_at = begun_at
        self.output = output


def main(argv: Sequence[str], environment: MutableMapping[str, str]) -> int:
    """Build a run, give it to iDDS and return the exit code.

    The arguments are the URL of the archive, the name of the configuration in it, and optionally the compute
    site.  PanDA's address is added to the environment, for the service class that BPS makes.
    """
    everything, errors = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    # The end of stderr is what "panda_bps errors" shows on the submit side.
    errors.setLevel(logging.ERROR)
    errors.addFilter(lambda record: record.name == __name__)
    logging.basicConfig(
        handlers=[everything, errors],
        level=logging.INFO,
        format="%(asctime)s %(name)s %(levelname)s: %(message)s",
    )
    try:
        _build(argv, environment)
    except Exception as error:  # whatever BPS, a pipeline or a Butler raises
        _LOG.info("Where the build failed:", exc_info=True)
        _LOG.error("The remote build failed: %s%s", error, _last_words(error))
        return 1
    return 0


def _last_words(error: Exception) -> str:
    """Return the last lines of output of a command that failed under BPS: BPS
    names only their file, which is gone with the task.
    """
    if not isinstance(error, (BpsSubprocessError, _StageError)):
        return ""
    begun_at = getattr(error, "begun_at", 0.0)
    times = sorted((path.stat().st_mtime, path) for path in Path().rglob("*.out"))
    lines: Sequence[str] = getattr(error, "output", ())
    if times and times[-1][0] >= begun_at:
        lines = times[-1][1].read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line.rstrip() for line in lines if line.strip()][-LAST_LINES:]
    return "".join(f"\n{line}" for line in ["It ended with:", *lines]) if lines else ""


def _build(argv: Sequence[str], environment: MutableMapping[str, str]) -> None:
    if not 2 <= len(argv) <= 3:
        raise SettingsError(
            f"Two or three arguments are needed (archive, configuration, site), not {list(argv)}."
        )
    archive, config_file, *site = argv
    for name in (REQUEST_VARIABLE, SIGNATURE_VARIABLE):
        _require(environment, name)
    connection = _connect(archive, environment)
    _unpack(connection.api, archive)
    keywords = {"compute_site": site[0]} if site and site[0] else {}
    make = _run_stages if Path(STAGES_NAME).is_file() else _prepare
    submit_path = make(config_file, environment, keywords)
    send_reply(connection.api, submit_path, _cache_name(archive))


def _prepare(config_file: str, environment: Mapping[str, str], keywords: Mapping[str, str]) -> str:
    """Make the plan as ``bps prepare`` does, and give it to iDDS; return the submit directory."""
    config, workflow = prepare_driver(config_file, **keywords)
    if not isinstance(workflow, PandaBpsWmsWorkflow):
        raise SettingsError(
            f"wmsServiceClass made a {type(workflow).__name__}; a remote build needs "
            "lsst.ctrl.bps.panda.PanDAService."
        )
    workflow.add_to_parent_workflow(config)
    return str(workflow.submit_path)


def _run_stages(config_file: str, environment: Mapping[str, str], keywords: Mapping[str, str]) -> str:
    """Run the stages of a workflow, the last of which makes the plan and gives it to iDDS; return the submit
    directory.
    """
    config = init_submission(config_file, runWmsSubmissionChecks=True, **keywords)
    run = RunConfiguration(config)
    variables = {
        CONFIG_VARIABLE: run.file or config_file,
        GRAPH_VARIABLE: os.path.join(run.submit_path, run.text("qgraphFileTemplate")),
        REST_VARIABLE: os.path.abspath(REST_NAME),
    }
    stages = json.loads(Path(STAGES_NAME).read_text(encoding="utf-8"))
    for name, command in stages:
        _run_stage(name, command, {**environment, **variables})
    if not Path(run.submit_path, PLAN_NAME).is_file():
        raise PandaBpsError(
            f"{stages[-1][0]} succeeded without adding jobs to the run. Its command has to prepare a "
            "workflow and call add_to_parent_workflow, as 'bps batch-prepare' does."
        )
    return run.submit_path


def _run_stage(name: str, command: str, environment: Mapping[str, str]) -> None:
    """Run the command of a stage and pass on what it prints; raise an error if it does not succeed."""
    _LOG.info("Stage %s: %s", name, command)
    begun_at, last = time.time(), deque[str](maxlen=LAST_LINES)
    with subprocess.Popen(
        ["bash", "-c", command],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            last.append(line)
    if code := process.returncode:
        raise _StageError(f"{name} ended with exit code {code}.", begun_at=begun_at, output=last)


def _require(environment: Mapping[str, str], name: str) -> None:
    if not environment.get(name):
        raise SettingsError(f"{name} is not set, so this is not a build task of iDDS; it sets it.")


def _connect(archive: str, environment: MutableMapping[str, str]) -> Connection:
    """Connect to the PanDA that this job is from: by its usual variables, by
    the pilot's, or else at the server of the archive.
    """
    if not (environment.get("PANDA_URL_SSL") or environment.get("PANDA_URL")):
        environment["PANDA_URL_SSL"] = _panda_url(environment.get("PANDA_SERVER_URL") or archive)
    environment["PANDACACHE_URL"] = _panda_url(archive)
    return connect(read_service_settings(None, environment))


def _panda_url(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/server/panda"


def _cache_name(archive: str) -> str:
    """Return the name in the cache of the file at a URL."""
    return urlsplit(archive).path.rpartition("/")[2]


def _unpack(api: PandaApi, archive: str) -> None:
    """Fetch the archive and unpack it here."""
    path = Path(_cache_name(archive))
    api.download_cache_file(path.name, path)
    # Web servers may call the compression a matter of transport, so that it is undone already.
    try:
        runner.unpack(os.fspath(path))
    except (runner.FailureError, runner.DamagedError) as error:
        raise PandaBpsError(f"the archive of the build cannot be unpacked: {error}") from None
    path.unlink()


def send_reply(api: PandaApi, submit_path: str | os.PathLike[str], archive: str) -> None:
    """Send record and plan to the submit host through PanDA's file cache, under the
    name of the build's archive; if that fails, the run goes on without.
    """
    directory = Path(submit_path)
    registration = directory / REGISTRATION_NAME
    content = read_record(directory).model_dump(exclude_unset=True)
    if registration.is_file():
        content["registration"] = registration.read_text(encoding="utf-8")
    reply = BuildReply.model_validate(content)
    with tempfile.TemporaryDirectory() as folder:
        # The plan first: who finds the record finds both.
        for suffix, data in (
            (PLAN_SUFFIX, gzip.compress((directory / PLAN_NAME).read_bytes(), mtime=0)),
            (RECORD_SUFFIX, reply.model_dump_json(exclude_unset=True).encode()),
        ):
            path = Path(folder, archive + suffix)
            path.write_bytes(data)
            try:
                api.upload_cache_file(path)
            except PandaBpsError as error:
                _LOG.warning("%s is not sent to the submit host: %s", path.name, error)
