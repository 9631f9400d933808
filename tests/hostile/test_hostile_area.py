"""A staging area that is broken, slow or hostile: the runner ends, with a code that says why, and writes
nothing outside the job's directory.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import ssl
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import pytest
from panda_servers.bad_web import BadWeb, plain
from panda_servers.interpreters import discover

from lsst.ctrl.bps.panda.edgenode import cmd_line_decoder as runner

pytestmark = pytest.mark.slow

INTERPRETERS = discover()
OLDEST = INTERPRETERS[min(INTERPRETERS)]
PYTHONS = sorted({sys.executable, OLDEST})

TREE = [("tree", "d/")]


def render_manifest(files: dict[str, object]) -> bytes:
    return json.dumps({"format": 1, "files": files}).encode()


def entry(data: bytes) -> dict[str, object]:
    return {"size": len(data), "adler32": f"{zlib.adler32(data):08x}"}


class Job:
    """A job in a directory of its own, below one in which nothing else may appear."""

    def __init__(self, folder: Path) -> None:
        self.top = folder / "worker"
        self.work = self.top / "a" / "b" / "job"
        self.work.mkdir(parents=True)
        self.area = folder / "area"
        self.area.mkdir()

    def run(
        self, area: object, *options: str, files=(), direct=runner.NO_DIRECT, text="job", python=None, **env
    ):
        """Run it; a job that does not end by itself fails the test."""
        command = "cat; echo {q}; touch started" if text == "job" else "echo {q}; touch started"
        line = [
            python or sys.executable,
            "-I",
            runner.__file__,
            runner.encode_command(command),
            text,
            runner.encode_area(str(area)),
            runner.encode_files(files),
            direct,
            "--tries=2",
            "--pause=0",
            *options,
        ]
        environment = {"PATH": "/usr/bin:/bin", **env}
        result = subprocess.run(line, cwd=self.work, env=environment, capture_output=True, timeout=100)
        strangers = [path for path in self.top.rglob("*") if not path.is_relative_to(self.work)]
        assert set(strangers) == set(self.work.parents) & set(strangers), (
            "written outside the job's directory"
        )
        assert b"mistake in the runner" not in result.stderr
        return result

    def fails(self, code: int, *words: str, **arguments) -> str:
        """Run it; it ends with a code, before the payload, and says some words."""
        result = self.run(**arguments) if "area" in arguments else self.run(self.area, **arguments)
        text = result.stderr.decode()
        assert result.returncode == code, text
        assert all(word in text for word in words), text
        assert not (self.work / "started").exists()
        return text


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


@pytest.fixture
def web():
    with BadWeb() as server:
        yield server


def offer(server: BadWeb, files: dict[str, bytes]) -> None:
    """Let a server have a manifest, and a file of each name that anybody may ask for."""
    server.answers[runner.MANIFEST] = plain(
        render_manifest({name: entry(data) for name, data in files.items()})
    )
    for name, data in files.items():
        server.answers[os.path.normpath(name).lstrip("/")] = plain(data)
        server.answers[name.lstrip("/")] = plain(data)


# --- names ------------------------------------------------------------------

BAD_NAMES = [
    "d/../../../x",
    "d/../x",
    "d//{outside}/x",
    "d//x",
    "d/./x",
    "d/a/../../../../x",
    "d/a\0b",
    "d/\ud800",
    "d/.",
    "d/..",
    "d//",
]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", BAD_NAMES)
def test_name_of_a_manifest_that_leaves_the_directory(job, web, name, python):
    name = name.replace("{outside}", str(job.top / "a").lstrip("/"))
    good = {"d/good": b"good"}
    offer(web, good)
    web.answers[runner.MANIFEST] = plain(render_manifest({"d/good": entry(b"good"), name: entry(b"evil")}))
    web.answers[os.path.normpath(name.encode("utf-8", "replace").decode()).lstrip("/")] = plain(b"evil")
    web.answers[name.lstrip("/")] = plain(b"evil")
    job.fails(runner.EXIT_UNSAFE, "which is not fetched", area=web.url, files=TREE, python=python)
    assert list(job.work.iterdir()) == []


def test_backslash_is_part_of_a_name(job, web):
    offer(web, {"d/..\\..\\x": b"harmless"})
    assert job.run(web.url, files=TREE).returncode == 0
    assert (job.work / "d" / "..\\..\\x").read_bytes() == b"harmless"


def test_file_that_is_also_a_directory(job, web):
    offer(web, {"d/a": b"file", "d/a/b": b"below a file"})
    job.fails(runner.EXIT_UNSAFE, "'d/a'", area=web.url, files=TREE)


def test_name_that_is_there_twice(job, web):
    twice = (
        '{"format": 1, "files": {"d/a": {"size": 1, "adler32": null}, "d/a": {"size": 2, "adler32": null}}}'
    )
    web.answers[runner.MANIFEST] = plain(twice.encode())
    job.fails(runner.EXIT_DAMAGED, "'d/a' is there twice", area=web.url, files=TREE)


def test_link_to_a_directory_above_it(job):
    (job.area / "d").mkdir()
    for name in ("one", "two"):
        (job.area / "d" / name).symlink_to(".")
    job.fails(runner.EXIT_UNSAFE, "symbolic link", files=TREE)


# --- manifests ----------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        {"f": {"size": "4"}},
        {"f": {"size": -1}},
        {"f": {"size": 1e300}},
        {"f": {"size": 4, "adler32": "xyz"}},
        {"f": {"size": 4, "adler32": ["0"]}},
        {"f": {"size": 4, "adler32": "f" * 5000}},
        {"f": [4]},
        {"f": 4},
        {"f": True},
    ],
)
def test_entry_of_a_manifest_that_makes_no_sense(job, web, files):
    web.answers["f"] = plain(b"four")
    web.answers[runner.MANIFEST] = plain(render_manifest(files))
    job.fails(runner.EXIT_DAMAGED, "'f'", area=web.url, files=[("k", "f")])


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100000,
        b'{"files":' * 100000,
        b"{}",
        b"[]",
        b"null",
        b'{"files": [1]}',
        b"\xff",
        b'{"files": 5}',
    ],
)
def test_manifest_that_is_none(job, web, text):
    web.answers[runner.MANIFEST] = plain(text)
    job.fails(runner.EXIT_DAMAGED, "not a manifest", area=web.url, files=[("k", "f")])


def test_manifest_without_end(job, web):
    web.answers[runner.MANIFEST] = web.flood()
    job.fails(runner.EXIT_DAMAGED, str(runner.LARGEST_MANIFEST), area=web.url, files=[("k", "f")])
    assert web.sent < 6 * runner.LARGEST_MANIFEST


# --- bodies -------------------------------------------------------------------


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n",
    ],
)
def test_body_without_end(job, web, head, python):
    offer(web, {"f": b"four"})
    web.answers["f"] = web.flood(head)
    job.fails(runner.EXIT_DAMAGED, "there may be", area=web.url, files=[("k", "f")], python=python)
    assert web.sent < 100 << 20
    assert list(job.work.iterdir()) == []


def test_chunks_without_end(job, web):
    offer(web, {"f": b"four"})

    def answer(connection: socket.socket, head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not web.over.is_set():
            connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")

    web.answers["f"] = answer
    job.fails(runner.EXIT_DAMAGED, "more than 4 bytes", area=web.url, files=[("k", "f")])


@pytest.mark.parametrize(
    ("length", "code"), [(3, runner.EXIT_DAMAGED), (5, runner.EXIT_DAMAGED), (-4, runner.EXIT_DAMAGED)]
)
def test_wrong_length(job, web, length, code):
    offer(web, {"f": b"four"})
    web.answers["f"] = plain(b"four", length=length)
    job.fails(code, "bytes", area=web.url, files=[("k", "f")])


def test_length_that_is_no_number(job, web):
    web.answers["f"] = plain(b"four", headers="Content-Length: many\r\n", length=4)
    result = job.run(web.url, files=[("k", "f")])
    assert result.returncode in (0, runner.EXIT_UNREACHABLE), result.stderr


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    ("head", "byte"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"),
        (b"", b"H"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
@pytest.mark.parametrize("name", ["f", runner.MANIFEST])
def test_a_byte_now_and_then(job, web, name, head, byte, python):
    offer(web, {"f": b"x" * 4000000})
    web.answers[name] = web.trickle(head, byte)
    result = job.run(web.url, "--patience=0.1", files=[("k", "f")], python=python)
    assert result.returncode == runner.EXIT_UNREACHABLE, result.stderr
    assert b"--patience" in result.stderr
    assert list(job.work.iterdir()) == []


def test_note_of_a_cancelled_run_without_end(job, web):
    web.answers[runner.CANCELLED] = web.flood()
    assert job.run(web.url, "--final=yes").returncode == 0
    web.answers[runner.CANCELLED] = web.trickle(b"HTTP/1.1 200 OK\r\n\r\n")
    assert job.run(web.url, "--final=yes", "--patience=0.2").returncode == 0


# --- kinds of files -------------------------------------------------------------


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(path.parent, os.O_RDONLY)
        try:
            listener.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("make", [make_fifo, make_device])
@pytest.mark.parametrize("name", ["f", "d/f", runner.MANIFEST, runner.shard_name("isr", 0), runner.CANCELLED])
def test_no_file(job, name, make, python):
    path = job.area / name
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    wanted = [("k", "d/")] if name == "d/f" else [("k", "f")] if name in ("f", runner.MANIFEST) else []
    result = job.run(
        job.area, "--parameters=isr@10", "--final=yes", files=wanted, text="isr:1", python=python
    )
    assert result.returncode == runner.EXIT_UNSAFE, result.stderr
    assert b"FIFO" in result.stderr


def test_socket(job):
    make_socket(job.area / "f")
    result = job.run(job.area, files=[("k", "f")])
    assert result.returncode in (runner.EXIT_UNSAFE, runner.EXIT_UNREACHABLE), result.stderr


def test_note_of_an_attempt_that_is_a_fifo(job):
    folder = job.area / runner.ATTEMPTS_FOLDER
    folder.mkdir()
    make_fifo(folder / "7=3A")  # of task 7
    environment = {"PANDAID": "1", "PanDA_TaskID": "7"}
    result = job.run(job.area, "--retry-unless-exit=3", **environment)
    assert result.returncode == 0, result.stderr


def test_output_that_is_a_fifo(job):
    line = runner.encode_outputs([("k", str(job.area / "out"))])
    os.mkfifo(job.work / "out")
    result = job.run(job.area, f"--outputs={line}")
    assert result.returncode == runner.EXIT_OUTPUT, result.stderr


# --- redirections ---------------------------------------------------------------


def redirect(to: str, status: str = "302 Found"):
    return plain(b"", status=status, headers=f"Location: {to}\r\n")


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize(
    "to", ["ftp://127.0.0.1:1/f", "file:///etc/passwd", "FILE:/etc/passwd", "data:,four", ""]
)
def test_redirection_to_another_scheme(job, web, to, status, python):
    web.answers["f"] = redirect(to, status)
    job.fails(runner.EXIT_UNSAFE, "not followed", area=web.url, files=[("k", "f")], python=python)
    assert len(web.seen) == 2


def test_redirections_in_a_circle(job, web):
    web.answers["f"] = redirect("/g")
    web.answers["g"] = redirect("/f")
    job.fails(runner.EXIT_UNSAFE, "more than 10 times", area=web.url, files=[("k", "f")])


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temporary", "308 Permanent"])
def test_redirection_that_is_followed(job, web, status):
    offer(web, {"f": b"four"})
    with BadWeb() as other:
        other.answers["g h"] = plain(b"four")
        web.answers["f"] = redirect(other.url + "g h", status)
        result = job.run(web.url, files=[("k", "f")], python=OLDEST)
    assert result.returncode == 0, result.stderr
    assert (job.work / "f").read_bytes() == b"four"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for the loopback, which is its own authority, in one file with its key."""
    folder = tmp_path_factory.mktemp("tls")
    line = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -keyout key.pem -out cert.pem"
        " -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(["openssl", *line.split()], cwd=folder, check=True, capture_output=True, timeout=60)
    both = folder / "both.pem"
    both.write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())
    return both


