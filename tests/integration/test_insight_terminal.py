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

    def job_rows(self, task_id, unsuccessful_only):
        """Return none before the run is over: PanDA's word would count."""
        return super().job_rows(task_id, unsuccessful_only) if self.looks > 2 else ()

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


RENEW = re.compile(r"\r\x1b\[2K((?:\x1b\[1A\x1b\[2K)*)")
"""The lines from the last one up are erased, one by one."""

COLOUR = re.compile(r"\x1b\[[\d;]*m")


@pytest.mark.parametrize("colours", [True, False])
def test_the_display_is_renewed_until_the_run_has_ended(tmp_path, colours):
    with ForgetfulPanda(GoingRun(tasks=2, jobs=40)) as server:
        env = {"PANDA_URL_SSL": server.url, "HOME": str(tmp_path), "USER": "ann", "PATH": os.environ["PATH"]}
        env |= {"COLUMNS": "120", "LINES": "30"} | ({} if colours else {"NO_COLOR": "1"})
        command = [sys.executable, "-m", "lsst.ctrl.bps.panda.cli.panda_bps", "watch", str(REQUEST_ID)]
        text, code = read_terminal([*command, "--interval", "5"], env)
    assert code == WmsStates.FAILED.value, text
    assert bool(COLOUR.findall(text)) == colours
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "the cursor is there again"
    text = re.sub(r"\x1b\[\?25[hl]", "", COLOUR.sub("", text))
    text, _, why = text.rpartition("Why it failed: ")
    assert why.strip() == f"panda_bps errors {REQUEST_ID}"
    first, *others = RENEW.split(text)
    displays = [first, *others[1::2]]
    # At its end the last display is written once more.
    *going, last, again = displays
    assert last.strip() == again.strip()
    assert f"Run {REQUEST_ID}  {RUN}" in first
    assert re.search(r"label_1 +#{15,}\S* +40 +20 ", first), first
    # The display is renewed each second.
    times = [int(seconds) for shown in going for seconds in re.findall(r"next query in (\d)", shown)]
    assert times == sorted(times, reverse=True)
    assert len({*times}) >= 3, times
    assert "FAILED (over)" in last
    assert re.search(r"total +#{22,}x{2,} +80 +72 .* 8\s", last), last
    assert "jobs/min" in last
    assert "First failure: label_1 job:0, PanDA job 1000001: payload 17" in last
    assert "payload 17 in label_1, label_2" in last
    # The cursor goes up as many lines as were written, so nothing of a display is left.
    assert [ups.count("\x1b[1A") for ups in others[::2]] == [shown.count("\n") for shown in displays[:-1]]
    assert text.endswith("\n")


def test_a_table_on_a_terminal_is_in_colour_and_into_a_pipe_it_is_not(tmp_path):
    with RecordedPanda(RecordedRun(tasks=1, jobs=10)) as server:
        env = {"PANDA_URL_SSL": server.url, "HOME": str(tmp_path), "USER": "ann", "PATH": os.environ["PATH"]}
        env |= {"COLUMNS": "80", "LINES": "24", "FORCE_COLOR": "1"}
        command = [
            sys.executable,
            "-m",
            "lsst.ctrl.bps.panda.cli.panda_bps",
            "show",
            str(REQUEST_ID),
            "--jobs",
        ]
        text, code = read_terminal(command, env)
        plain, _ = read_terminal(command, env | {"TERM": "dumb"})
        piped = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert code == 0
    assert "\x1b[31mfailed\x1b[0m" in text
    assert "\x1b" not in piped
    assert plain.replace("\r", "") == piped
    # The terminal has no place for all columns, the pipe has.
    shown, whole = (lines.splitlines() for lines in (COLOUR.sub("", text), piped))
    assert len(shown) == len(whole) == 13
    assert max(map(len, shown)) <= 80 < max(map(len, whole))
