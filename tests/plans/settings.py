"""Settings of a plan, of which a test changes what it is about with `dataclasses.replace`."""

from __future__ import annotations

from lsst.ctrl.bps.panda.plan.model import LabelSettings, PlanSettings, RunIdentity, StagedFile

LABEL = LabelSettings(
    site="SITE",
    cloud="US",
    queue="",
    priority=900,
    processing_type="",
    task_type="test",
    prod_source_label="managed",
    vo="wlcg",
    runner_command="python3 _runner_ _cmd_line_",
)
RUN = RunIdentity(
    name="u_run",
    operator="someone",
    project="dev",
    campaign="quick",
    payload="pipe",
    output_run="u/run",
    site="SITE",
    submit_path="/submit",
    staging_area="/area/run/",
    plugin_version="1",
    bps_version="30",
)
RUNNER = StagedFile("runner", "/x/cmd_line_decoder.py", "cmd_line_decoder.py", executable=True)
SETTINGS = PlanSettings(run=RUN, labels={"": LABEL}, runner=RUNNER)
