"""An object store that checks credentials: OpenStack Swift behind its S3
interface, on one disk, in four processes.

Its requirements are many, so it has an environment of its own, made once
and kept in a folder that the caller names.
"""

from __future__ import annotations

import fcntl
import getpass
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from .process import ServerProcess, answers, free_port

_REQUIREMENTS = ("swift==2.38.3", "keystonemiddleware")

_HASHES = """
[swift-hash]
swift_hash_path_prefix = a
swift_hash_path_suffix = b
[storage-policy:0]
name = only
default = yes
policy_type = replication
"""

_STORAGE = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
user = {user}
workers = 0
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
fallocate_reserve = 0
"""

# No memcached runs at port 1: the cache is in vain, but must be in the pipeline.
_PROXY = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
user = {user}
workers = 0
[pipeline:main]
pipeline = catch_errors cache s3api tempauth bulk slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""


def make_environment(folder: Path) -> Path:
    """Make the environment if it is not there; the folder of its programs."""
    programs = folder / "venv" / "bin"
    complete = folder / "complete"
    with (folder / "lock").open("w") as lock:
        # Tests may run in several processes.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            for command in (
                [sys.executable, "-m", "venv", "--clear", str(folder / "venv")],
                [str(programs / "pip"), "install", "--quiet", "--no-compile", *_REQUIREMENTS],
            ):
                subprocess.run(command, check=True, timeout=600)
            complete.touch()
    return programs


class SwiftServer:
    """Swift's account, container, object and proxy servers.

    Parameters
    ----------
    folder : `pathlib.Path`
        Where it keeps everything.
    programs : `pathlib.Path`
        Where its programs are (`make_environment`).
    """

    key = "test:tester"
    secret = "open-sesame"

    def __init__(self, folder: Path, programs: Path) -> None:
        self._folder = folder
        self._programs = programs
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        self._configure("proxy", _PROXY, port)
        (folder / "swift.conf").write_text(_HASHES)
        (folder / "devices" / "d0").mkdir(parents=True)
        for kind in ("account", "container", "object"):
            port = free_port()
            self._configure(kind, _STORAGE, port)
            self._make_ring(kind, port)

    def _configure(self, kind: str, template: str, port: int) -> None:
        values = {"port": port, "kind": kind, "folder": self._folder, "user": getpass.getuser()}
        (self._folder / f"{kind}.conf").write_text(template.format(secret=self.secret, **values))

    def _make_ring(self, kind: str, port: int) -> None:
        builder = [str(self._programs / "swift-ring-builder"), str(self._folder / f"{kind}.builder")]
        for arguments in (
            ("create", "1", "1", "0"),
            ("add", f"r1z1-127.0.0.1:{port}/d0", "1"),
            ("rebalance",),
        ):
            subprocess.run([*builder, *arguments], check=True, capture_output=True, timeout=60)

    def __enter__(self):
        with ExitStack() as stack:
            for kind in ("account", "container", "object", "proxy"):
                stack.enter_context(self._process(kind))
            self._servers = stack.pop_all()
        return self

    def _process(self, kind: str) -> ServerProcess:
        def ready() -> bool:
            # Storage servers are up when the proxy can make a bucket.
            return kind != "proxy" or answers(self.endpoint + "/info")

        command = [str(self._programs / f"swift-{kind}-server"), str(self._folder / f"{kind}.conf")]
        return ServerProcess(command, ready=ready, log=self._folder / f"{kind}.log")

    def __exit__(self, *_):
        self._servers.close()

    def client_environment(self, *, secret: str = "", key: str = "") -> dict[str, str]:
        """Variables that lead a client here."""
        return {
            "S3_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": key or self.key,
            "AWS_SECRET_ACCESS_KEY": secret or self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def make_bucket(self, name: str) -> None:
        """Make a bucket, as soon as the storage servers let it."""
        import boto3
        from botocore.config import Config

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
            config=Config(retries={"mode": "standard", "max_attempts": 10}),
        )
        client.create_bucket(Bucket=name)
