"""The program of the task of a remote build, at the site: it fetches the configuration, makes quantum graph
and plan with BPS, stages the files, gives the workflow to iDDS, and sends record and plan to the submit host.
"""

from __future__ import annotations

__all__ = ["main", "send_reply"]

import gzip
import logging
import os
import sys
import tempfile
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from lsst.ctrl.bps.drivers import prepare_driver

from lsst.ctrl.bps import BpsSubprocessError

from ..edgenode import cmd_line_decoder as runner
from ..errors import PandaBpsError, RefusedError, SettingsError
from ..idds.workflow import render_update
from ..plan.model import StagedFile
from ..rest.panda_api import PandaApi
from ..runs.client import PLAN_SUFFIX, RECORD_SUFFIX, Connection, connect
from ..runs.files import PLAN_NAME, REGISTRATION_NAME
from ..runs.record import BuildReply, read_record
from ..settings.remote import REQUEST_VARIABLE
from ..settings.run import read_service_settings
from ..staging import stage
from ..workflow import PandaBpsWmsWorkflow

_LOG = logging.getLogger(__name__)

SIGNATURE_VARIABLE = "IDDS_BUIL_SIGNATURE"
"""How iDDS spells it."""

LAST_LINES = 8
"""Lines of a failed command's output that the error repeats."""

_ALREADY = "already has defined workflow"


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
    if not isinstance(error, BpsSubprocessError):
        return ""
    written = sorted(Path().rglob("*.out"), key=lambda path: path.stat().st_mtime)
    text = written[-1].read_text(encoding="utf-8", errors="replace") if written else ""
    lines = [line for line in text.splitlines() if line.strip()][-LAST_LINES:]
    return "".join(f"\n{line}" for line in ["It ended with:", *lines]) if lines else ""


def _build(argv: Sequence[str], environment: MutableMapping[str, str]) -> None:
    if not 2 <= len(argv) <= 3:
        raise SettingsError(
            f"Two or three arguments are needed (archive, configuration, site), not {list(argv)}."
        )
    archive, config_file, *site = argv
    request_id, signature = _require(environment, REQUEST_VARIABLE), _require(environment, SIGNATURE_VARIABLE)
    connection = _connect(archive, environment)
    _unpack(connection.api, archive)
    keywords = {"compute_site": site[0]} if site and site[0] else {}
    _, workflow = prepare_driver(config_file, **keywords)
    if not isinstance(workflow, PandaBpsWmsWorkflow):
        raise SettingsError(
            f"wmsServiceClass made a {type(workflow).__name__}; a remote build needs "
            "lsst.ctrl.bps.panda.PanDAService."
        )
    assert workflow.submit_path is not None
    # This directory goes with the task; a restart needs the plan.
    plan = StagedFile("plan", os.path.join(workflow.submit_path, PLAN_NAME), PLAN_NAME)
    stage([*workflow.staged_files(), plan], workflow.settings.staging)
    _update(connection, workflow, int(request_id), signature)
    send_reply(connection.api, workflow.submit_path, _cache_name(archive))


def _require(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise SettingsError(f"{name} is not set, so this is not a build task of iDDS; it sets it.")
    return value


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


def _update(connection: Connection, workflow: PandaBpsWmsWorkflow, request_id: int, signature: str) -> None:
    """Give the workflow to iDDS; doing so twice does no harm."""
    submission = workflow.submission
    for step in submission.steps:
        connection.relay.submit_step(step, submission.keywords)
    arguments = render_update(submission, request_id=request_id, signature=signature)
    try:
        connection.relay.call(
            "update_build_request", arguments, safe=True, what=f"update request {request_id}"
        )
    except RefusedError as error:
        if _ALREADY not in str(error):
            raise
        _LOG.warning("iDDS has the workflow of request %d already, from an earlier attempt", request_id)
    _LOG.info("Request %d has its workflow: %d jobs", request_id, workflow.plan.job_count)


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
