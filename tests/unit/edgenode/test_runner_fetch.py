"""Files reach the work directory whole or not at all, from any kind of area."""

import http.server
import json
import os
import threading
import time
import zlib
from urllib.parse import unquote

import pytest

from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner

TREE = {
    "butler.yaml": b"datastore: {}\n",
    "t/a.txt": b"top",
    "t/x/a.txt": b"equal base name",
    "t/x y/a+b:c%20'd'.txt": "é".encode(),
    "t/x/#1?.txt": b"for URIs",
    "t/.h/.a": b"hidden",
    "big.bin": bytes(range(256)) * 12000,
    "empty": b"",
}


def manifest(files, **changes):
    entries = {
        name: {"size": len(data), "adler32": f"{zlib.adler32(data):08x}"} for name, data in files.items()
    }
    entries.update(changes)
    return json.dumps({"format": 1, "files": entries}).encode()


def write(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Faults(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files``; ``server.faults`` holds what happens to the next requests for a name."""

    def do_GET(self):
        name = unquote(self.path.lstrip("/"))
        self.server.seen.append((name, self.headers.get("Authorization")))
        fault = self.server.faults.get(name) or []
        fault = fault.pop(0) if fault else None
        data = self.server.files.get(name)
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault == "hang up":
            self.connection.close()
        elif data is None:
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write({"cut": data[:-3], "changed": b"?" + data[1:]}.get(fault, data))

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faults) as instance:
        instance.files, instance.faults, instance.seen = {}, {}, []
        instance.url = f"http://127.0.0.1:{instance.server_address[1]}"
        thread = threading.Thread(target=instance.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield instance
        instance.shutdown()
        thread.join()


@pytest.fixture
def work(tmp_path, monkeypatch):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def arguments_for(area, files, *options, direct=()):
    return runner.Arguments(
        ["00", "j", runner.encode_area(str(area)), runner.encode_files(files), runner.encode_direct(direct)]
        + [runner.encode_option(name, value) for name, value in options]
    )


def deliver(area, files, *options, direct=(), waits=None):
    arguments = arguments_for(area, files, *options, direct=direct)
    pauses = [] if waits is None else waits
    return runner.deliver(arguments, runner.Fetcher(arguments, sleep=pauses.append))


ALL = [("butlerConfig", "butler.yaml"), ("tree", "t/"), ("big", "big.bin"), ("empty", "empty")]


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}", "file:{}/", "file://localhost{}/"])
def test_directory(tmp_path, work, form, listed):
    area = tmp_path / "area %41"
    write(area, TREE)
    if listed:
        (area / runner.MANIFEST).write_bytes(manifest(TREE))
    (area / "t" / "hollow").mkdir()
    quoted = str(area).replace("%", "%25").replace(" ", "%20") if form.startswith("file") else str(area)
    names = deliver(form.format(quoted), ALL)
    assert names == dict(ALL)
    assert contents(work) == TREE
    assert (work / "t" / "hollow").is_dir()


def test_relative_path(tmp_path, work):
    write(tmp_path / "area", TREE)
    deliver("../area", ALL)
    assert contents(work) == TREE


def test_web_server_with_manifest(server, work):
    server.files = {f"a/b/{name}": data for name, data in TREE.items()}
    server.files["a/b/" + runner.MANIFEST] = manifest(TREE)
    deliver(server.url + "/a/b", ALL)
    assert contents(work) == TREE


def test_lsst_resources(tmp_path, work, monkeypatch):
    area = tmp_path / "area %41"
    write(area, TREE)
    arguments = arguments_for(area, ALL)
    fetcher = runner.Fetcher(arguments)
    fetcher.area = runner.ResourceArea(area.as_uri())
    runner.deliver(arguments, fetcher)
    assert contents(work) == TREE
    assert fetcher.area.exists("butler.yaml")
    assert not fetcher.area.exists("nope")


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("/a/b", runner.LocalArea),
        ("a:b/c", runner.LocalArea),
        ("file:///a", runner.LocalArea),
        ("http://h/a", runner.HttpArea),
        ("https://h/a", runner.HttpArea),
        ("s3://b/a", runner.ResourceArea),
        ("davs://h/a", runner.ResourceArea),
    ],
)
def test_kind_of_area(uri, kind):
    assert type(runner.open_area(uri)) is kind


def test_tree_over_http_without_manifest(server, work):
    with pytest.raises(runner.FailureError, match="'t/'.*no manifest") as caught:
        deliver(server.url, [("tree", "t/")])
    assert caught.value.code == runner.EXIT_MISSING


@pytest.mark.parametrize("fault", [500, 503, 429, "hang up", "cut", "changed"])
def test_fault_that_passes(server, work, fault):
    server.files = dict(TREE, **{runner.MANIFEST: manifest(TREE)})
    server.faults = {"butler.yaml": [fault, fault]}
    waits = []
    deliver(server.url, ALL[:1], waits=waits)
    assert contents(work) == {"butler.yaml": TREE["butler.yaml"]}
    assert waits == [1.0, 2.0]


@pytest.mark.parametrize(
    ("fault", "code", "part"),
    [
        (503, runner.EXIT_UNREACHABLE, "503"),
        ("hang up", runner.EXIT_UNREACHABLE, "3 tries"),
        ("cut", runner.EXIT_DAMAGED, "3 tries"),
        ("changed", runner.EXIT_DAMAGED, "checksum"),
    ],
)
def test_fault_that_stays(server, work, fault, code, part):
    server.files = dict(TREE, **{runner.MANIFEST: manifest(TREE)})
    server.faults = {"butler.yaml": [fault] * 9}
    with pytest.raises(runner.FailureError, match="'butler.yaml'") as caught:
        deliver(server.url, ALL[:1])
    assert caught.value.code == code
    assert part in str(caught.value)
    assert sum(name == "butler.yaml" for name, _ in server.seen) == 3
    assert contents(work) == {}


def test_cut_without_manifest(server, work):
    server.files, server.faults = dict(TREE), {"butler.yaml": ["cut"]}
    waits = []
    deliver(server.url, ALL[:1], waits=waits)
    assert contents(work) == {"butler.yaml": TREE["butler.yaml"]}
    assert len(waits) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_trying_again_does_not_cure(server, work, status):
    server.files, server.faults = dict(TREE), {"butler.yaml": [status]}
    waits = []
    with pytest.raises(runner.FailureError, match=f"'butler.yaml'.*{status}") as caught:
        deliver(server.url, ALL[:1], waits=waits)
    assert caught.value.code == runner.EXIT_MISSING
    assert waits == []


def test_damaged_manifest_is_read_again(server, work):
    server.files = dict(TREE, **{runner.MANIFEST: manifest(TREE)})
    server.faults = {runner.MANIFEST: ["cut"]}
    deliver(server.url, ALL[:1])
    assert contents(work) == {"butler.yaml": TREE["butler.yaml"]}


def test_truncated_on_disk(tmp_path, work):
    area = tmp_path / "area"
    write(area, TREE)
    (area / runner.MANIFEST).write_bytes(manifest(TREE))
    (area / "butler.yaml").write_bytes(b"data")
    waits = []
    with pytest.raises(runner.FailureError, match="'butler.yaml'.*4 bytes instead of 14") as caught:
        deliver(area, ALL, waits=waits)
    assert caught.value.code == runner.EXIT_DAMAGED
    assert len(waits) == 2
    assert contents(work) == {}


def test_missing_file_is_named_with_its_area(tmp_path, work):
    with pytest.raises(runner.FailureError, match="'butler.yaml' from .*area: No such file") as caught:
        deliver(tmp_path / "area", ALL)
    assert caught.value.code == runner.EXIT_MISSING


def test_password_is_not_shown(work):
    arguments = arguments_for("http://me:secret@127.0.0.1:9/a", ALL, ("tries", "1"))
    with pytest.raises(runner.FailureError) as caught:
        runner.deliver(arguments, runner.Fetcher(arguments))
    assert "secret" not in str(caught.value)
    assert "http://127.0.0.1:9/a" in str(caught.value)


@pytest.mark.parametrize(("wanted", "fine"), [("optional", True), ("ignored", True), ("required", False)])
def test_area_without_manifest(tmp_path, work, wanted, fine):
    write(tmp_path / "area", TREE)
    if fine:
        deliver(tmp_path / "area", ALL[:1], ("manifest", wanted))
        return
    with pytest.raises(runner.FailureError, match="not staged to the end") as caught:
        deliver(tmp_path / "area", ALL[:1], ("manifest", wanted))
    assert caught.value.code == runner.EXIT_MISSING


@pytest.mark.parametrize(("wanted", "fine"), [("optional", True), ("required", False)])
def test_store_that_calls_what_is_missing_forbidden(server, work, wanted, fine):
    server.files, server.faults = dict(TREE), {runner.MANIFEST: [403] * 9}
    if fine:
        deliver(server.url, ALL[:1], ("manifest", wanted))
        return
    with pytest.raises(runner.FailureError, match="403"):
        deliver(server.url, ALL[:1], ("manifest", wanted))


def test_ignored_manifest(tmp_path, work):
    area = tmp_path / "area"
    write(area, dict(TREE, **{runner.MANIFEST: manifest(TREE)}))
    (area / "butler.yaml").write_bytes(b"changed by hand")
    deliver(area, ALL[:1], ("manifest", "ignored"))
    assert (work / "butler.yaml").read_bytes() == b"changed by hand"


class TestInPlace:
    def test_not_copied(self, tmp_path, work):
        write(tmp_path / "area", TREE)
        names = deliver(tmp_path / "area", ALL, direct=["big", "tree"])
        assert names == dict(ALL)
        assert contents(work) == {name: TREE[name] for name in ("butler.yaml", "empty")}

    def test_missing(self, tmp_path, work):
        with pytest.raises(runner.FailureError, match="'big.bin'"):
            deliver(tmp_path / "area", ALL[2:3], direct=["big"])

    def test_truncated(self, tmp_path, work):
        area = tmp_path / "area"
        write(area, dict(TREE, **{runner.MANIFEST: manifest(TREE)}))
        (area / "big.bin").write_bytes(b"short")
        with pytest.raises(runner.FailureError, match="5 bytes instead of 3072000") as caught:
            deliver(area, ALL[2:3], direct=["big"])
        assert caught.value.code == runner.EXIT_DAMAGED

    def test_grown_is_fine(self, tmp_path, work):
        area = tmp_path / "area"
        write(area, dict(TREE, **{runner.MANIFEST: manifest(TREE)}))
        (area / "empty").write_bytes(b"a data base that jobs write to")
        deliver(area, ALL[3:], direct=["empty"])

    def test_not_looked_at_over_http(self, server, work):
        deliver(server.url, ALL[2:3], direct=["big"])
        assert server.seen == []


def test_permissions(tmp_path, work):
    area = tmp_path / "area"
    write(area, {"run.sh": b"", "job.sh": b"", "data": b"", "tool": b""})
    os.chmod(area / "run.sh", 0o755)
    files = [("script", "run.sh"), ("job_executable", "job.sh"), ("d", "data"), ("tool", "tool")]
    deliver(area, files, ("executables", "tool"))
    assert {path.name: bool(path.stat().st_mode & 0o100) for path in work.iterdir()} == {
        "run.sh": True,
        "job.sh": True,
        "data": False,
        "tool": True,
    }


def test_work_directory_that_is_the_area(work):
    write(work, TREE)
    before = contents(work)
    deliver(work, ALL)
    assert contents(work) == before


def test_again_in_the_same_directory(tmp_path, work):
    area = tmp_path / "area"
    write(area, dict(TREE, **{runner.MANIFEST: manifest(TREE)}))
    deliver(area, ALL)
    inode = (work / "big.bin").stat().st_ino
    (work / "butler.yaml").write_bytes(b"spoilt by an earlier payload")
    deliver(area, ALL)
    assert contents(work) == TREE
    assert (work / "big.bin").stat().st_ino == inode


def test_name_like_an_option(tmp_path, work):
    write(tmp_path / "area", {"-rf": b""})
    assert deliver(tmp_path / "area", [("k", "-rf")]) == {"k": "./-rf"}
    assert contents(work) == {"-rf": b""}


def test_butler_configuration_that_the_previous_plugin_calls_a_directory(tmp_path, work):
    write(tmp_path / "area", TREE)
    assert deliver(tmp_path / "area", [("butlerConfig", "butler.yaml/")]) == {"butlerConfig": "butler.yaml"}
    assert contents(work) == {"butler.yaml": TREE["butler.yaml"]}


def test_something_in_the_way(tmp_path, work):
    write(tmp_path / "area", TREE)
    (work / "butler.yaml").mkdir()
    with pytest.raises(runner.FailureError, match="cannot write 'butler.yaml'") as caught:
        deliver(tmp_path / "area", ALL)
    assert caught.value.code == runner.EXIT_WORK_DIRECTORY
    assert contents(work) == {}


def test_full_device(tmp_path, work):
    write(tmp_path / "area", TREE)

    part = runner._Part(b"big.bin")
    part._descriptor = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(runner.FailureError, match="cannot write 'big.bin': No space left") as caught:
        part.write(b"x")
    part.abandon()
    assert caught.value.code == runner.EXIT_WORK_DIRECTORY


class TestCache:
    def deliver(self, server, tmp_path):
        deliver(server.url, ALL[:1], ("cache", str(tmp_path / "cache")))

    def count(self, server):
        return sum(name == "butler.yaml" for name, _ in server.seen)

    def test_fetched_once(self, server, tmp_path, work):
        server.files = dict(TREE, **{runner.MANIFEST: manifest(TREE)})
        for _ in range(3):
            self.deliver(server, tmp_path)
            (work / "butler.yaml").unlink()
        assert self.count(server) == 1

    def test_payload_cannot_spoil_it(self, server, tmp_path, work):
        server.files = dict(TREE, **{runner.MANIFEST: manifest(TREE)})
        self.deliver(server, tmp_path)
        with open(work / "butler.yaml", "ab") as stream:
            stream.write(b"more")
        self.deliver(server, tmp_path)
        assert contents(work) == {"butler.yaml": TREE["butler.yaml"]}
        assert self.count(server) == 1

    def test_damaged_in_the_cache(self, server, tmp_path, work):
        server.files = dict(TREE, **{runner.MANIFEST: manifest(TREE)})
        self.deliver(server, tmp_path)
        (cached,) = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
        cached.write_bytes(b"spoilt")
        (work / "butler.yaml").unlink()
        self.deliver(server, tmp_path)
        assert contents(work) == {"butler.yaml": TREE["butler.yaml"]}
        assert cached.read_bytes() == TREE["butler.yaml"]

    def test_not_without_a_manifest(self, server, tmp_path, work):
        server.files = dict(TREE)
        for _ in range(2):
            self.deliver(server, tmp_path)
        assert self.count(server) == 2

    def test_many_at_once(self, server, tmp_path, work):
        server.files = dict(TREE, **{runner.MANIFEST: manifest(TREE)})
        targets = [tmp_path / f"job{number}" / "big.bin" for number in range(8)]
        arguments = arguments_for(server.url, ALL[2:3], ("cache", str(tmp_path / "cache")))

        def fetch(target):
            runner.Fetcher(arguments).fetch("big.bin", os.fsencode(target))

        threads = [threading.Thread(target=fetch, args=[target]) for target in targets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(target.read_bytes() == TREE["big.bin"] for target in targets)
        assert list(tmp_path.rglob("*.part-*")) == []


def test_token_goes_to_https_only(server, work, monkeypatch):
    monkeypatch.setenv("BEARER_TOKEN", "secret")
    server.files = dict(TREE)
    deliver(server.url, ALL[:1])
    assert {token for _, token in server.seen} == {None}


@pytest.mark.parametrize(
    ("environment", "token"),
    [
        ({}, ""),
        ({"BEARER_TOKEN": " abc\n"}, "abc"),
        ({"BEARER_TOKEN_FILE": "token"}, "from file"),
        ({"LSST_HTTP_AUTH_BEARER_TOKEN": "token", "BEARER_TOKEN": "x"}, "from file"),
        ({"LSST_HTTP_AUTH_BEARER_TOKEN": "direct", "BEARER_TOKEN_FILE": "token"}, "direct"),
    ],
)
def test_where_a_token_comes_from(work, monkeypatch, environment, token):
    (work / "token").write_text("from file\n")
    for name in ("BEARER_TOKEN", "BEARER_TOKEN_FILE", "LSST_HTTP_AUTH_BEARER_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert runner._bearer_token() == token


@pytest.mark.parametrize("error", [LookupError("unknown encoding: idna"), ImportError("no module")])
def test_an_import_that_the_end_of_patience_broke_is_a_timeout(error):
    def fail():
        raise error

    def import_something():
        try:
            time.sleep(30)
        except OSError:
            # As importlib does: it takes it for a file that is not there.
            fail()

    with pytest.raises(TimeoutError, match="not done within 0.05 s"), runner._Limit(0.05):
        import_something()
    with pytest.raises(type(error)), runner._Limit(30):
        fail()
