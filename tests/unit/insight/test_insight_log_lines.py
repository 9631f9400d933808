"""Which lines of a log are wanted, and reading log areas."""

import contextlib
import http.server
import json
import os
import threading
from functools import partial

import pytest

from lsst.ctrl.bps.panda.errors import SettingsError
from lsst.ctrl.bps.panda.insight.logs import (
    LineFilter,
    LogArea,
    LogEnd,
    LogReader,
    LogTransport,
    TailReader,
    find_log_urls,
    fold_lines,
    parse_json_line,
    parse_line,
)
from lsst.ctrl.bps.panda.runs.client import connect
from lsst.ctrl.bps.panda.settings.run import read_service_settings
from lsst.ctrl.bps.panda.status.job_errors import JobError
from lsst.ctrl.bps.panda.status.records import JobRecord


def a_job(url="", **values):
    return JobRecord(7, 1, values.pop("status", "failed"), "isr", "isr:1", log_url=url, **values)


@pytest.fixture
def files(tmp_path):
    """A directory served without support of ranges, and its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("lsst.isr INFO: done", "INFO"),
        ("WARN something", "WARNING"),
        ("2026 FATAL it", "CRITICAL"),
        ("Traceback (most recent call last):", "ERROR"),
        ("lsst.pipe.base.NoWorkFound: nothing", ""),
        ("ValueError: bad", "ERROR"),
        ("INFORMATION", ""),
        ("", ""),
    ],
)
def test_levels_of_plain_lines(text, level):
    assert parse_line(text).level == level


def test_lines_of_the_pipelines_log():
    text = json.dumps(
        {"asctime": "T", "levelname": "ERROR", "name": "lsst.x", "message": "m", "exc_info": "Traceback: z"}
    )
    line = parse_json_line(text, panda_id=3, file="payload-log.json")
    assert (line.level, line.time, line.logger, line.panda_id) == ("ERROR", "T", "lsst.x", 3)
    assert line.message == "m\nTraceback: z"
    assert parse_json_line("not json ERROR").level == "ERROR"


def test_filters():
    wanted = LineFilter.from_options(level="warn", grep="a.c")
    assert wanted.wants(parse_line("ERROR abc"))
    assert not wanted.wants(parse_line("INFO abc"))
    assert not wanted.wants(parse_line("ERROR xyz"))
    with pytest.raises(SettingsError, match="Levels: TRACE"):
        LineFilter.from_options(level="loud")
    with pytest.raises(SettingsError, match="not a regular expression"):
        LineFilter.from_options(grep="(")


def test_where_logs_are():
    base = "https://storage.example/logs/Q/PandaJob_7/"
    assert find_log_urls(a_job(base + "payload.stderr"), "") == {"": base}
    batch = find_log_urls(a_job("https://harvester/1.err"), "")
    assert batch == {"payload.stderr": "https://harvester/1.err", "payload.stdout": "https://harvester/1.out"}
    running = a_job(pilot_id="unknown|local|")
    assert find_log_urls(running, "http://127.0.0.1:9/server/panda") == {
        "": "http://127.0.0.1:9/logs/PandaJob_7/"
    }
    assert find_log_urls(a_job(pilot_id="unknown|PR|3"), "http://x/server/panda") == {}


@pytest.mark.parametrize("way", ["http", "file", "path"])
def test_files_are_read_in_every_way(files, way):
    directory, url = files
    address = {"http": url, "file": directory.as_uri() + "/", "path": f"{directory}/"}[way]
    (directory / "payload.stderr").write_text("".join(f"line {n}\n" for n in range(30)) + "\n")
    area = LogArea(a_job(address + "payload.stderr"), LogTransport())
    assert area.tail("payload.stderr", 9) == b"line 29\n\n"
    assert b"".join(area.blocks("payload.stderr", start=7)).startswith(b"line 1\n")
    assert area.tail("absent", 9) == b""
    job = a_job(address + "payload.stderr")
    assert TailReader(LogTransport(), count=2)(job) == LogEnd("", ("line 28", "line 29"))


PIPETASK = """\
ERROR 2026-11-20T18:12:47.040+00:00 lsst.pipe.base.mp_graph_executor (isr:{detector: 3}) - failed
Traceback (most recent call last):
  File "star_task.py", line 41, in runQuantum
    raise DatasetNotFoundError(text)
