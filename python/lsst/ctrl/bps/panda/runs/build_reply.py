"""What the task of a remote build sends back to the submit host, over PanDA's
file cache: the record of the run with what it registers in Rucio, and its plan
for a restart.
"""

from __future__ import annotations

__all__ = ["complete_record", "send_reply"]

import gzip
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from lsst.resources import ResourcePath

from ..errors import PandaBpsError
from ..plan.naming import BUILD_LABEL, BUILD_TASK
from ..rest.panda_api import PandaApi
from .inquiry import Connection
from .record import PLAN_NAME, REGISTRATION_NAME, RunIndex, RunRecord, read_record, write_text

_LOG = logging.getLogger(__name__)

# What is put behind the archive's name.
_RECORD_SUFFIX = ".record.json"
_PLAN_SUFFIX = ".plan.json.gz"

_GZIP = b"\x1f\x8b"

_REGISTRATION = "registration"
"""Key of the record sent: what the run registers in Rucio, as it is written in
a file of its own."""

_TAKEN = ("labels", "tasks", "final_labels", "outputs", "staging")


def send_reply(api: PandaApi, submit_path: str | os.PathLike[str], archive: str) -> None:
    """Send record and plan; the run does without if that is not possible.

    Parameters
    ----------
    api : `PandaApi`
        The server.
    submit_path : path
        Submit directory of the site.
    archive : `str`
        Name of the build's archive in the cache.
    """
    record: dict[str, Any] = dict(read_record(submit_path).content)
    registration = Path(submit_path, REGISTRATION_NAME)
    if registration.is_file():
        record[_REGISTRATION] = registration.read_text(encoding="utf-8")
    plan = Path(submit_path, PLAN_NAME).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        # The plan first: who finds the record finds both.
        for suffix, data in (
            (_PLAN_SUFFIX, gzip.compress(plan, mtime=0)),
            (_RECORD_SUFFIX, json.dumps(record).encode()),
        ):
            path = Path(folder, archive + suffix)
            path.write_bytes(data)
            try:
                api.upload_cache_file(path)
            except PandaBpsError as error:
                _LOG.warning("%s is not sent to the submit host: %s", path.name, error)


def complete_record(connection: Connection, run: str) -> None:
    """Complete the record of a remote build by what the site has sent back,
    if there is something new, and put the plan into the submit directory.

    Parameters
    ----------
    connection : `Connection`
        The server.
    run : `str`
        Id, name or submit directory of any run.
    """
    record = _find_record(connection, run)
    remote = record.content.get("remote") if record is not None else None
    if record is None or not remote or remote.get("complete"):
        return
    archive = str(remote["archive"])
    try:
        sent = json.loads(_download(connection.api, archive + _RECORD_SUFFIX))
        taken = {key: sent[key] for key in _TAKEN}
        taken["clusters"] = sent.get("clusters", [])
        area = str(sent["run"]["staging_area"])
    except (PandaBpsError, OSError, ValueError, KeyError, TypeError) as error:
        _LOG.debug("The site has not sent the plan of run %s yet: %s", record.name, error)
        return
    # The task that made the plan is one of the request's transforms too.
    taken["labels"] = [[BUILD_LABEL, 1], *taken["labels"]]
    taken["tasks"] = [[BUILD_TASK, BUILD_LABEL, 1], *taken["tasks"]]
    record.content.update(taken)
    record.content["run"]["staging_area"] = area
    record.content["remote"] = {**remote, "complete": True}
    _fetch_plan(connection.api, record, archive)
    if isinstance(registration := sent.get(_REGISTRATION), str):
        write_text(Path(record.submit_path, REGISTRATION_NAME), [registration])
    record.write(record.submit_path)


def _fetch_plan(api: PandaApi, record: RunRecord, archive: str) -> None:
    """Write the plan into the submit directory: from the cache, or, if it was
    too large for that, from the staging area.
    """
    try:
        data = _download(api, archive + _PLAN_SUFFIX)
        # Web servers may call the compression a matter of transport, so that it is undone already.
        text = (gzip.decompress(data) if data.startswith(_GZIP) else data).decode()
    except (PandaBpsError, OSError, ValueError, EOFError) as error:
        _LOG.debug("The plan of run %s is not in the cache: %s", record.name, error)
        area = record.staging_area
        uri = area if "://" in area else Path(area).as_uri()
        try:
            text = ResourcePath(uri, forceDirectory=True).join(PLAN_NAME).read().decode()
        except Exception as problem:  # each store has errors of its own
            _LOG.warning("Run %s cannot be restarted: its plan is out of reach: %s", record.name, problem)
            return
    write_text(Path(record.submit_path, PLAN_NAME), [text])


def _download(api: PandaApi, name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        api.download_cache_file(name, path)
        return path.read_bytes()


def _find_record(connection: Connection, run: str) -> RunRecord | None:
    """Find the record of one's own run without asking the server."""
    text = str(run).strip()
    index = RunIndex(connection.settings.state_directory)
    if text.isdecimal():
        return index.find(connection.settings.url, request_id=int(text))
    try:
        return read_record(text) if os.path.isdir(text) else index.find(connection.settings.url, name=text)
    except PandaBpsError:
        return None