def secure(certificate: Path, *, ask: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if ask:
        context.load_verify_locations(certificate)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def credentials(certificate: Path) -> dict[str, str]:
    return {
        "LSST_HTTP_CACERT_BUNDLE": str(certificate),
        "LSST_HTTP_AUTH_CLIENT_CERT": str(certificate),
        "LSST_HTTP_AUTH_BEARER_TOKEN": "sesame",
    }


def test_redirection_from_https_to_http(job, web, certificate):
    web.answers["f"] = plain(b"four")
    with BadWeb(secure(certificate)) as safe:
        safe.answers["f"] = redirect(web.url + "f")
        job.fails(
            runner.EXIT_UNSAFE, "https to http", area=safe.url, files=[("k", "f")], **credentials(certificate)
        )
    assert web.seen == []


def test_credentials_stay_with_the_area(job, certificate):
    shown = []

    def look(connection, head):
        shown.append((connection.getpeercert(), b"sesame" in head))
        plain(b"four")(connection, head)

    with BadWeb(secure(certificate, ask=True)) as area, BadWeb(secure(certificate, ask=True)) as other:
        other.answers["f"] = look
        area.answers["f"] = redirect(other.url + "f")
        area.answers["g"] = look
        result = job.run(area.url, files=[("k", "f"), ("l", "g")], **credentials(certificate))
    assert result.returncode == 0, result.stderr
    (foreign, foreign_token), (own, own_token) = shown
    assert not foreign
    assert not foreign_token
    assert own
    assert own_token


# --- shards ---------------------------------------------------------------------

GOOD = runner.render_shard(["q"], 0, [(f"value {number}",) for number in range(10)]).encode()


def change(**values: object) -> bytes:
    return json.dumps({"format": 1, "first": 0, "names": ["q"], "rows": [["a"]] * 10, **values}).encode()


SHARDS = {
    "cut": GOOD[:-20],
    "empty": b"",
    "compressed": gzip.compress(GOOD),
    "a bomb": gzip.compress(b"\0" * 10_000_000),
    "not text": b"\xff\xfe" + GOOD,
    "another format": change(format=2),
    "a list": b"[]",
    "deep": b"[" * 200_000,
    "a number for rows": change(rows=5),
    "rows of numbers": change(rows=[[5]] * 10),
    "rows of texts": change(rows=["a"] * 10),
    "short rows": change(rows=[[]] * 10),
    "rows of objects": change(rows=[{"q": "a"}] * 10),
    "names of numbers": change(names=[5]),
    "no names": change(names=None),
    "a negative number": change(first=-5),
    "a fraction": change(first=0.5),
    "infinity": change(first=float("inf")),
    "a truth value": change(first=True),
    "a number as text": change(first="0"),
    "NUL": change(rows=[["a\0b"]] * 10),
    "half a character": change(rows=[["\ud800"]] * 10),
    "many digits": change().replace(b'"first": 0', b'"first": ' + b"9" * 5000),
}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("kind", SHARDS)
@pytest.mark.parametrize("listed", [True, False])
def test_damaged_shard(job, kind, listed, python):
    """Listed: it was staged like that, so that its checksum is right."""
    path = job.area / runner.shard_name("isr", 0)
    path.parent.mkdir(parents=True)
    path.write_bytes(SHARDS[kind])
    if listed:
        (job.area / runner.MANIFEST).write_bytes(
            render_manifest({runner.shard_name("isr", 0): entry(SHARDS[kind])})
        )
    result = job.run(job.area, "--parameters=isr@10", text="isr:1", python=python)
    # Before 3.11, a number may have any number of digits: then the job is not in the shard.
    allowed = {runner.EXIT_SHARD} | ({runner.EXIT_PARAMETERS} if kind == "many digits" else set())
    assert result.returncode in allowed, result.stderr
    assert b"no parameters for 'isr:1'" in result.stderr


def test_shard_that_is_not_the_staged_one(job):
    path = job.area / runner.shard_name("isr", 0)
    path.parent.mkdir(parents=True)
    path.write_bytes(GOOD.replace(b"value", b"other"))
    (job.area / runner.MANIFEST).write_bytes(render_manifest({runner.shard_name("isr", 0): entry(GOOD)}))
    result = job.run(job.area, "--parameters=isr@10", text="isr:1")
    assert result.returncode == runner.EXIT_DAMAGED, result.stderr


@pytest.mark.parametrize("key", ["orderIdMapFilename", "qnodemap"])
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "[",
        "5",
        "[" * 200_000,
        '{"isr": 5, "PH:a": 5}',
        '{"isr": {"1": 5}, "PH:a": [1]}',
        '{"isr": {"1": null}, "PH:a": null}',
    ],
)
def test_damaged_map(job, key, direct, text):
    (job.area / "map.json").write_text(text)
    job.fails(
        runner.EXIT_SHARD,
        "no parameters",
        files=[(key, "map.json")],
        direct=runner.encode_direct([key] if direct else []),
        text="isr:orderIdMap_1" if key == "orderIdMapFilename" else "PH:a",
    )


