"""What the service class says and does about real runs: quick shell jobs on
the embedded PanDA with the real iDDS.

Most of the time of a run is waiting, and iDDS works no more for many runs than for one: what is marked with
`together` runs at the same time, each in a thread, and its test waits for that.
"""

import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lsst.ctrl.bps.wms_service import WmsStates
from panda_servers.runs import ENDED, make_config, make_service_class, make_workflow

from lsst.ctrl.bps import (
    GenericWorkflowExec,
    GenericWorkflowJob,
)
from lsst.ctrl.bps.panda.errors import RefusedError
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.runs.cancel import cancel_run
from lsst.ctrl.bps.panda.runs.client import RunClient, connect

pytestmark = pytest.mark.slow

LIMIT = 600.0
SLOTS = 16
AT_ONCE = 6
"""Scenarios at a time: the server and their questions take a core together."""
SH = GenericWorkflowExec("sh", "/bin/sh", False)


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def panda(request, tmp_path_factory):
    """An embedded PanDA; PostgreSQL enforces lengths that SQLite does not."""
    url = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None
    directory = tmp_path_factory.mktemp("service") / "a panda"
    yield instance.start(directory, slots=SLOTS, database=url)
    instance.stop(directory)


@pytest.fixture
def site(panda, tmp_path):
    return Site(panda, tmp_path)


def together(scenario):
    """Make a test that waits for a scenario, which runs beside those of the other selected tests."""

    def test(started):
        started[scenario].result()

    test.scenario = scenario
    test.__name__ = test.__qualname__ = scenario.__name__
    test.__doc__ = scenario.__doc__
    return test


@pytest.fixture(scope="module")
def started(panda, request, tmp_path_factory):
    """Scenarios of the selected tests, all running."""
    functions = {item.function for item in request.session.items if item.path == request.path}
    scenarios = [function.scenario for function in functions if hasattr(function, "scenario")]
    faults = Faults(panda)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            scenario: pool.submit(scenario, Site(panda, tmp_path_factory.mktemp("site"), faults=faults))
            for scenario in scenarios
        }


class Faults:
    """Faults of the embedded PanDA; each scenario has tasks of its own to match."""

    def __init__(self, panda):
        self._panda = panda
        self._rules = []
        self._lock = threading.Lock()

    def add(self, **rule):
        """Add a rule; gives what removes it."""
        self._change(self._rules.append, rule)
        return lambda: self._change(self._rules.remove, rule)

    def _change(self, change, rule):
        with self._lock:
            change(rule)
            instance.set_faults(self._panda, self._rules)


