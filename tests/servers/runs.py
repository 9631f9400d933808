"""Runs on an embedded PanDA, looked at from within the test's process.

A ``bps`` command takes seconds of a core, nearly all of them to start; asked
again and again, it would keep a core from the run that it waits for.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path

from lsst.ctrl.bps.wms_service import WmsStates

from lsst.ctrl.bps import BPS_DEFAULTS, BPS_SEARCH_ORDER, BpsConfig, GenericWorkflow
from lsst.ctrl.bps.panda import PanDAService
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import environment
from lsst.ctrl.bps.panda.report import get_status_of
from lsst.ctrl.bps.panda.runs.client import RunClient, connect
from lsst.ctrl.bps.panda.settings.run import read_service_settings

ENDED = frozenset({WmsStates.SUCCEEDED, WmsStates.FAILED, WmsStates.DELETED})


class ServiceOf(PanDAService):
    """The service with an environment of its own."""

    env: dict[str, str]

    def settings(self):
        return read_service_settings(self.config, self.env)


def make_service_class(env: Mapping[str, str], endpoint, *, user: str = "") -> type[ServiceOf]:
    """Make the service class of somebody with an environment, for a PanDA; of another user than its owner if
    one is named.
    """
    token = {"PANDA_AUTH_ID_TOKEN": instance.make_token(endpoint, user)} if user else {}
    return type("Service", (ServiceOf,), {"env": {**env, **environment(endpoint), **token}})


def make_config(
    name: str, submit_path: Path, area: Path, *, user: str = "ann", **values: object
) -> BpsConfig:
    """Make the configuration of a small run, as ``bps submit`` hands it to the service class."""
    return BpsConfig(
        {
            "submitPath": str(submit_path),
            "uniqProcName": name,
            "outputRun": name,
            "operator": user,
            "project": "proj",
            "campaign": "camp",
            "computeSite": "local",
            "fileDistributionEndPoint": f"{area}/",
            "payload": {"payloadName": "pay"},
            **values,
        },
        search_order=BPS_SEARCH_ORDER,
        defaults=BPS_DEFAULTS,
        wms_service_class_fqn="lsst.ctrl.bps.panda.PanDAService",
    )


def make_workflow(name: str, *, user: str = "ann") -> GenericWorkflow:
    """Make an empty workflow with the attributes that BPS gives one."""
    workflow = GenericWorkflow(name)
    workflow.run_attrs.update(bps_isjob="True", bps_operator=user, bps_payload="pay")
    return workflow


def await_end(panda: Path, run_id: str, env: Mapping[str, str], *, limit: float) -> WmsStates:
    """Wait until a run has ended; its state.

    Nothing is fetched or written, other than what is known of a run that was
    planned at its site.
    """
    end = time.monotonic() + limit
    service = make_service_class(env, instance.find(panda))({})
    connection = connect(service.settings())
    while True:
        state, message = get_status_of(RunClient(connection).status(run_id))
        if state in ENDED:
            return state
        assert time.monotonic() < end, (state, message)
        time.sleep(0.5)


def fingerprint(directory: Path) -> dict[str, str]:
    """Tell what is in a directory: names, and digests of the contents of files."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in directory.rglob("*")
    }