# --- archives ---------------------------------------------------------------------


def member(name: str, kind: bytes = tarfile.REGTYPE, *, data: bytes = b"", **values: object) -> tuple:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for key, value in values.items():
        setattr(info, key, value)
    return info, data


def write_archive(path: Path, *members: tuple) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    "members",
    [
        [member("../x", data=b"evil")],
        [member("/tmp/../x", data=b"evil")],
        [member("a//b", data=b"evil")],
        [member("a", tarfile.SYMTYPE, linkname=".."), member("a/x", data=b"evil")],
        [member("a", data=b"good"), member("b", tarfile.LNKTYPE, linkname="a")],
        [member("a", tarfile.LNKTYPE, linkname="../../x")],
        [member("a", tarfile.FIFOTYPE)],
        [member("a", tarfile.CHRTYPE, devmajor=1, devminor=5)],
    ],
    ids=["above", "absolute", "empty part", "link", "hard link", "hard link outside", "fifo", "device"],
)
def test_member_that_is_refused(job, members, python):
    write_archive(job.area / "jobO.1.tar.gz", *members)
    job.fails(runner.EXIT_UNSAFE, "member", direct=str(job.area / "jobO.1.tar.gz"), python=python)
    assert list(job.work.iterdir()) == []


@pytest.mark.parametrize("python", PYTHONS)
def test_member_gets_no_special_permissions(job, python):
    write_archive(job.area / "jobO.1.tar.gz", member("./run.sh", data=b"#!", mode=0o6777, uid=4, gid=4))
    assert job.run(job.area, direct=str(job.area / "jobO.1.tar.gz"), python=python).returncode == 0
    found = (job.work / "run.sh").stat()
    assert found.st_mode & 0o7777 == 0o755
    assert found.st_uid == os.getuid()