class Site:
    """A user's place: submit directories, a staging area, files of jobs."""

    def __init__(self, endpoint, directory, user="ann", faults=None):
        self.endpoint = endpoint
        self.faults = faults
        self.directory = directory
        state = directory / f"state of {user}"
        env = {"USER": user, "PATH": os.environ["PATH"], "XDG_STATE_HOME": str(state)}
        self.service_class = make_service_class(env, endpoint, user=user)
        self.service = self.service_class({})
        self.user = user
        self.count = 0

    def submit(self, build, **values):
        """Prepare and submit a workflow that ``build`` fills."""
        service, workflow = self.prepare(build, **values)
        service.submit(workflow)
        return workflow.run_id, Path(workflow.submit_path)

    def prepare(self, build, name="", **values):
        """Prepare a workflow that ``build`` fills."""
        self.count += 1
        name = name or f"u_{self.user}_{self.directory.name}_{self.count}"
        submit_path = self.directory / f"submit {self.user} {self.count}"
        area = self.directory / "area" / name
        config = make_config(name, submit_path, area, user=self.user, **values)
        workflow = make_workflow(name, user=self.user)
        build(workflow)
        service = self.service_class(config)
        return service, service.prepare(config, workflow, str(submit_path))

    def wait(self, run_id, states=ENDED, *, words=""):
        """Wait until a run has a state and its report holds words; no count may ever be wrong, and no job may
        go back, except from RUNNING to PENDING.
        """
        end = time.monotonic() + LIMIT
        reached = {}
        while True:
            report = self.report(run_id)
            now = {
                (label, rank): sum(number for state, number in found.items() if rank_of(state) >= rank)
                for label, found in report.job_summary.items()
                for rank in (1, 2, 3)
            }
            assert all(now.get(key, 0) >= number for key, number in reached.items()), (reached, now)
            reached = now
            if report.state in states and words in str(report.specific_info):
                return report
            assert time.monotonic() < end, (report.state, report.job_state_counts)
            time.sleep(1.0)

    def restart_when_its_jobs_have_ended(self, run_id):
        """Restart a cancelled run, whose running jobs hear of it a bit later."""
        end = time.monotonic() + LIMIT
        while True:
            new_id, _, message = self.service.restart(run_id)
            if new_id is not None:
                return new_id
            assert "of its jobs still run" in message
            assert time.monotonic() < end
            time.sleep(0.3)

    def report(self, run_id):
        (report,), message = self.service.report(str(run_id), return_exit_codes=True)
        assert message == ""
        for counts in (report.job_state_counts, *report.job_summary.values()):
            assert set(counts) == set(WmsStates)
            assert min(counts.values()) >= 0
        assert sum(report.job_state_counts.values()) == report.total_number_jobs
        return report

    def lines(self, name):
        """Lines that jobs have written."""
        path = self.directory / name
        return path.read_text().split() if path.exists() else []


def rank_of(state):
    """How far a job is: 3 if it has ended."""
    before = {WmsStates.UNREADY: 0, WmsStates.UNKNOWN: 0, WmsStates.READY: 1}
    return before.get(state, 2 if state in (WmsStates.PENDING, WmsStates.RUNNING, WmsStates.HELD) else 3)


def add(workflow, name, label, script, parents=(), **attributes):
    attributes.setdefault("number_of_retries", 0)
    arguments = "-c '" + script.replace("'", "'\\''") + "'"
    workflow.add_job(
        GenericWorkflowJob(name, label, executable=SH, arguments=arguments, request_memory=64, **attributes)
    )
    workflow.add_job_relationships(list(parents) or None, name)


def final(workflow, script):
    arguments = "-c '" + script + "'"
    workflow.add_final(
        GenericWorkflowJob(
            "finalJob", "finalJob", executable=SH, arguments=arguments, request_memory=64, number_of_retries=0
        )
    )


def counts(report, label):
    """States of a label that are not empty."""
    return {state.name: n for state, n in report.job_summary[label].items() if n}


def three_levels(site, *, middle, last="true"):
    """make_2_a (3 jobs) -> middle (3) -> gather (1), and a final job."""

    def build(workflow):
        log = f'"{site.directory}/order"'
        for i in range(3):
            add(workflow, f"a{i}", "make_2_a", f"echo a{i} >> {log}")
            add(workflow, f"m{i}", "middle", f"{middle(i)} echo m{i} >> {log}", [f"a{i}"])
        add(workflow, "g", "gather", f"{last}; echo g >> {log}", [f"m{i}" for i in range(3)])
        final(workflow, f"echo final >> {log}")

    return build


@together
def test_a_run_that_succeeds(site):
    run_id, submit_path = site.submit(three_levels(site, middle=lambda i: ""))
    report = site.wait(run_id)
    assert report.state is WmsStates.SUCCEEDED
    assert counts(report, "make_2_a") == {"SUCCEEDED": 3}
    assert report.run_summary == "make_2_a:3;middle:3;gather:1;finalJob:1"
    said = (report.operator, report.project, report.campaign, report.payload)
    assert said == ("ann", "proj", "camp", "pay")
    assert report.path == str(submit_path)
    assert site.service.get_status(run_id)[0] is WmsStates.SUCCEEDED
    assert site.lines("order")[-2:] == ["g", "final"]
    for way in (int(run_id), str(submit_path), report.run):
        assert site.service.report(way)[0][0].wms_id == run_id
    ids = site.service.restart(run_id)
    assert ids[:2] == (None, None)
    assert "nothing to run again" in ids[2]
    assert site.service.cancel(run_id)[0] is False


