"""Who is at the other end of a loopback connection: on a machine with several
users, others must not be able to have commands run as this one.
"""

from __future__ import annotations

__all__ = ["owner_of_peer"]

from pathlib import Path

_TABLES = (("/proc/net/tcp", "0100007F"), ("/proc/net/tcp6", "0000000000000000FFFF00000100007F"))


def owner_of_peer(
    peer_port: int, own_port: int, *, tables: tuple[tuple[str, str], ...] = _TABLES
) -> int | None:
    """Tell the user id that owns the client's end of a connection.

    Parameters
    ----------
    peer_port, own_port : `int`
        Ports of the client's and of our end, both on 127.0.0.1.
    tables : `tuple`, optional
        Files of the kernel's connection tables with the notation of the
        loopback address in each.

    Returns
    -------
    uid : `int` or `None`
        `None` if the connection is not found, for instance because the
        client has closed it already.
    """
    for path, loopback in tables:
        local = f"{loopback}:{peer_port:04X}"
        remote = f"{loopback}:{own_port:04X}"
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        for line in lines[1:]:
            fields = line.split()
            if fields[1] == local and fields[2] == remote:
                return int(fields[7])
    return None
