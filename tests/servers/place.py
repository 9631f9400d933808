"""A user's place on an embedded PanDA, to submit small runs from and to ask about them."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from panda_servers.runs import ENDED, make_config, make_service_class, make_workflow

from lsst.ctrl.bps import (
    GenericWorkflowExec,
    GenericWorkflowJob,
)
from lsst.ctrl.bps.panda.cli.panda_bps import main
from lsst.ctrl.bps.panda.insight.documents import read_schema
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import environment
from lsst.ctrl.bps.panda.local.guard import marked_processes
from lsst.ctrl.bps.panda.local.processes import MARKER

LIMIT = 300.0
SH = GenericWorkflowExec("sh", "/bin/sh", False)


class Place:
    """A user's place on an embedded PanDA."""

    def __init__(self, endpoint, directory):
        self.endpoint = endpoint
        self.directory = directory
        home = {"USER": "ann", "PATH": os.environ["PATH"], "HOME": str(directory)}
        self.env = {**home, "XDG_STATE_HOME": str(directory / "state"), **environment(endpoint)}
        self.service_class = make_service_class(self.env, endpoint)

    def submit(self, name, build):
        submit_path = self.directory / f"submit {name}"
        run = f"u_ann_{name}"
        config = make_config(run, submit_path, self.directory / "area" / name, outputRun=f"u/ann/{name}")
        workflow = make_workflow(run)
        build(workflow)
        service = self.service_class(config)
        made = service.prepare(config, workflow, str(submit_path))
        service.submit(made)
        return made.run_id

    def wait(self, run_id, states=ENDED):
        service = self.service_class({})
        end = time.monotonic() + LIMIT
        while (state := service.get_status(run_id)[0]) not in states:
            assert time.monotonic() < end, state
            time.sleep(0.5)
        return state

    def call(self, *words, code=0):
        """Run a sub-command; give what it printed, and on standard error."""
        result = CliRunner().invoke(main, [*map(str, words)], env=self.env)
        assert result.exit_code == code, (result.output, result.exception)
        return result.stdout, result.stderr

    def json(self, *words, code=0):
        content = json.loads(self.call(*words, "--json", code=code)[0])
        Draft202012Validator(read_schema()).validate(content)
        return content


@contextmanager
def place_with_pages(directory, slots):
    """Give a place on an embedded PanDA of its own, whose pages find the user's runs as commands do; no
    process of it is left.
    """
    panda = directory / "a panda"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(directory / "state"))
        patch.setenv("USER", "ann")
        endpoint = instance.start(panda, slots=slots)
    yield Place(endpoint, directory)
    instance.stop(panda)
    assert marked_processes(f"{MARKER}={panda}") == []


def add(workflow, name, label, script, parents=(), **attributes):
    attributes = {"number_of_retries": 0, "request_memory": 64, **attributes}
    arguments = "-c '" + script.replace("'", "'\\''") + "'"
    workflow.add_job(GenericWorkflowJob(name, label, executable=SH, arguments=arguments, **attributes))
    workflow.add_job_relationships(list(parents) or None, name)