@together
def test_a_failure_prunes_and_a_restart_completes_with_the_final_job(site):
    flag = site.directory / "mended"
    middle = lambda i: f'test {i} -ne 1 -o -e "{flag}" || exit 17;'  # noqa: E731
    run_id, submit_path = site.submit(three_levels(site, middle=middle))
    report = site.wait(run_id)
    assert report.state is WmsStates.FAILED
    assert site.service.get_status(run_id)[0] is WmsStates.FAILED
    assert counts(report, "make_2_a") == {"SUCCEEDED": 3}
    assert counts(report, "middle") == {"SUCCEEDED": 2, "FAILED": 1}
    assert counts(report, "gather") == {"PRUNED": 1}
    assert counts(report, "finalJob") == {"SUCCEEDED": 1}
    assert report.exit_code_summary["middle"] == [17]
    assert "17" in str(report.specific_info)

    flag.touch()
    before = len(site.lines("order"))
    new_id, name, message = site.service.restart(str(submit_path))
    assert name == f"{report.run}_r1"
    assert "1 middle, 1 gather, 1 finalJob" in message
    restarted = site.wait(new_id)
    assert restarted.state is WmsStates.SUCCEEDED
    assert counts(restarted, "middle") == {"SUCCEEDED": 1}
    assert site.lines("order")[before:] == ["m1", "g", "final"]
    assert site.service.restart(run_id)[2].endswith(f"bps restart --id {new_id}.")
    assert site.service.restart(new_id)[0] is None


@together
def test_registration_waits_for_success_or_does_not(site):
    flag = site.directory / "mended"
    build = three_levels(site, middle=lambda i: f'test {i} -ne 1 -o -e "{flag}" || exit 17;')
    ids = {}
    for when in ("SUCCESS", "ALWAYS"):
        # No Rucio: what matters here is whether the step's command runs.
        section = {
            "enabled": True, "when": when, "datasetTypes": ["image"], "scope": "s", "rse": "R",
            "rseRoot": "/r", "dtnUrl": "file://localhost:0/r",
            "python": f"echo {when} >> '{site.directory}/steps' ;:",
        }  # fmt: skip
        ids[when], _ = site.submit(build, rucio=section, butlerConfig="/repo")
    reports = {when: site.wait(run_id) for when, run_id in ids.items()}
    assert {report.state for report in reports.values()} == {WmsStates.FAILED}
    assert counts(reports["SUCCESS"], "finalJob") == {"SUCCEEDED": 1}
    assert counts(reports["SUCCESS"], "rucioRegister") == {"PRUNED": 1}
    assert counts(reports["ALWAYS"], "rucioRegister") == {"SUCCEEDED": 1}
    assert site.lines("steps") == ["ALWAYS"]

    flag.touch()
    new_id, _, message = site.service.restart(ids["SUCCESS"])
    assert "1 rucioRegister" in message
    restarted = site.wait(new_id)
    assert restarted.state is WmsStates.SUCCEEDED
    assert counts(restarted, "rucioRegister") == {"SUCCEEDED": 1}
    assert site.lines("steps") == ["ALWAYS", "SUCCESS"]


