"""Watching a run, with replies of real servers one after the other."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from lsst.ctrl.bps.wms_service import WmsStates

from lsst.ctrl.bps.panda.errors import RunNotFoundError, TransportError
from lsst.ctrl.bps.panda.insight.documents import make_document
from lsst.ctrl.bps.panda.insight.progress import watch
from lsst.ctrl.bps.panda.status.evidence import RunEvidence
from lsst.ctrl.bps.panda.status.replies import parse_contents, parse_requests, parse_transforms

CAPTURES = Path(__file__).resolve().parents[2] / "data" / "captures"
START = datetime(2026, 11, 21, tzinfo=UTC)


def load(name):
    return json.loads((CAPTURES / f"{name}.json").read_text())[1][1]


def evidence(capture):
    rows = load(f"{capture}_get_requests_detail")
    return RunEvidence(
        parse_requests(rows)[0],
        parse_transforms(rows),
        contents=parse_contents(load(f"{capture}_get_contents_output_ext_all")),
        asked_at=START,
    )


class Clock:
    """A time that passes only when somebody sleeps."""

    def __init__(self):
        self.slept = []

    def sleep(self, seconds):
        self.slept.append(seconds)

    def __call__(self):
        return sum(self.slept)

    def now(self):
        return START + timedelta(seconds=self())


def watch_all(answers, *, closer=None, interval=60.0):
    clock = Clock()
    answers = iter(answers)

    def look():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    found = list(watch(look, closer, interval=interval, sleep=clock.sleep, clock=clock, now=clock.now))
    return found, clock


def test_it_ends_with_the_run():
    running, done = evidence("embedded/running"), evidence("embedded/done")
    found, clock = watch_all([running, running, done])
    assert [progress.ended for progress in found] == [False, False, True]
    assert found[-1].state is WmsStates.SUCCEEDED
    assert clock.slept == [60, 60]
    assert found[-1].rate == pytest.approx((found[-1].done - found[0].done) / 2)
    assert found[-1].end is None


def test_a_terminal_request_is_not_the_end():
    # Stored early by the server: a transform still goes on.
    done = evidence("embedded/done")
    first, *others = done.transforms
    going = dataclasses.replace(first, status="Transforming")
    early = dataclasses.replace(done, transforms=(going, *others))
    found, _ = watch_all([early, done])
    assert [progress.ended for progress in found] == [False, True]


def test_an_estimate_of_the_end():
    running = evidence("embedded/running")
    (first, *others) = running.transforms
    less = dataclasses.replace(first, outputs=dataclasses.replace(first.outputs, processed=0))
    before = dataclasses.replace(running, transforms=(less, *others))
    found, _ = watch_all([before, running, evidence("embedded/done")])
    one = found[1]
    assert one.rate > 0
    left = one.jobs - one.done
    assert one.end == one.moment + timedelta(minutes=left / one.rate)


def test_errors_are_asked_for_when_their_number_changes():
    failed = evidence("embedded/fail")
    going = dataclasses.replace(
        failed,
        request=dataclasses.replace(failed.request, status="Transforming"),
        contents={},
    )
    asked = []

    def closer():
        asked.append(1)
        return failed

    found, _ = watch_all([evidence("embedded/running"), going, going, failed], closer=closer)
    assert len(asked) == 1
    assert found[0].errors == ()
    assert all("payload" in progress.errors[0] for progress in found[1:])
    document = make_document(found[-1], request_id=1, name="x")
    assert (document["kind"], document["state"], document["ended"]) == ("watch", "FAILED", True)


def test_a_look_that_fails_is_repeated_more_and_more_slowly():
    trouble = TransportError("the server is down")
    found, clock = watch_all([trouble, trouble, evidence("embedded/done")])
    assert len(found) == 1
    assert clock.slept == [120, 240]
    with pytest.raises(TransportError):
        watch_all([trouble] * 10)
    with pytest.raises(RunNotFoundError):
        watch_all([RunNotFoundError("no such run")])


def test_it_does_not_ask_more_often_than_is_gentle():
    _, clock = watch_all([evidence("embedded/running"), evidence("embedded/done")], interval=0.1)
    assert clock.slept == [5]
