"""A real Rucio server on loopback, on SQLite.

It is the server from the package index behind waitress, with its own REST
application, permissions ("generic" policy) and data base layer.  What is not
real: over SQLite one line lets Rucio use SQLite's JSON functions, which it
would refuse (without them it keeps no metadata); nothing moves files, as
neither its daemons nor a transfer service run.  A rule for a place that has
the files is ``OK`` at once; for another place it stays ``REPLICATING`` until
`RucioServer.transfer` copies the files and says so.  Files that come to a
dataset after its rules are looked at by `RucioServer.evaluate_rules` (the
server's own daemon, run once).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from .process import ServerProcess, answers, free_port
from .rucio_environment import find_or_make

_SERVER = """
[common]
logdir = {folder}
loglevel = WARNING
mailtemplatedir = {folder}
[database]
default = sqlite:///{folder}/rucio.db
[bootstrap]
userpass_identity = root
userpass_pwd = {password}
userpass_email = root@localhost
[policy]
permission = generic
schema = generic
lfn2pfn_algorithm_default = hash
support = none
support_rucio = none
[metadata]
plugins = rucio.core.did_meta_plugins.json_meta.JSONDidMeta
[core]
geoip_download_url = http://127.0.0.1:9/none
"""

_CLIENT = """
[client]
rucio_host = {url}
auth_host = {url}
auth_type = userpass
account = {account}
username = {account}
password = {password}
auth_token_file_path = {folder}/token-{account}
request_retries = 3
"""

_FAR_AWAY = 10**15


class RucioServer:
    """Rucio's REST server.

    Parameters
    ----------
    folder : `pathlib.Path`
        Where it keeps everything.
    programs : `pathlib.Path`, optional
        Programs of its environment; found or made by default.

    Attributes
    ----------
    url : `str`
        Where it listens.
    worker_python : `pathlib.Path`
        A Python with Butler, Rucio's clients and ``lsst-rucio-register``, but
        without this plugin, as a worker might have it.
    """

    def __init__(self, folder: Path, programs: Path | None = None) -> None:
        self._folder = folder
        self.programs = programs or find_or_make()
        self.worker_python = self.programs / "python"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._settings = folder / "server.cfg"
        self._settings.write_text(_SERVER.format(folder=folder, password=_password("root")))
        self._process = ServerProcess(
            [str(self.worker_python), "-P", str(Path(__file__).parent / "rucio_program.py"), str(port)],
            ready=lambda: answers(f"{self.url}/ping"),
            log=folder / "server.log",
            environment={"RUCIO_CONFIG": str(self._settings), "RUCIO_HOME": str(folder), "HOME": str(folder)},
            seconds=180,
        )
        self._clients: dict[str, object] = {}

    def __enter__(self):
        self._process.__enter__()
        return self

    def __exit__(self, *_):
        self._process.stop()

    def client_configuration(self, account: str = "root") -> Path:
        """Write the file that ``RUCIO_CONFIG`` names for an account.

        Each account has a file of its own, with a place of its own for the
        token, which Rucio's clients otherwise keep in ``/tmp`` by account
        name only, whatever the server.
        """
        path = self._folder / f"client-{account}.cfg"
        if not path.exists():
            values = {"url": self.url, "account": account, "folder": self._folder}
            path.write_text(_CLIENT.format(password=_password(account), **values))
        return path

    def client_environment(self, account: str = "root") -> dict[str, str]:
        """Variables that lead a client here."""
        return {"RUCIO_CONFIG": str(self.client_configuration(account))}

    def client(self, account: str = "root"):
        """Return a client (of the tests' own environment)."""
        from rucio.client import Client

        if account not in self._clients:
            name = sys.argv[0]
            # It reads its configuration once in a process; a test must not depend on who was first.
            self._clients[account] = Client(
                rucio_host=self.url,
                auth_host=self.url,
                account=account,
                auth_type="userpass",
                creds={"username": account, "password": _password(account)},
            )
            # It also shortens the name of the program.
            sys.argv[0] = name
        return self._clients[account]

    def add_account(self, name: str) -> None:
        """Add an account that may log in and has no rights."""
        client = self.client()
        client.add_account(name, "USER", f"{name}@localhost")
        client.add_identity(
            name, name, "USERPASS", f"{name}@localhost", default=True, password=_password(name)
        )

    def add_scope(self, scope: str, account: str = "root") -> None:
        """Add a scope that belongs to an account."""
        self.client().add_scope(account, scope)

    def add_rse(self, name: str, prefix: Path, *, account: str = "root") -> None:
        """Add a storage element: a folder whose paths are the names.

        Parameters
        ----------
        name : `str`
            Name of the RSE.
        prefix : `pathlib.Path`
            Folder in which a folder of the scope's name lies.
        account : `str`, optional
            Account that may have rules there.
        """
        client = self.client()
        client.add_rse(name, deterministic=False)
        operations = {"read": 1, "write": 1, "delete": 1}
        wide = operations | {"third_party_copy_read": 1, "third_party_copy_write": 1}
        client.add_protocol(
            name,
            {
                "hostname": "localhost",
                "scheme": "file",
                "port": 0,
                "prefix": str(prefix),
                "impl": "rucio.rse.protocols.posix.Default",
                "domains": {"lan": operations, "wan": wide},
            },
        )
        self.set_limit(name, account)

    def set_limit(self, rse: str, account: str = "root", limit: int = _FAR_AWAY) -> None:
        """Say how many bytes an account's rules may hold at an RSE."""
        self.client().set_local_account_limit(account, rse, limit)

    @staticmethod
    def transfer_url(prefix: Path) -> str:
        """Return the ``dtn_url`` of an RSE made by `add_rse`."""
        return f"file://localhost:0{prefix}"

    def transfer(self, scope: str, dataset: str, rse: str, prefix: Path) -> list[Path]:
        """Do what the transfer daemons would: copy what a rule waits for, and
        tell the server.

        Parameters
        ----------
        scope, dataset : `str`
            The dataset.
        rse : `str`
            Where the files are to go.
        prefix : `pathlib.Path`
            Folder of that RSE.

        Returns
        -------
        paths : `list` [`pathlib.Path`]
            The copies.
        """
        client = self.client()
        copies, states = [], []
        replicas = client.list_replicas([{"scope": scope, "name": dataset}], all_states=True)
        for replica in replicas:
            # No state: no rule has wanted it there yet.
            if replica["states"].get(rse, "AVAILABLE") == "AVAILABLE":
                continue
            source = next(
                urlsplit(pfn).path
                for pfn, facts in replica["pfns"].items()
                if replica["states"][facts["rse"]] == "AVAILABLE"
            )
            target = prefix / scope / replica["name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            copies.append(target)
            states.append({"scope": scope, "name": replica["name"], "state": "A"})
        if states:
            client.update_replicas_states(rse, states)
        return copies

    def evaluate_rules(self) -> None:
        """Let the server's daemon apply rules to files that came later."""
        environment = {"RUCIO_CONFIG": str(self._settings), "RUCIO_HOME": str(self._folder)}
        subprocess.run(
            [str(self.programs / "rucio-judge-evaluator"), "--run-once"],
            env={**os.environ, **environment},
            check=True,
            capture_output=True,
            timeout=180,
        )


def _password(account: str) -> str:
    """Return the password of an account."""
    return f"secret-of-{account}"