@together
def test_a_cancelled_run_publishes_nothing_and_can_be_restarted(site):
    flag = site.directory / "go"
    middle = lambda i: f'while [ ! -e "{flag}" ]; do sleep 0.2; done;'  # noqa: E731
    run_id, _ = site.submit(three_levels(site, middle=middle))
    end = time.monotonic() + LIMIT
    while len(site.lines("order")) < 3:
        assert time.monotonic() < end
        time.sleep(0.3)
    site.wait(run_id, {WmsStates.RUNNING})
    # They have written their lines, and iDDS has to know that they ended: it has started what follows.
    while counts(site.report(run_id), "middle") != {"RUNNING": 3}:
        assert time.monotonic() < end
        time.sleep(0.3)
    assert site.service.restart(run_id)[2].startswith(f"Run {run_id} is still going")
    assert run_id in site.service.list_submitted_jobs()
    accepted, message = site.service.cancel(run_id)
    assert accepted, message
    report = site.wait(run_id)
    assert report.state is WmsStates.DELETED
    assert site.service.get_status(run_id)[0] is WmsStates.DELETED
    assert counts(report, "make_2_a") == {"SUCCEEDED": 3}
    assert counts(report, "middle") == {"DELETED": 3}
    assert counts(report, "gather") == {"DELETED": 1}
    assert "final" not in site.lines("order")
    assert run_id not in site.service.list_submitted_jobs()

    new_id = site.restart_when_its_jobs_have_ended(run_id)
    flag.touch()
    assert site.wait(new_id).state is WmsStates.SUCCEEDED
    order = site.lines("order")
    assert sorted(order) == ["a0", "a1", "a2", "final", "g", "m0", "m1", "m2"]
    assert order[-2:] == ["g", "final"]


@together
def test_payloads_of_a_cancelled_run_run_on_until_the_heartbeat(site):
    """As with real pilots: the jobs are called deleted at once, and cancel says what PanDA knows.

    Whether iDDS ends the run now or with its last payload depends on what it polls meanwhile.
    """
    panda = site.directory / "panda"
    try:
        site = Site(instance.start(panda, slots=4, pace="quick,heartbeat=600"), site.directory)
        run_id, _ = site.submit(three_levels(site, middle=lambda i: f"touch on{i}; sleep 300;"))
        end = time.monotonic() + LIMIT
        while counts(site.report(run_id), "middle") != {"RUNNING": 3}:
            assert time.monotonic() < end
            time.sleep(0.3)
        client = RunClient(connect(site.service.settings()))
        accepted, message = cancel_run(client, run_id, patience=8)
        assert accepted, message
        assert "3 PanDA jobs of it still run on (task " in message
        while counts(report := site.report(run_id), "middle") != {"DELETED": 3}:
            assert time.monotonic() < end
            time.sleep(0.3)
        assert "3 PanDA jobs still run (task " in str(report.specific_info)
        answers = f"but 3 of its jobs still run|Run {run_id} is still going"
        assert re.search(answers, site.service.restart(run_id)[2])
    finally:
        instance.stop(panda)


@together
def test_of_two_submissions_at_once_one_runs(site):
    areas = [f"{site.directory}/area of {who}/" for who in ("one", "other")]
    build, name = three_levels(site, middle=lambda i: ""), f"u_ann_{site.directory.name}_twin"
    prepared = [site.prepare(build, name, fileDistributionEndPoint=area) for area in areas]
    outcomes = []

    def submit(service, workflow):
        try:
            service.submit(workflow)
            outcomes.append(workflow.run_id)
        except RefusedError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=submit, args=pair) for pair in prepared]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (run_id,) = [outcome for outcome in outcomes if outcome.isdecimal()]
    (refusal,) = [outcome for outcome in outcomes if not outcome.isdecimal()]
    assert "exists already" in refusal or "submitted twice at the same moment" in refusal
    assert site.wait(run_id).state is WmsStates.SUCCEEDED
    assert site.lines("order")[-2:] == ["g", "final"]


@together
def test_cancelled_right_after_submission(site):
    run_id, _ = site.submit(three_levels(site, middle=lambda i: "sleep 60;"))
    accepted, message = site.service.cancel(run_id)
    assert accepted, message
    assert site.wait(run_id).state is WmsStates.DELETED
    assert "final" not in site.lines("order")


