"""Labels of one run at several sites."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lsst.ctrl.bps import BPS_SEARCH_ORDER, BpsConfig
from lsst.ctrl.bps.panda.checks.plan import find_attempts_on_server, find_labels_elsewhere
from lsst.ctrl.bps.panda.edgenode.cmd_line_decoder import encode_command, encode_option
from lsst.ctrl.bps.panda.findings import Severity
from lsst.ctrl.bps.panda.plan.model import Placement
from lsst.ctrl.bps.panda.settings.search import KeyLookup

AREA = "/sdf/area/run/"


def plan_of(*labels, area=AREA, site="SLAC"):
    """What is looked at of a plan; a label is a name and its site."""
    tasks = tuple(
        SimpleNamespace(label=label, placement=Placement("US", where, "")) for label, where in labels
    )
    return SimpleNamespace(
        tasks=tasks[:-1],
        final=tasks[-1:],
        run=SimpleNamespace(name="a_run", site=site, staging_area=area),
    )


def config_of(**content):
    return BpsConfig(
        {"computeSite": "SLAC", "butlerConfig": "/repo/main", **content}, search_order=BPS_SEARCH_ORDER
    )


def find(*labels, area=AREA, share_files=False, **content):
    """Return the errors and the warnings."""
    found = find_labels_elsewhere(plan_of(*labels, area=area), config_of(**content), share_files=share_files)
    assert {finding.severity for finding in found} <= {Severity.ERROR, Severity.WARNING}
    return tuple(
        [finding.text for finding in found if finding.severity is severity]
        for severity in (Severity.ERROR, Severity.WARNING)
    )


def test_one_site_needs_nothing():
    assert find(("isr", "SLAC"), ("coadd", "slac"), ("finalJob", "SLAC")) == ([], [])


def test_facilities_that_stage_apart_are_refused():
    (problem,), doubts = find(("isr", "SLAC"), ("coadd", "LANCS"), ("warp", "LANCS"), ("finalJob", "SLAC"))
    assert doubts == []
    assert "Labels coadd, warp go to LANCS, the run to SLAC" in problem
    assert f"the staging area {AREA} and the Butler /repo/main" in problem
    assert "sitesShareFiles: yes" in problem
    assert "panda_bps campaign" in problem


def test_sites_of_which_nothing_is_known_are_doubted():
    problems, (doubt,) = find(("isr", "NOWHERE"), ("finalJob", "SLAC"))
    assert problems == []
    assert "Labels isr go to NOWHERE" in doubt


@pytest.mark.parametrize(
    ("area", "butler"), [("https://store/area/", "s3://bucket/repo"), ("davs://store/area/", "main")]
)
def test_places_that_all_sites_reach_are_fine(area, butler):
    assert find(("isr", "LANCS"), ("finalJob", "SLAC"), area=area, butlerConfig=butler) == ([], [])


@pytest.mark.parametrize(
    ("area", "butler", "named", "silent"),
    [
        ("https://store/area/", "file:///repo/main", "the Butler file:///repo/main", "staging area"),
        ("file:///a/b/", "https://butler/repo", "the staging area file:///a/b/", "Butler https"),
    ],
)
def test_what_is_a_path_is_named(area, butler, named, silent):
    (problem,), _ = find(("isr", "LANCS"), ("finalJob", "SLAC"), area=area, butlerConfig=butler)
    assert named in problem
    assert silent not in problem


def test_the_user_may_know_better():
    assert find(("isr", "LANCS"), ("finalJob", "SLAC"), share_files=True) == ([], [])


def test_one_run_has_one_butler_even_where_files_are_shared():
    site = {"LANCS": {"butlerConfig": "/repo/lancs"}}
    (problem,), _ = find(("isr", "LANCS"), ("finalJob", "SLAC"), share_files=True, site=site)
    assert "different Butlers (/repo/lancs: isr; /repo/main: finalJob)" in problem


def test_a_label_gets_the_profile_of_its_site():
    config = config_of(
        pipetask={"coadd": {"computeSite": "CC-IN2P3"}, "warp": {"computeSite": "NOWHERE"}},
        cluster={"visits": {"computeSite": "LANCS", "queue": "LANCS_Rubin"}},
        LSST_VERSION="w_2026_40",
    )
    lookup = KeyLookup(config, {})
    clouds = {label: lookup.get("computeCloud", label) for label in ("", "isr", "coadd", "visits", "warp")}
    assert clouds == {"": "US", "isr": "US", "coadd": "EU", "visits": "EU", "warp": "US"}
    assert lookup.get("computeSite", "visits") == "LANCS"
    assert lookup.get("queue", "visits") == "LANCS_Rubin"
    assert "export SHELL" in lookup.get("runnerCommand", "visits")
    assert "export SHELL" not in lookup.get("runnerCommand", "isr")


@pytest.mark.parametrize(
    ("command", "codes", "area", "told"),
    [
        ("try <WMS:attemptNum>", "1,2", "https://dav/run/", "<WMS:attemptNum> need"),
        ("try", "3", "s3://bucket/run/", "retryUnlessExit need"),
        ("try <WMS:attemptNum>", "3", "dav://host/run/", "<WMS:attemptNum> and retryUnlessExit need"),
        ("try", "1,2", "https://dav/run/", ""),
        ("try <WMS:attemptNum>", "3", AREA, ""),
        ("try <WMS:attemptNum>", "3", f"file://{AREA}", ""),
    ],
)
def test_attempts_on_a_server_are_told_where_a_run_counts_on_them(command, codes, area, told):
    line = f"runner {encode_command(command)} {encode_option('retry-unless-exit', codes)}"
    found = find_attempts_on_server([SimpleNamespace(command=line)], area)
    assert [finding.severity for finding in found] == [Severity.HINT] * bool(told)
    assert all(finding.text.startswith(told) and area in finding.text for finding in found)
