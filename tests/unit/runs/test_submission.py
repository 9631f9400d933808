"""Sending a run: one of it or none, and never without saying."""

import pytest

from lsst.ctrl.bps.panda.errors import (
    ConnectionFailedError,
    RefusedError,
    ServerError,
    SubmissionUncertainError,
)
from lsst.ctrl.bps.panda.idds.workflow import Submission
from lsst.ctrl.bps.panda.runs.submit import send


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class RelayDouble:
    """A relay that behaves as it is told: PanDA cannot be had in a unit test."""

    endpoint = "http://relay"

    def __init__(self, *, submit=None, created_after=None, clock=None, existing=None, lookup_fails=0):
        self.sent = []
        self.lookups = 0
        self._submit = submit
        self._created_after = created_after
        self._clock = clock
        self._existing = existing
        self._lookup_fails = lookup_fails

    def get_request_ids_by_name(self, name):
        self.lookups += 1
        if self.lookups > 1 and self._lookup_fails:
            self._lookup_fails -= 1
            raise ConnectionFailedError("still down")
        if self._existing:
            return {name: self._existing}
        if self._created_after is not None and self.sent and self._clock() >= self._created_after:
            return {name: 42}
        return {}

    def submit_step(self, arguments, keywords):
        self.sent.append(arguments)

    def submit(self, arguments, keywords, *, build):
        self.sent.append(arguments)
        if isinstance(self._submit, Exception):
            raise self._submit
        return self._submit


def lost():
    error = ConnectionFailedError("the connection broke after sending")
    error.maybe_sent = True
    return error


SUBMISSION = Submission(("step1", "step2"), "main", "{}")


def test_steps_go_before_the_request():
    relay = RelayDouble(submit=7)
    assert send(relay, SUBMISSION, "run") == 7
    assert relay.sent == ["step1", "step2", "main"]


def test_a_step_that_cannot_be_sent_is_told_with_what_it_means():
    class Relay(RelayDouble):
        def submit_step(self, arguments, keywords):
            if self.sent:
                raise ServerError("it is too large.", endpoint="http://relay", status=413, maybe_sent=True)
            super().submit_step(arguments, keywords)

    relay = Relay(submit=7)
    with pytest.raises(ServerError, match="Step 2 of 2 of run 'run'.*too large.*nothing runs") as caught:
        send(relay, SUBMISSION, "run")
    assert caught.value.status == 413
    assert not caught.value.maybe_sent
    assert relay.sent == ["step1"]


def test_a_name_that_exists_is_refused_before_anything_is_sent():
    relay = RelayDouble(submit=7, existing=3)
    with pytest.raises(RefusedError, match="exists already: request 3"):
        send(relay, SUBMISSION, "run")
    assert relay.sent == []


def test_an_error_that_had_no_effect_is_passed_on():
    error = ConnectionFailedError("refused")
    error.maybe_sent = False
    relay = RelayDouble(submit=error)
    with pytest.raises(ConnectionFailedError, match="refused"):
        send(relay, SUBMISSION, "run")
    assert relay.lookups == 1


@pytest.mark.parametrize("after", [0, 5, 100])
@pytest.mark.parametrize("lookup_fails", [0, 3])
def test_a_lost_answer_is_settled_by_name_and_nothing_is_sent_again(after, lookup_fails):
    clock = Clock()
    relay = RelayDouble(submit=lost(), created_after=after, clock=clock, lookup_fails=lookup_fails)
    assert send(relay, SUBMISSION, "run", sleep=clock.sleep, clock=clock) == 42
    assert relay.sent.count("main") == 1


def test_a_run_that_does_not_appear_is_said_to_be_uncertain():
    clock = Clock()
    relay = RelayDouble(submit=lost(), clock=clock)
    with pytest.raises(SubmissionUncertainError, match="bps report --id run") as caught:
        send(relay, SUBMISSION, "run", sleep=clock.sleep, clock=clock, patience=60)
    assert relay.sent.count("main") == 1
    assert 60 <= clock.now < 80
    assert isinstance(caught.value.__cause__, ConnectionFailedError)