@together
def test_two_users_see_and_cancel_their_own(site):
    site, bob = (Site(site.endpoint, site.directory, user=user) for user in ("cora", "bob"))
    slow = three_levels(site, middle=lambda i: "sleep 60;")
    cora_id, _ = site.submit(slow)
    bob_id, _ = bob.submit(slow)
    site.wait(cora_id, {WmsStates.RUNNING})
    assert site.service.list_submitted_jobs() == [cora_id]
    assert bob.service.list_submitted_jobs() == [bob_id]
    listed = {report.wms_id for report in bob.service.report()[0]}
    assert bob_id in listed
    assert cora_id not in listed
    everybody = {report.wms_id: report for report in bob.service.report(is_global=True)[0]}
    assert everybody[cora_id].operator == "cora"
    assert everybody[cora_id].payload == "pay"
    assert {r.wms_id for r in bob.service.report(user="cora")[0]} >= {cora_id}
    accepted, message = bob.service.cancel(cora_id)
    assert not accepted
    assert "permission" in message
    assert site.service.get_status(cora_id)[0] is not WmsStates.DELETED
    for place, run_id in ((site, cora_id), (bob, bob_id)):
        assert place.service.cancel(run_id)[0]


@together
def test_chunks_of_a_label_are_counted_together(site):
    def build(workflow):
        for i in range(7):
            add(workflow, f"j{i}", "coadd_3", "exit 3" if i == 5 else "true")

    # Longer than iDDS's columns, which PostgreSQL enforces.
    names = {"project": "p" * 60, "campaign": "c" * 120}
    run_id, _ = site.submit(build, maxJobsPerTask=2, **names)
    report = site.wait(run_id)
    assert report.run_summary == "coadd_3:7"
    assert (report.project, report.campaign) == (names["project"], names["campaign"])
    assert counts(report, "coadd_3") == {"SUCCEEDED": 6, "FAILED": 1}
    assert report.exit_code_summary["coadd_3"] == [3]


@together
def test_attempts_and_retry_unless_exit(site):
    log = f'"{site.directory}/order"'

    def build(workflow):
        retries = {"number_of_retries": 3, "retry_unless_exit": [1, 2]}
        third = f"echo third<WMS:attemptNum> >> {log}; test <WMS:attemptNum> -eq 2 || exit 9"
        late = f"echo late<WMS:attemptNum> >> {log}; exit $((<WMS:attemptNum> ? 2 : 9))"
        killed = f"echo killed<WMS:attemptNum> >> {log}; test <WMS:attemptNum> -gt 0 || kill -9 $PPID"
        add(workflow, "often", "often", f"echo often >> {log}; exit 9", **retries)
        add(workflow, "once", "once", f"echo once >> {log}; exit 2", **retries)
        for name, command in {"third": third, "late": late, "killed": killed}.items():
            add(workflow, name, name, command, **retries)

    run_id, _ = site.submit(build)
    report = site.wait(run_id)
    ran = ["killed0", "killed1", "late0", "late1", *["often"] * 4, "once", "third0", "third1", "third2"]
    assert sorted(site.lines("order")) == ran
    codes = {"often": [9], "once": [2], "third": [], "late": [2], "killed": []}
    assert report.exit_code_summary == codes


@together
def test_exit_codes_that_the_pilot_translates_are_the_payloads(site):
    def build(workflow):
        for code in (1, 2, 3, 251):
            add(workflow, f"exits{code}", "exits", f"exit {code}")

    run_id, _ = site.submit(build)
    report = site.wait(run_id)
    assert report.exit_code_summary == {"exits": [1, 2, 3, 251]}
    text = str(report.specific_info)
    assert "payload 2 (PanDA shows it as pilot 1378)" in text
    assert "payload 3 (PanDA shows it as pilot 1368)" in text
    assert "timed out" not in text
    assert "not the payload's" not in text


