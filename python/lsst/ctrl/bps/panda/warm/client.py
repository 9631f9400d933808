"""What jobs find as ``pipetask``: hands a call over to a process that is ready, or starts the real script.

Run as a file, ``python -I -S client.py CALLED-AS ARGUMENTS``, so built-in modules only: each further import
costs a job milliseconds.  Whatever is not as expected ends in the real script.
"""

__all__ = ["main"]

import _signal as signal  # type: ignore[import-not-found]
import _socket as socket
import posix
import sys

FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


def find_script(called: str) -> str:
    """Find the real script on PATH, in other folders than that of the client."""
    own, _, name = called.rpartition("/")
    here = posix.stat(own or ".")
    for folder in posix.environ.get(b"PATH", b"").split(b":"):
        path = f"{folder.decode(errors='surrogateescape') or '.'}/{name}"
        try:
            there = posix.stat(path.rpartition("/")[0])
            regular = posix.stat(path).st_mode & 0o170000 == 0o100000
        except OSError:
            continue
        same = (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
        if regular and not same and posix.access(path, posix.X_OK):
            return path
    return ""


def connect(address: str) -> "socket.socket":
    """Connect to the job's socket; by its folder, since an address may have 107 bytes only."""
    folder, _, name = address.rpartition("/")
    directory = posix.open(folder, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(f"/proc/self/fd/{directory}/{name}")
    posix.close(directory)
    return connection


def receive(connection: "socket.socket", size: int) -> bytes:
    """Receive a number of bytes; fewer at the end of the connection."""
    data = b""
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return data


def find_obstacle() -> str:
    """Tell what a warm process could not take over, if anything."""
    for name in posix.listdir("/proc/self/fd"):
        try:
            target = posix.readlink(f"/proc/self/fd/{name}")
        except OSError:
            # That of the listing itself.
            continue
        if int(name) > 2 and not target.startswith("/proc/"):
            return "a further file is open"
    for number in (0, 1, 2):
        try:
            posix.fstat(number)
        except OSError:
            return "a standard stream is closed"
    return ""


def ask(script: str, arguments: "list[str]") -> "socket.socket | None":
    """Ask for a warm process; `None` if this call has to start cold."""
    obstacle = find_obstacle()
    connection = connect(posix.environ[b"PANDA_LOCAL_WARM"].decode(errors="surrogateescape"))
    if obstacle:
        text = b"\0" + obstacle.encode()
        connection.sendall(b"W" + len(text).to_bytes(4, "big") + text)
        connection.close()
        return None
    place = posix.open(".", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    words = [script.encode(errors="surrogateescape"), b"%d" % len(arguments)]
    words += [argument.encode(errors="surrogateescape") for argument in arguments]
    words += [name + b"=" + value for name, value in posix.environ.items()]
    text = b"\0".join(words)
    passed = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2, place))
    connection.sendmsg([b"W"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
    connection.sendall(len(text).to_bytes(4, "big") + text)
    if receive(connection, 1) != b"W":
        connection.close()
        return None
    posix.close(place)
    return connection


def follow(connection: "socket.socket") -> None:
    """Pass signals on to the warm process, and end as it ends."""

    def forward(number: int, frame: object) -> None:
        try:
            connection.send(bytes([number]))
        except OSError:
            pass

    for number in FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward)
    end = receive(connection, 2)
    code, number = end if len(end) == 2 else (0, signal.SIGKILL)
    if number:
        import resource

        # No second image of what has crashed.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        posix.kill(posix.getpid(), number)
        code = 128 + number
    posix._exit(code)


def main(called: str, arguments: "list[str]") -> None:
    """Run a script, warm or cold."""
    for name in (b"LD_LIBRARY_PATH", b"LD_PRELOAD"):
        # Meant for the script: this interpreter might not start with them.
        value = posix.environ.pop(b"PANDA_LOCAL_WARM_" + name, None)
        if value is not None:
            posix.environ[name] = value
    script = find_script(called)
    if not script:
        posix.write(2, f"{called.rpartition('/')[2]}: command not found\n".encode())
        posix._exit(127)
    try:
        connection = ask(script, arguments)
    except (OSError, KeyError):
        connection = None
    if connection is not None:
        follow(connection)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        # Python ignores them.
        signal.signal(number, signal.SIG_DFL)
    try:
        posix.execve(script, [script, *arguments], posix.environ)
    except OSError as error:
        posix.write(2, f"{script}: {error.strerror}\n".encode(errors="surrogateescape"))
        posix._exit(126)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
