"""Cancel: three outcomes told apart, lost commands sent again."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from lsst.ctrl.bps.panda.edgenode.cmd_line_decoder import CANCELLED
from lsst.ctrl.bps.panda.errors import RefusedError
from lsst.ctrl.bps.panda.runs.cancel import SETTLED_AFTER, cancel_run
from lsst.ctrl.bps.panda.runs.client import FoundRun
from lsst.ctrl.bps.panda.runs.record import RunRecord
from lsst.ctrl.bps.panda.status.evidence import PlanSummary, RunEvidence
from lsst.ctrl.bps.panda.status.job_errors import JobError
from lsst.ctrl.bps.panda.status.records import (
    ContentRecord,
    FileCounts,
    JobRecord,
    RequestRecord,
    TransformRecord,
)

PLAN = PlanSummary(
    labels=(("isr", 4), ("finalJob", 1)),
    tasks=(("r_01_isr_01", "isr", 4), ("r_02_finalJob_01", "finalJob", 1)),
    final_labels=("finalJob",),
)

LONG_PLAN = replace(
    PLAN,
    labels=(*PLAN.labels, ("rucioRegister", 1)),
    tasks=(*PLAN.tasks, ("r_03_rucioRegister_01", "rucioRegister", 1)),
    final_labels=("finalJob", "rucioRegister"),
)


class Server:
    """A server that loses so many commands, and takes its time after one.

    It stands for iDDS, whose loss of commands cannot be had at will.
    """

    def __init__(self, *, lose=0, delay=2.0, refuse=False, ended=False, running=2):
        self.now = 0.0
        self.commands = []
        self.accepted_at = None
        self._lose, self._delay, self._refuse = lose, delay, refuse
        self._ended, self._running = ended, running
        self.failed, self.contents = 0, {}
        self.outliving, self.looks = 0.0, []

    # time
    def sleep(self, seconds):
        self.now += seconds

    def clock(self):
        return self.now

    # relay
    def abort(self, request_id):
        if self._refuse:
            raise RefusedError("User ann has no permission")
        self.commands.append(self.now)
        if self._lose:
            self._lose -= 1
        elif self.accepted_at is None:
            self.accepted_at = self.now + self._delay
        return "Command registered successfully"

    # client
    @property
    def connection(self):
        return SimpleNamespace(relay=self)

    def find(self, run, *, unique):
        assert unique, "a name that several runs have is not cancelled"
        return FoundRun(5, getattr(self, "record", None))

    def summary(self, run):
        aborted = self.accepted_at is not None and self.now >= self.accepted_at
        quiet = aborted and self.now >= self.accepted_at + 3
        over = self._ended
        request = RequestRecord(
            request_id=5,
            name="r",
            status="Finished" if over else "Transforming",
            substatus="ToCancel" if aborted else "New",
        )
        running = 0 if over or quiet else self._running
        failed = self.failed if quiet else 0
        counts = FileCounts(total=4, processed=4 if over else 2, activated=running, failed=failed)
        status = "Finished" if over else "SubFinished" if quiet else "Transforming"
        transforms = [TransformRecord(5, 1, "r_01_isr_01", status, "Running", 11, counts)]
        if over:
            one = FileCounts(total=1, processed=1)
            transforms.append(TransformRecord(5, 2, "r_02_finalJob_01", "Finished", "", 12, one))
        return RunEvidence(request, tuple(transforms), plan=PLAN)

    def distinguish_killed(self, evidence):
        return replace(evidence, contents=self.contents)

    def with_panda(self, evidence):
        if self.outliving is None:
            return replace(evidence, problems=("PanDA could not be asked",))
        self.looks.append(self.now)
        count = self._running if self.now < self.accepted_at + self.outliving else 0
        status = lambda number: "running" if number < count else "closed"  # noqa: E731
        return replace(evidence, jobs=tuple(JobRecord(number, 11, status(number)) for number in range(2)))


def cancel(server, **kwargs):
    return cancel_run(server, "5", sleep=server.sleep, clock=server.clock, **kwargs)


def test_a_run_is_cancelled_when_the_server_shows_it():
    server = Server()
    accepted, message = cancel(server)
    assert accepted
    assert message.startswith("Run 5 is cancelled: ")
    assert "2 SUCCEEDED" in message
    assert server.commands == [0.0]
    assert server.now == 5.0 + SETTLED_AFTER, "it is not waited for longer than until the jobs are killed"


class ForgetfulServer(Server):
    """A server that cancels a task while it starts it, and goes on starting it unless it is told again."""

    def summary(self, run):
        evidence = super().summary(run)
        if len(self.commands) > 1 or not evidence.aborted:
            return evidence
        (transform,) = evidence.transforms
        status = "Cancelling" if self.now < self.accepted_at + 2 else "Transforming"
        outputs = FileCounts(total=4, processed=2, activated=2)
        return replace(evidence, transforms=(replace(transform, status=status, outputs=outputs),))


def test_a_task_that_is_started_after_all_is_cancelled_again():
    server = ForgetfulServer()
    accepted, message = cancel(server)
    assert accepted
    assert "RUNNING" not in message
    assert server.commands == [0.0, 10.0]


def test_killed_jobs_are_deleted_though_the_server_counts_them_as_failed():
    server = Server()
    server.failed = 2
    killed = ContentRecord(1, "a", "FinalFailed", job_status="failed", errors=(JobError("pilot", 1144),))
    own = replace(killed, name="b", errors=(JobError("payload", 1), JobError("pilot", 1305)))
    server.contents = {1: (killed, own)}
    _, message = cancel(server)
    assert "1 DELETED, 2 SUCCEEDED, 1 FAILED." in message


@pytest.mark.parametrize("lose", [1, 2, 4])
def test_a_lost_command_is_sent_again(lose):
    server = Server(lose=lose)
    accepted, message = cancel(server)
    assert accepted, message
    assert len(server.commands) == lose + 1


def test_a_command_without_effect_is_not_called_a_success():
    server = Server(lose=10**6)
    accepted, message = cancel(server, patience=45)
    assert not accepted
    assert "does not show it after 45 s" in message
    assert "bps status --id 5" in message
    assert 45 <= server.now < 60
    assert 2 <= len(server.commands) <= 6


def test_a_refusal_is_a_failure_with_the_servers_words():
    accepted, message = cancel(Server(refuse=True))
    assert not accepted
    assert "User ann has no permission" in message


def test_an_ended_run_is_left_alone():
    server = Server(ended=True)
    accepted, message = cancel(server)
    assert not accepted
    assert "has ended already (SUCCEEDED)" in message
    assert server.commands == []


def test_jobs_that_still_run_are_named():
    server = Server(delay=1.0, running=2)
    server.outliving = 1800.0
    accepted, message = cancel(server)
    assert accepted
    assert "2 PanDA jobs of it still run on (task 11)" in message
    assert 60 <= server.now < 62
    assert len(server.looks) < 10, "PanDA is asked more and more rarely"
    assert "for ever" not in message, "no task of this run waits for its final job"
    assert "next heartbeat" in message


@pytest.mark.parametrize("refuse", [False, True])
def test_the_final_job_is_told_unless_the_server_refuses(tmp_path, refuse):
    server = Server(refuse=refuse)
    area = tmp_path / "area"
    area.mkdir()
    server.record = RunRecord(run={"name": "r", "submit_path": "", "staging_area": f"{area}/"})
    accepted, message = cancel(server)
    assert accepted is not refuse
    assert (area / CANCELLED).exists() is not refuse
    if not refuse:
        assert "publishes nothing" in message


def test_a_final_job_that_cannot_be_told_is_said_to_publish():
    accepted, message = cancel(Server())
    assert accepted
    assert "publishes what is there" in message


class FinalServer(Server):
    """A server as iDDS is to a run whose last task wants jobs of the run: its
    final job ends, and the last task waits for a second command.
    """

    def summary(self, run):
        evidence = super().summary(run)
        if self.accepted_at is None or self.now < self.accepted_at + 3:
            return replace(evidence, plan=LONG_PLAN)
        again = [sent for sent in self.commands if sent >= self.accepted_at + 8]
        one = FileCounts(total=1, processed=1)
        finals = [
            TransformRecord(5, 2, "r_02_finalJob_01", "Failed", "", 12, replace(one, failed=1, processed=0))
        ]
        if self.now < self.accepted_at + 8:
            finals = []
        else:
            status = "Failed" if again else "Transforming"
            finals.append(TransformRecord(5, 3, "r_03_rucioRegister_01", status, "", 13, FileCounts(total=1)))
        request = replace(evidence.request, status="SubFinished") if again else evidence.request
        return replace(evidence, request=request, transforms=(*evidence.transforms, *finals), plan=LONG_PLAN)


def test_final_tasks_that_wait_for_killed_jobs_are_ended_too():
    server = FinalServer()
    accepted, message = cancel(server)
    assert accepted
    assert server.summary("5").ended
    assert message.startswith("Run 5 is cancelled: ")
    assert "UNREADY" not in message
    assert len(server.commands) == 2


def test_payloads_that_end_at_a_heartbeat_are_waited_for():
    server = Server()
    server.outliving = 20.0
    accepted, message = cancel(server)
    assert accepted
    assert "No other job of it runs." in message
    assert 22 <= server.now < 40


def test_a_panda_that_cannot_be_asked_is_said():
    server = Server()
    server.outliving = None
    _, message = cancel(server)
    assert "Whether jobs of it still run is not known. " in message
    assert message.endswith("PanDA could not be asked")


def test_that_final_tasks_may_hang_is_said_where_it_is_not_known():
    server = FinalServer()
    accepted, message = cancel(server, patience=4)
    assert accepted
    assert "for ever; if bps report shows so, end them: bps cancel --id 5" in message


def test_the_doubles_have_what_the_code_asks_for():
    # The double must not drift from the real classes.
    from lsst.ctrl.bps.panda.rest.relay import Relay
    from lsst.ctrl.bps.panda.runs.client import RunClient

    assert hasattr(Relay, "abort")
    assert [getattr(RunClient, name) for name in ("find", "summary", "distinguish_killed", "with_panda")]