lsst.daf.butler.DatasetNotFoundError: no flat
of detector 3
INFO 2026-11-20T18:12:47.902+00:00 lsst.pipe.base.mp_graph_executor - Executed 3 quanta, 1 failed.
ERROR 2026-11-20T18:12:47.902+00:00 lsst.daf.butler.cli.utils ()(utils.py:218) - Caught an exception
Traceback (most recent call last):
  File "mp_graph_executor.py", line 750, in _execute_quanta_in_process
    raise MPGraphExecutorError("One or more tasks failed during execution.")
lsst.pipe.base.mp_graph_executor.MPGraphExecutorError: One or more tasks failed during execution.
"""


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (PIPETASK, ["lsst.daf.butler.DatasetNotFoundError: no flat", "of detector 3"]),
        (
            PIPETASK + "runner: exit code 1\n",
            ["lsst.daf.butler.DatasetNotFoundError: no flat", "of detector 3"],
        ),
        # The cause is not in what was read: all there is.
        (PIPETASK[PIPETASK.index("INFO") :], PIPETASK.splitlines()[-2:]),
        ("a\nb\nc\n", ["b", "c"]),
    ],
)
def test_the_end_of_a_log_is_the_cause_and_not_what_pipetask_says_of_it(tmp_path, text, end):
    area = tmp_path / "PandaJob_4"
    area.mkdir()
    (area / "payload.stderr").write_text(text)
    job = a_job(f"{area.as_uri()}/payload.stderr")
    assert list(TailReader(LogTransport(), count=2)(job).lines) == end


CPP = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n"
TRACE = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n'


@pytest.mark.parametrize(
    ("text", "code", "exception"),
    [
        (PIPETASK, 1, "lsst.daf.butler.DatasetNotFoundError: no flat"),
        # Far before the end: so much more is read.
        (
            PIPETASK.replace("INFO", "INFO 2026 x\n" * 9000 + "INFO"),
            1,
            "lsst.daf.butler.DatasetNotFoundError: no flat",
        ),
        # As the pipeline's end and the start of Python have it: chained, without a message, over two lines.
        (f"{TRACE}    x\nKeyError: 1\n\nThe above ...\n{TRACE}    y\nValueError: 2\n", 1, "ValueError: 2"),
        (f"{TRACE}    x\nMemoryError\n", 1, "MemoryError"),
        (f"{TRACE}    x\nmy.Error:\n  a: b\n", 1, "my.Error: a: b"),
        ("Usage: pipetask run\n\nError: No such option: --nope\n", 2, "Error: No such option: --nope"),
        ("/bin/sh: 1: pipetusk: not found\n", 127, "/bin/sh: 1: pipetusk: not found"),
        ("bash: line 1: x: command not found\nINFO end\n", 127, "bash: line 1: x: command not found"),
        (CPP, 134, "std::bad_alloc: std::bad_alloc"),
        ("Fatal Python error: Segmentation fault\n\nrest", 139, "Fatal Python error: Segmentation fault"),
        ("runner: a is damaged (exit code 86)\n", 86, "a is damaged (exit code 86)"),
        ("INFO a\nERROR x (f.py:1) - no such thing\nINFO b\n", 5, "ERROR x (f.py:1) - no such thing"),
        # What was logged, and dealt with, before a signal is not why.
        (f"{TRACE}    x\nKeyError: 1\nERROR but I go on\nINFO ha\n", 137, ""),
        ("INFO a\nb\n", 3, ""),
    ],
)
def test_the_exception_of_a_log(tmp_path, text, code, exception):
    (tmp_path / "payload.stderr").write_text(text)
    job = a_job(f"{tmp_path}/payload.stderr", errors=(JobError("payload", code),))
    assert TailReader(LogTransport(), count=0)(job) == LogEnd(exception, ())


def test_lines_of_level_info_are_folded():
    lines = ["a", "INFO b", "DEBUG c", "ERROR d", "  e", "INFO f"]
    folded = ["a", "(2 lines of level INFO or below)", "ERROR d", "  e", "(1 line of level INFO or below)"]
    assert [line for _, line in fold_lines(lines)] == folded


def test_a_long_file_is_read_in_pieces_and_lines_stay_whole(tmp_path):
    line = "x" * 99
    with (tmp_path / "payload.stdout").open("w") as stream:
        stream.writelines(f"{line}\n" for _ in range(60_000))
        stream.write("the end")
    reader = LogReader(LogTransport(), files=["payload.stdout"])
    job = a_job(f"{tmp_path}/payload.stderr")
    lines = [found.message for found in reader.lines(job, LineFilter())]
    assert len(lines) == 60_001
    assert set(lines[:-1]) == {line}
    assert lines[-1] == "the end"


def test_what_is_new_comes_once_and_whole(tmp_path):
    path = tmp_path / "payload.stderr"
    reader = LogReader(LogTransport())

    def new(status="running"):
        job = a_job(str(path), status=status)
        return [(line.message, line.level) for line in reader.lines(job, LineFilter())]

    path.write_text("ERROR bad\n  because\nINFO ha")
    assert new() == [("ERROR bad", "ERROR"), ("  because", "ERROR")]
    assert new() == []
    with path.open("a") as stream:
        stream.write("lf\nrest")
    assert new() == [("INFO half", "INFO")]
    assert new("finished") == [("rest", "INFO")]
    assert new("finished") == []


def test_the_pipelines_log_is_taken_where_it_is(tmp_path):
    (tmp_path / "payload.stderr").write_text("the same, as text\n")
    (tmp_path / "payload-log.json").write_text('{"message": "in json", "levelname": "INFO"}\n')
    lines = list(LogReader(LogTransport()).lines(a_job(f"{tmp_path}/payload.stderr"), LineFilter()))
    assert [(line.message, line.file) for line in lines] == [("in json", "payload-log.json")]


def test_a_place_that_cannot_be_asked_is_told(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        port = server.server_port
    transport = LogTransport()
    reader = TailReader(transport)
    exception, (line,) = reader(a_job(f"http://127.0.0.1:{port}/payload.stderr"))
    assert exception is None
    assert line.startswith("(the log could not be read: Nothing listens there")
    # The host is not asked again: it would answer now, but for this reader it is gone.
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), http.server.BaseHTTPRequestHandler):
        assert reader(a_job(f"http://127.0.0.1:{port}/other/payload.stderr")).lines == (line,)
    if os.getuid():
        (tmp_path / "payload.stderr").touch(0o000)
        assert "could not be read" in reader(a_job(f"{tmp_path}/payload.stderr")).lines[0]


class _Noting(http.server.BaseHTTPRequestHandler):
    """Notes who sends what."""

    def do_GET(self):
        self.server.heard.append(self.headers.get("Authorization"))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"line\n")

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def _noting():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Noting) as server:
        server.heard = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_token_goes_to_the_configured_panda_only():
    """Whoever writes the address of a log must not choose who hears the token."""
    env = {"PANDA_AUTH": "oidc", "PANDA_AUTH_VO": "Rubin", "PANDA_AUTH_ID_TOKEN": "geheim"}
    with _noting() as own, _noting() as other:
        url = f"http://127.0.0.1:{own.server_port}/server/panda"
        transport = LogTransport(connect(read_service_settings({}, {**env, "PANDA_URL": url})))
        for place in (
            f"http://127.0.0.1:{other.server_port}",
            f"http://localhost:{own.server_port}",
            f"http://127.0.0.1:{own.server_port}@127.0.0.1:{other.server_port}",
            f"http://127.0.0.1:{own.server_port}",
        ):
            reader = TailReader(transport)
            assert reader(a_job(f"{place}/logs/PandaJob_1/payload.stderr")).lines == ("line",)
    # Without an exception in the standard error, the standard output is read, too.
    assert other.heard == [None, None, *other.heard[2:]]
    assert "geheim" not in str(other.heard)
    assert own.heard == [None, None, "Bearer geheim", "Bearer geheim"]
