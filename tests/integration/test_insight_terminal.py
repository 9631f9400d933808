"""``panda_bps watch`` on a terminal, where the display is renewed."""

import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
from lsst.ctrl.bps.wms_service import WmsStates
from panda_servers.recorded_panda import REQUEST_ID, RUN, RecordedPanda, RecordedRun

pytestmark = pytest.mark.slow

LIMIT = 120.0


class GoingRun(RecordedRun):
    """A run that is half done at the first look; before it, the command asks
    whether there is such a run.
    """

    looks = 0

    def detail(self):
        for row in super().detail():
            going = {
                "output_processed_files": self.jobs // 2,
                "output_failed_files": 0,
                "transform_status": 2,
            }
            yield row | (going if self.looks < 2 else {})

    def command(self, name, keywords):
        rows = super().command(name, keywords)
        self.looks += name == "get_requests"
        return rows


class ForgetfulPanda(RecordedPanda):
    """Makes each reply anew."""

    def reply(self, path, body):
        self._texts.clear()
        return super().reply(path, body)


def read_terminal(command, env):
    """Run a command on a terminal; give what it wrote and its exit code."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text, end = b"", time.monotonic() + LIMIT
    try:
        while time.monotonic() < end:
            if not select.select([ours], [], [], 1.0)[0]:
                continue
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux says so when the other side is closed.
                break
            if not piece:
                break
            text += piece
        return text.decode(), process.wait(timeout=LIMIT)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_the_display_is_renewed_until_the_run_has_ended(tmp_path):
    with ForgetfulPanda(GoingRun(tasks=2, jobs=40)) as server:
        env = {"PANDA_URL_SSL": server.url, "HOME": str(tmp_path), "USER": "ann", "PATH": os.environ["PATH"]}
        env |= {"COLUMNS": "120", "LINES": "30"}
        command = [sys.executable, "-m", "lsst.ctrl.bps.panda.cli.panda_bps", "watch", str(REQUEST_ID)]
        text, code = read_terminal([*command, "--interval", "5"], env)
    assert code == WmsStates.FAILED.value, text
    first, *others = re.split(r"\x1b\[\d+A\x1b\[J", text)
    assert len(others) == 1
    assert f"Run {REQUEST_ID}  {RUN}" in first
    assert re.search(r"label_1 +#{12}\S* +40 +20 ", first), first
    assert "FAILED (over)" in others[0]
    assert re.search(r"total +#{22}x{2} +80 +72 .* 8\s", others[0]), others[0]
    assert "jobs/min" in others[0]
    assert "payload 17 in label_1, label_2" in others[0]
    # The cursor goes up as many lines as were written, so nothing of the first display is left.
    (up,) = re.findall(r"\x1b\[(\d+)A", text)
    assert int(up) == first.count("\n")
