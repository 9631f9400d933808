"""Submit, cancel and retry against a server that may break at any request:
nothing is doubled, and nothing is said that is not so.
"""

import json
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from panda_servers import hostile

from lsst.ctrl.bps.panda.errors import SubmissionUncertainError, TransportError
from lsst.ctrl.bps.panda.idds.workflow import Submission
from lsst.ctrl.bps.panda.rest.credentials import Anonymous
from lsst.ctrl.bps.panda.rest.relay import Relay
from lsst.ctrl.bps.panda.rest.retries import RetryPolicy, Timeouts
from lsst.ctrl.bps.panda.rest.transport import Transport
from lsst.ctrl.bps.panda.runs.submit import send

# The trickle and the silent ones cost real time; one of them is enough.
QUICK = sorted(set(hostile.FAULTS) - {"trickle", "silent before"})
faults = st.lists(st.sampled_from([*QUICK, "ok", "ok"]), max_size=4)


class FaultsAnywhere(RuleBasedStateMachine):
    """A client that submits runs, cancels them and has them retried."""

    def __init__(self):
        super().__init__()
        self.server = hostile.HostileServer()
        self.server.__enter__()
        self.now = 0.0
        transport = Transport(
            Anonymous(),
            timeouts=Timeouts(connect=5.0, silence=0.3, total=2.0),
            retry=RetryPolicy(attempts=3),
            sleep=self.sleep,
        )
        self.relay = Relay(transport, self.server.url)
        self.names = 0

    def teardown(self):
        self.server.__exit__()

    def sleep(self, seconds):
        self.now += seconds

    def prepare(self, broken):
        self.server.forget_faults()
        self.server.inject(*broken)

    @rule(broken=faults)
    def submit(self, broken):
        self.names += 1
        name = f"run_{self.names}"
        submission = Submission(steps=(), request=json.dumps([{"name": name}]), keywords="{}")
        self.prepare(broken)
        try:
            number = send(self.relay, submission, name, patience=60, sleep=self.sleep, clock=lambda: self.now)
        except TransportError as error:
            uncertain = error.maybe_sent or isinstance(error, SubmissionUncertainError)
            assert len(self.server.named(name)) <= (1 if uncertain else 0)
        else:
            assert [run.request_id for run in self.server.named(name)] == [number]

    @precondition(lambda self: self.server.runs)
    @rule(broken=faults, data=st.data(), again=st.booleans())
    def command(self, broken, data, again):
        number = data.draw(st.sampled_from(sorted(self.server.runs)))
        run = self.server.runs[number]
        before = (run.aborts, run.retries)
        self.prepare(broken)
        error = None
        try:
            if again:
                # No command of the plugin; a relayed one that must not be sent twice.
                self.relay.call("retry", None, json.dumps({"request_id": number}))
            else:
                self.relay.abort(number)
        except TransportError as caught:
            error = caught
        aborts, retries = run.aborts - before[0], run.retries - before[1]
        # A retry twice could undo what the first began: it is sent once.
        assert retries <= (1 if again else 0)
        assert not (again and aborts)
        if error is None:
            assert aborts + retries or "command lost" in broken
        elif not error.maybe_sent:
            assert aborts + retries == 0

    @rule(broken=faults)
    def look(self, broken):
        self.prepare(broken)
        with suppress(TransportError):
            found = self.relay.get_request_ids_by_name("run_1")
            assert set(found.values()) == {run.request_id for run in self.server.named("run_1")}


def test_a_refusal_does_not_hide_an_attempt_before_it():
    machine = FaultsAnywhere()
    try:
        machine.submit(broken=[])
        machine.prepare(["cut reply", "idds refuses"])
        with pytest.raises(TransportError) as caught:
            machine.relay.abort(1)
        assert machine.server.runs[1].aborts == 1
        assert caught.value.maybe_sent
        machine.prepare(["idds refuses"])
        with pytest.raises(TransportError) as caught:
            machine.relay.abort(1)
        assert not caught.value.maybe_sent
    finally:
        machine.teardown()


@pytest.mark.slow
def test_faults_anywhere():
    FaultsAnywhere.TestCase.settings = settings(
        max_examples=30, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
    )
    FaultsAnywhere.TestCase("runTest").runTest()
