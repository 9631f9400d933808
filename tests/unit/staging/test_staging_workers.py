"""Work in parallel, with an allowance of time and bounded retries."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from lsst.ctrl.bps.panda.staging.transfers import Retries, VerificationError, run_all


def test_every_item_has_one_outcome():
    def work(item):
        if item % 3 == 0:
            raise OSError(f"bad {item}")
        return item * 2

    outcomes = list(run_all(range(50), work, workers=7, allowance=lambda _: 60))
    assert sorted(outcome.item for outcome in outcomes) == list(range(50))
    assert {outcome.item for outcome in outcomes if outcome.error} == set(range(0, 50, 3))
    assert all(outcome.result == outcome.item * 2 for outcome in outcomes if not outcome.error)


def test_no_more_than_the_workers_are_at_it():
    lock, now, most = threading.Lock(), 0, 0
    turn = threading.Barrier(4)

    def work(_):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        turn.wait(60)
        with lock:
            now -= 1

    list(run_all(range(40), work, workers=4, allowance=lambda _: 60))
    assert most == 4


def test_item_that_hangs_is_given_up_and_the_rest_is_done():
    release = threading.Event()

    def work(item):
        if item in (1, 4):
            release.wait(60)
        return item

    outcomes = {
        outcome.item: outcome
        for outcome in run_all(
            range(8), work, workers=2, allowance=lambda item: 0.2 if item in (1, 4) else 60
        )
    }
    release.set()
    assert {item for item, outcome in outcomes.items() if isinstance(outcome.error, TimeoutError)} == {1, 4}
    assert {item for item, outcome in outcomes.items() if outcome.error is None} == {0, 2, 3, 5, 6, 7}


def test_nothing_new_begins_when_nobody_asks_any_more():
    begun = []
    gate = threading.Semaphore(1)

    def work(item):
        begun.append(item)
        gate.acquire(timeout=60)
        return item

    outcomes = run_all(range(100), work, workers=1, allowance=lambda _: 60)
    assert next(outcomes).item == 0
    outcomes.close()
    gate.release(100)
    assert len(begun) <= 3


@pytest.mark.slow
def test_hanging_thread_does_not_keep_the_program_alive():
    program = """if True:
        import time
        from lsst.ctrl.bps.panda.staging.transfers import run_all
        (outcome,) = run_all([1], lambda _: time.sleep(600), workers=1, allowance=lambda _: 0.1)
        assert isinstance(outcome.error, TimeoutError)
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def flaky(failures, error):
    calls = []

    def act():
        calls.append(1)
        if len(calls) <= failures:
            raise error
        return "done"

    return act, calls


def test_retries_wait_longer_each_time_and_end():
    pauses: list[float] = []
    act, calls = flaky(99, ConnectionResetError("reset"))
    with pytest.raises(ConnectionResetError):
        Retries(4, pauses.append).run(act, what="it")
    assert len(calls) == 5
    for pause, least in zip(pauses, (0.5, 1, 2, 4), strict=True):
        assert least <= pause <= least * 1.25


def test_pause_is_bounded():
    pauses: list[float] = []
    act, _ = flaky(20, ConnectionResetError("reset"))
    assert Retries(20, pauses.append).run(act, what="it") == "done"
    assert max(pauses) <= 30 * 1.25


@pytest.mark.parametrize(
    ("error", "calls_made"),
    [(VerificationError("cut"), 2), (PermissionError("no"), 1)],
    ids=["passing", "lasting"],
)
def test_only_what_may_pass_is_tried_again(error, calls_made):
    act, calls = flaky(1, error)
    with suppress(PermissionError):
        Retries(3, lambda _: None).run(act, what="it")
    assert len(calls) == calls_made


def test_no_retries_is_one_attempt():
    act, calls = flaky(1, ConnectionResetError("reset"))
    with pytest.raises(ConnectionResetError):
        Retries(0, lambda _: None).run(act, what="it")
    assert len(calls) == 1
