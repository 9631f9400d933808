"""Another user of this machine, who talks to a port: a process of its own, which gives up its rights.

`SecondUser` is the side of the tests.  Run as a file it reads what to do, one JSON object, from
its standard input, and answers with one; it needs the standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

NOBODY = 65534


def say(value: object) -> None:
    """Write an answer, a line of JSON."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def exchange(port: int, request: str, *, source: str = "", family: str = "4", read: bool = True) -> str:
    """Send bytes and return all that comes back; without reading, close at once."""
    kind = socket.AF_INET6 if family == "6" else socket.AF_INET
    with socket.socket(kind, socket.SOCK_STREAM) as connection:
        connection.settimeout(60)
        if source:
            connection.bind((source, 0))
        connection.connect(("::ffff:127.0.0.1" if family == "6" else "127.0.0.1", port))
        connection.sendall(request.encode("latin-1"))
        if not read:
            return ""
        pieces = []
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                pieces.append(piece)
        return b"".join(pieces).decode("latin-1")


def upload(port: int, head: str, size: int) -> int:
    """Send a long body; return how many bytes of it went out before the other side closed."""
    sent = 0
    block = b"x" * 65536
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head.encode())
        with contextlib.suppress(OSError):
            while sent < size:
                sent += connection.send(block)
    return sent


def flood(port: int, idle: int, slow: int) -> None:
    """Open connections that say nothing, and ones that say their headers byte by byte; tell when all are
    open, and, when all of them were closed, how many.
    """
    connections = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(idle + slow)]
    say("open")
    left = set(connections)
    while left:
        for number, connection in enumerate(connections):
            if connection not in left:
                continue
            try:
                connection.setblocking(False)
                if number >= idle:
                    connection.send(b"X")
                if not connection.recv(1):
                    left.discard(connection)
            except BlockingIOError:
                pass
            except OSError:
                left.discard(connection)
        time.sleep(0.05)
    say(len(connections))


def main() -> None:
    work = json.loads(sys.stdin.readline())
    # Loaded while it can still be read.
    "localhost".encode("idna")
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    if "flood" in work:
        flood(**work["flood"])
    elif "upload" in work:
        say(upload(**work["upload"]))
    else:
        replies = []
        for item in work["exchange"]:
            try:
                replies.append(exchange(**item))
            except OSError as error:
                replies.append(f"no connection: {error}")
        say(replies)


class SecondUser:
    """Starts that process; needs to be root."""

    def _start(self, work: object) -> subprocess.Popen:
        pipe = subprocess.PIPE
        process = subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, text=True)
        process.stdin.write(json.dumps(work) + "\n")
        process.stdin.flush()
        return process

    def _ask(self, work: object) -> object:
        with self._start(work) as process:
            return json.loads(process.communicate(timeout=300)[0])

    def exchange(self, requests: list[dict]) -> list[str]:
        """Send requests one after the other and return the replies."""
        return self._ask({"exchange": requests})

    def upload(self, **options) -> int:
        """Send a long body and return how much of it went out."""
        return self._ask({"upload": options})

    def flood(self, **options) -> subprocess.Popen:
        """Begin to hold connections; a line is written when all are open, and one when all were closed."""
        return self._start({"flood": options})


if __name__ == "__main__":
    main()