@pytest.mark.parametrize("python", PYTHONS)
def test_file_where_the_archive_has_a_directory(job, python):
    write_archive(job.area / "jobO.1.tar.gz", member("a", data=b"x"), member("a/b", data=b"x"))
    job.fails(runner.EXIT_DAMAGED, "archive", direct=str(job.area / "jobO.1.tar.gz"), python=python)


class Zeros(io.RawIOBase):
    """So many bytes of nothing."""

    def __init__(self, size: int) -> None:
        self.left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = min(len(buffer), self.left)
        buffer[:count] = bytes(count)
        self.left -= count
        return count


@pytest.mark.parametrize("kind", ["file", "many files", "header", "name"])
def test_archive_that_is_a_bomb(job, kind):
    """None of it reaches the disk, and none the memory."""
    path = job.area / "jobO.1.tar.gz"
    huge = runner.LARGEST_UNPACKED + 1
    types = {"header": tarfile.XHDTYPE, "name": tarfile.GNUTYPE_LONGNAME}
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for number in range(8 if kind == "many files" else 1):
            info = tarfile.TarInfo(f"f{number}")
            info.type = types.get(kind, tarfile.REGTYPE)
            info.size = huge // 8 // 512 * 512 + 512 if kind == "many files" else huge
            stream.write(info.tobuf(tarfile.USTAR_FORMAT if kind in types else tarfile.GNU_FORMAT))
            zeros = Zeros(info.size)
            while chunk := zeros.read(1 << 20):
                stream.write(chunk)
    job.fails(runner.EXIT_DAMAGED, "bytes", direct=str(path))
    assert list(job.work.iterdir()) == []


@pytest.mark.parametrize(
    "data", [b"", b"\x1f\x8b", b"\0" * 10_000, os.urandom(3000), gzip.compress(os.urandom(3000))]
)
def test_archive_that_is_none(job, data):
    path = job.area / "jobO.1.tar.gz"
    path.write_bytes(data)
    result = job.run(job.area, direct=str(path))
    assert result.returncode in (0, runner.EXIT_DAMAGED), result.stderr


# --- cache ------------------------------------------------------------------------


def test_cache_that_is_a_link(job):
    """Somebody who may write to the cache leads what is fetched to a directory of the user's own."""
    (job.area / "f").write_bytes(b"four")
    (job.area / runner.MANIFEST).write_bytes(render_manifest({"f": entry(b"four")}))
    home = job.area / "home"
    home.mkdir()
    cache = job.area / "cache"
    cache.mkdir()
    (cache / str(os.getuid())).symlink_to(home)
    result = job.run(job.area, f"--cache={cache}", files=[("k", "f")])
    assert result.returncode == runner.EXIT_WORK_DIRECTORY, result.stderr
    assert list(home.iterdir()) == []