@together
def test_a_task_that_cannot_be_handed_to_panda_is_named_and_restarted(site):
    def build(workflow):
        add(workflow, "one", "lab+el", "true")
        add(workflow, "two", "other", "true")
        final(workflow, "true")

    mend = site.faults.add(action="refuse", target="task", match="_lab_el_")
    run_id, _ = site.submit(build)
    report = site.wait(run_id)
    assert report.state is WmsStates.FAILED
    assert counts(report, "lab+el") == {"FAILED": 1}
    assert counts(report, "other") == counts(report, "finalJob") == {"SUCCEEDED": 1}
    text = str(report.specific_info)
    assert "iDDS could not hand task" in text
    assert f"(lab+el, 1 job) to PanDA: it never ran; bps restart --id {run_id} runs it." in text
    # Whoever has no submit directory reads the label from the request.
    other = Site(site.endpoint, site.directory, user="bob")
    assert counts(other.report(run_id), "lab+el") == {"FAILED": 1}
    mend()
    new_id, _, message = site.service.restart(run_id)
    assert new_id is not None, message
    assert site.wait(new_id).state is WmsStates.SUCCEEDED


@together
def test_of_a_task_that_is_submitted_twice_one_counts(site):
    site.faults.add(action="duplicate", target="task", match=r"_doubled_\d+_middle_", times=1)
    run_id, _ = site.submit(three_levels(site, middle=lambda i: ""), name="u_ann_doubled")
    report = site.wait(run_id)
    assert report.state is WmsStates.SUCCEEDED
    assert counts(report, "middle") == {"SUCCEEDED": 3}
    assert "more than once: PanDA task" in str(report.specific_info)


@together
def test_a_job_that_no_queue_takes_is_told_with_brokerages_words(site):
    site.faults.add(action="hold", target="task", match="_only_")
    run_id, _ = site.submit(lambda workflow: add(workflow, "one", "only", "true"))
    report = site.wait(run_id, (WmsStates.RUNNING,), words="No queue has taken 1 job of only")
    assert "no candidates. brokerage failed" in str(report.specific_info)
    assert "lower what the label asks for" in str(report.specific_info)
    accepted, message = site.service.cancel(run_id)
    assert accepted, message
    assert site.wait(run_id).state is WmsStates.DELETED


def test_running_is_one_number_everywhere(site, panda):
    def build(workflow):
        for number in range(SLOTS + 5):
            add(workflow, f"wait{number}", "wait", f'until test -e "{site.directory}/go"; do sleep 0.1; done')

    run_id, _ = site.submit(build)
    client = RunClient(connect(site.service.settings()))
    end = time.monotonic() + LIMIT
    while counts(site.report(run_id), "wait") != {"RUNNING": SLOTS, "PENDING": 5}:
        assert time.monotonic() < end, counts(site.report(run_id), "wait")
        time.sleep(0.3)
    assert client.status(run_id).tally.total[WmsStates.RUNNING] == SLOTS
    (run,) = [run for run in instance.status(panda)["runs"] if run["run"] == int(run_id)]
    assert run["running"] == SLOTS
    (site.directory / "go").touch()
    assert site.wait(run_id).state is WmsStates.SUCCEEDED


@together
def test_the_same_run_is_not_submitted_twice(site):
    run_id, _ = site.submit(three_levels(site, middle=lambda i: ""))
    site.count -= 1
    with pytest.raises(Exception, match=f"exists already: request {run_id}"):
        site.submit(three_levels(site, middle=lambda i: ""))


def test_ping_and_unknown_ids(site):
    code, message = site.service.ping(None)
    assert code == 0, message
    reports, message = site.service.report("987654")
    assert reports == []
    assert "no run 987654" in message
    assert site.service.get_status("987654")[0] is WmsStates.UNKNOWN
    assert site.service.restart("987654")[:2] == (None, None)
    assert site.service.list_submitted_jobs("987654") == []
    assert "No run is named 'nobody'" in site.service.report("nobody")[1]


def test_an_unknown_filter_lists_the_known_ones(site):
    reports, message = site.service.report(pass_thru="colour=red")
    assert reports == []
    assert "colour" in message
    assert "operator" in message
