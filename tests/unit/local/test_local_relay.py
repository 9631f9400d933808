"""The relay of the embedded PanDA, with commands that get lost or come twice."""

import json

import pytest

from lsst.ctrl.bps.panda.local.faults import Faults
from lsst.ctrl.bps.panda.local.idds_host import IddsRelay
from lsst.ctrl.bps.panda.local.identity import Identity
from lsst.ctrl.bps.panda.local.settings import parse_faults

_REGISTERED = [[0, {"status": 0, "message": "Command registered successfully"}]]


class _Client:
    """A client of iDDS that notes what it is asked for."""

    def __init__(self):
        self.asked = []

    def __getattr__(self, name):
        if name not in ("abort", "retry", "close", "abort_task", "ping"):
            raise AttributeError(name)

        def call(**kwargs):
            self.asked.append((name, kwargs))
            return f"{name} {len(self.asked)}"

        return call


class _Host:
    def __init__(self):
        self.made = _Client()

    def client(self, user, *, manager):
        return self.made


def _ask(relay, command):
    body = {"command_name": command, "kwargs": json.dumps({"request_id": 7}), "manager": True}
    return relay.call(body, Identity("me", production=False))


@pytest.mark.parametrize("command", ["abort", "retry", "close", "abort_task"])
def test_command_that_gets_lost_or_comes_twice(command):
    host, faults = _Host(), Faults()
    relay = IddsRelay(host, faults)
    faults.set(parse_faults([{"action": "drop", "target": "command", "match": f"^{command}$", "times": 1}]))
    # Whoever sent it cannot tell that it is lost.
    assert _ask(relay, command) == (True, _REGISTERED)
    assert host.made.asked == []
    assert _ask(relay, command) == (True, f"{command} 1")
    faults.set(parse_faults([{"action": "duplicate", "target": "command", "match": f"^{command}$"}]))
    assert _ask(relay, command) == (True, f"{command} 3")
    assert host.made.asked == [(command, {"request_id": 7})] * 3


def test_what_is_no_command_never_gets_lost():
    host = _Host()
    relay = IddsRelay(host, Faults(parse_faults([{"action": "drop", "target": "command"}])))
    assert _ask(relay, "ping") == (True, "ping 1")
    assert _ask(relay, "retry") == (True, _REGISTERED)
    assert _ask(relay, "no_such") == (False, "no_such is not a command of iDDS _Client")
