"""Databases that are deleted, emptied, cut or damaged: it is said which, and there is a way back."""

import os
import shutil
import sqlite3
import threading

import pytest
from click.testing import CliRunner
from panda_servers.local import wait_for

from lsst.ctrl.bps.panda.cli.panda_local import main
from lsst.ctrl.bps.panda.errors import LocalPandaError
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.backups import back_up, check_files, find_backups, restore
from lsst.ctrl.bps.panda.local.endpoint import EndpointClient, SampleTask, diamond
from lsst.ctrl.bps.panda.local.storage import Storage

_TABLES = {
    "panda.db": ("tasks", "files", "jobs", "events", "messages"),
    "idds.db": ("requests", "transforms", "processings", "collections", "contents", "messages"),
}


def _make(directory, *, last_task=3, submitted=3):
    for name, tables in _TABLES.items():
        connection = sqlite3.connect(directory / name)
        connection.execute("PRAGMA journal_mode=WAL")
        with connection:
            for table in tables:
                connection.execute(f"CREATE TABLE {table} (task_id INTEGER, workload_id INTEGER, text TEXT)")
            connection.executemany(
                f"INSERT INTO {tables[0]} VALUES (?, NULL, ?)", [(last_task, "x" * 500) for _ in range(2000)]
            )
            if name == "idds.db":
                connection.execute("INSERT INTO processings VALUES (NULL, ?, '')", (submitted,))
        connection.close()


def _cut(path):
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2 // 4096 * 4096)


def _scribble(path):
    with path.open("r+b") as stream:
        stream.seek(4096)
        stream.write(os.urandom(8192))


def _text(path):
    path.write_text("not a database\n" * 500)


def _empty(path):
    path.write_bytes(b"")


def _other(path):
    path.unlink()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("CREATE TABLE notes (text TEXT)")
    connection.close()


def _delete(path):
    path.unlink()


_DAMAGES = {
    "deleted": (_delete, "is missing"),
    "emptied": (_empty, "is empty"),
    "cut": (_cut, "is damaged"),
    "scribbled": (_scribble, "is damaged"),
    "text": (_text, r"is damaged \(file is not a database\)"),
    "other": (_other, "has no table"),
}


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "state"
    path.mkdir()
    return path


@pytest.mark.parametrize("name", list(_TABLES))
@pytest.mark.parametrize("damage", list(_DAMAGES))
@pytest.mark.parametrize("backup", [True, False], ids=["backup", "no-backup"])
def test_damaged_file_is_named_with_what_to_do(directory, name, damage, backup):
    _make(directory)
    check_files(directory)
    made = back_up(directory) if backup else None
    act, said = _DAMAGES[damage]
    act(directory / name)
    with pytest.raises(LocalPandaError, match=rf"{name} {said}.*Without it are lost: ") as refused:
        check_files(directory)
    advice = str(refused.value)
    assert "panda_local clean" in advice
    if not backup:
        assert "There is no backup." in advice
        return
    assert made.name in advice
    assert "panda_local restore" in advice
    _, replaced = restore(directory)
    check_files(directory)
    assert damage == "deleted" or (replaced / name).exists()
    connection = sqlite3.connect(directory / name)
    assert connection.execute(f"SELECT count(*) FROM {_TABLES[name][0]}").fetchone() == (2000,)
    connection.close()
    assert (directory / name).stat().st_mode & 0o077 == 0


def test_databases_that_do_not_fit_together_are_refused(directory):
    _make(directory, last_task=3, submitted=4)
    said = "panda.db is older than idds.db: its last task is 3, and iDDS has submitted task 4"
    with pytest.raises(LocalPandaError, match=said):
        check_files(directory)


def test_new_and_half_made_instances_are_no_damage(directory):
    check_files(directory)
    (directory / "idds.db").touch()
    check_files(directory)
    connection = sqlite3.connect(directory / "idds.db")
    connection.execute("CREATE TABLE requests (request_id INTEGER)")
    connection.close()
    check_files(directory)


def test_last_three_backups_are_kept_and_hold_what_is_only_in_the_log(directory):
    _make(directory)
    writer = sqlite3.connect(directory / "panda.db")
    made = []
    for number in range(5):
        with writer:
            writer.execute("INSERT INTO jobs VALUES (?, NULL, '')", (number,))
        made.append(back_up(directory))
    writer.close()
    assert find_backups(directory) == made[:1:-1]
    connection = sqlite3.connect(made[-1] / "panda.db")
    assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (5,)
    connection.close()
    assert sorted(path.name for path in made[-1].iterdir()) == ["idds.db", "panda.db"]


def test_backup_that_was_interrupted_is_none(directory):
    _make(directory)
    unfinished = directory / "backups" / ".new-20260101T000000Z"
    unfinished.mkdir(parents=True)
    assert find_backups(directory) == []
    made = back_up(directory)
    assert (find_backups(directory), unfinished.exists()) == ([made], False)


