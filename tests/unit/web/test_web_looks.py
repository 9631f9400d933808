"""When the servers are asked again for what the live pages show."""

import threading
from datetime import UTC, datetime, timedelta

import pytest

from lsst.ctrl.bps.panda.errors import PandaBpsError
from lsst.ctrl.bps.panda.web.looks import Cause, Look

NOW = datetime(2026, 12, 1, tzinfo=UTC)


class World:
    """Something that is asked for: what it is, and how often that was."""

    def __init__(self):
        self.value = "old"
        self.asked = 0
        self.free = threading.Event()
        self.free.set()
        self.now = 0.0

    def clock(self):
        self.now += 1.0
        return self.now

    def fetch(self):
        self.asked += 1
        self.free.wait(30)
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@pytest.fixture
def world():
    return World()


def test_what_is_new_enough_is_not_asked_for_again(world):
    look = Look(world.fetch, 100.0, world.clock)
    assert look.see() == look.see()
    assert world.asked == 1


def test_only_a_change_is_a_new_revision(world):
    look = Look(world.fetch, 0.0, lambda: 0.0)
    first, same = look.see(), look.see()
    assert (first.revision, same.revision, world.asked) == (1, 1, 2)
    assert same.at >= first.at
    world.value = "new"
    assert (look.see().value, look.see().revision) == ("new", 2)


def test_without_a_cause_nothing_is_asked_and_it_is_as_new_as_the_cause(world):
    look = Look(world.fetch, 0.0, lambda: 0.0)
    look.see(Cause("a", NOW))
    later = look.see(Cause("a", NOW + timedelta(seconds=5)))
    assert (world.asked, later.at) == (1, NOW + timedelta(seconds=5))
    look.see(Cause("b", NOW))
    assert world.asked == 2


def test_an_error_stands_until_it_is_asked_again(world):
    look = Look(world.fetch, 100.0, world.clock)
    world.value = PandaBpsError("away")
    for _ in range(2):
        with pytest.raises(PandaBpsError, match="away"):
            look.see()
    world.value = "back"
    # Nothing was ever seen: so it is asked at once.
    assert look.see().value == "back"


def test_a_glance_does_not_wait(world):
    look = Look(world.fetch, 0.0, lambda: 0.0)
    world.free.clear()
    assert look.glance(Cause(1, NOW)) is None
    # Only one asks at a time.
    assert look.glance(Cause(2, NOW)) is None
    assert world.asked == 1
    world.free.set()
    assert look.see(Cause(1, NOW)).value == "old"
    assert world.asked == 1
    assert look.glance(Cause(1, NOW)).at == NOW
