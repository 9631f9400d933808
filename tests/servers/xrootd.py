"""An XRootD server with its HTTP door (Debian's package xrootd-server); it
gives Adler-32 checksums when asked.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .process import ServerProcess, answers, free_port

_CONFIGURATION = """
all.export /area
oss.localroot {folder}/data
all.adminpath {folder}/admin
all.pidpath {folder}/run
xrd.port {own_port}
xrd.network nodnr norpipa
xrd.protocol http:{port} libXrdHttp.so
http.listingdeny no
xrootd.chksum max 4 adler32 md5 crc32
"""


class XrootdServer(ServerProcess):
    """xrootd on the loopback interface; writable below ``url``.

    It refuses to run as root, so it is another user then, who must be able
    to reach the folder.
    """

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/area/"
        self.folder = folder / "data" / "area"
        self.folder.mkdir(parents=True)
        for name in ("admin", "run"):
            (folder / name).mkdir()
        configuration = folder / "xrootd.cfg"
        configuration.write_text(_CONFIGURATION.format(folder=folder, own_port=free_port(), port=port))
        command = [
            "/usr/bin/xrootd",
            "-c",
            str(configuration),
            "-n",
            "test",
            "-l",
            str(folder / "xrootd.log"),
        ]
        if os.getuid() == 0:
            _give_away(folder)
            command += ["-R", "xrootd"]
        super().__init__(
            command, ready=lambda: answers(self.url, method="OPTIONS"), log=folder / "output.log", seconds=30
        )


def _give_away(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, "xrootd", "xrootd")
    # Temporary folders of pytest are for their owner only.
    for above in folder.parents:
        if above.stat().st_uid == os.getuid() and len(above.parts) > 2:
            above.chmod(above.stat().st_mode | 0o011)