def test_damaged_or_unknown_backup_is_refused_and_nothing_is_moved(directory):
    _make(directory)
    made = back_up(directory)
    _cut(made / "idds.db")
    before = {path.name: path.stat().st_ino for path in directory.iterdir()}
    with pytest.raises(LocalPandaError, match=r"the backup .*idds\.db is damaged"):
        restore(directory)
    with pytest.raises(LocalPandaError, match=f"there is no backup yesterday in .*; there are: {made.name}"):
        restore(directory, "yesterday")
    assert {path.name: path.stat().st_ino for path in directory.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("name", list(_TABLES))
def test_server_refuses_a_damaged_database_and_goes_on_from_a_backup(tmp_path, name):
    directory = tmp_path / "state"
    ran = tmp_path / "ran"
    command = f'echo "${{IN/L}}" >> {ran}; while ! test -e {tmp_path}/gate; do sleep 0.05; done'
    try:
        endpoint = instance.start(directory, slots=1, parent=os.getpid())
        client = EndpointClient(endpoint)
        first = client.submit("u_me_before", diamond(1))
        assert client.wait(first, timeout=120)[0] == "Finished"
        going = client.submit("u_me_going", [SampleTask("job", {"job:0": (), "job:1": ()}, command)])
        wait_for(ran.exists, "running job")
        instance.stop(directory)
        # With a backup of this moment.
        client = EndpointClient(instance.start(directory, parent=os.getpid()))
        lost = client.submit("u_me_lost", diamond(1, command="false"))
        wait_for(lambda: client.relay("get_requests", request_id=lost.request_id), "request")
        instance.stop(directory)
        _cut(directory / name)
        with pytest.raises(LocalPandaError, match=rf"(?s){name} is damaged.*panda_local restore.*Backups: "):
            instance.start(directory)
        done = CliRunner().invoke(main, ["restore", "-d", str(directory), "--yes"])
        assert done.exit_code == 0, done.output
        client = EndpointClient(instance.start(directory, parent=os.getpid()))
        assert client.fetch_status(first)[0] == "Finished"
        (tmp_path / "gate").touch()
        assert client.wait(going, timeout=120)[0] == "Finished"
        again = client.submit("u_me_after", diamond(1))
        assert client.wait(again, timeout=120)[0] == "Finished"
        found = client.api("task/get_tasks_detailed_info_since")["data"]
        assert sorted({task["taskName"][:11] for task in found}) == [
            "u_me_after_", "u_me_before", "u_me_going_",
        ]  # fmt: skip
    finally:
        instance.stop(directory)


@pytest.mark.slow
@pytest.mark.parametrize("act", ["deleted", "replaced", "cut"])
def test_file_that_is_lost_while_the_server_runs_is_noticed(tmp_path, act):
    directory = tmp_path / "state"
    endpoint = instance.start(directory, slots=1, parent=os.getpid())
    try:
        client = EndpointClient(endpoint)
        assert client.wait(client.submit("u_me_before", diamond(1)), timeout=120)[0] == "Finished"
        path = directory / "panda.db"
        if act == "replaced":
            shutil.copy(path, tmp_path / "copy")
            os.replace(tmp_path / "copy", path)
        elif act == "cut":
            # What the log holds is in the file after this, and it has its size.
            connection = sqlite3.connect(path)
            connection.execute("PRAGMA wal_checkpoint(FULL)")
            connection.close()
            # The server looks each second, and knows this size when another run has ended.
            again = client.submit("u_me_again", diamond(1))
            assert client.wait(again, timeout=120)[0] == "Finished"
            with path.open("r+b") as stream:
                stream.truncate(4096)
        else:
            path.unlink()
        wait_for(lambda: instance.status(endpoint)["trouble"], "trouble", timeout=20)
        text = instance.status(endpoint)["trouble"]["text"]
        assert f"{path} was {act} while the server runs" in text or "is damaged" in text
        with pytest.raises(LocalPandaError, match="takes no runs now: "):
            client.submit("u_me_after", diamond(1))
    finally:
        instance.stop(directory)
    # What was cut may be whole in the log, and what has replaced it is a whole database.
    if act == "deleted":
        with pytest.raises(LocalPandaError, match=r"panda\.db is missing"):
            instance.start(directory, parent=os.getpid())


def test_file_that_grows_while_many_look_is_no_cut_one(tmp_path):
    path = tmp_path / "panda.db"
    path.write_bytes(b"x")
    storage = Storage(tmp_path, least_room=0)
    storage.watch([path])
    done = threading.Event()
    found = []

    def look():
        while not done.is_set():
            storage.check()
            found.append(storage.look())

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    with path.open("ab", buffering=0) as stream:
        for _ in range(2000):
            stream.write(b"x")
    done.set()
    for thread in threads:
        thread.join()
    assert set(found) == {None}
