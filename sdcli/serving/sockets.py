"""The sockets that the warm process listens on. Knows nothing of HTTP."""

from __future__ import annotations

import fcntl
import os
import shlex
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sdcli.errors import OutputError, OutputExists, UsageError

_MAX_PATH_BYTES = 107  # sun_path of unix(7), less its NUL
_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Listener:
    """A listening socket, its address as text, and a function that removes the socket file."""

    socket: socket.socket
    address: str
    withdraw: Callable[[], None]


@contextmanager
def unix_socket(path: str) -> Iterator[Listener]:
    """Listen on a Unix socket at `path`, created with mode 0600 and removed at the end.

    A socket file that no process listens on is replaced. Raises OutputExists if a process does, or the file is not a
    socket, OutputError if the socket cannot be created, and UsageError if the path is too long.
    """
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise UsageError(
            f"--socket {path} is longer than {_MAX_PATH_BYTES} bytes, the limit of a socket's path",
            "choose a shorter path, or a relative one",
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _alone_in(Path(path).parent):
            _clear(path)
            umask = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(umask)
            listener.listen()
        ours = os.lstat(path)
    except OSError as error:
        listener.close()
        raise _failed(path, error) from error
    except BaseException:
        listener.close()
        raise
    withdraw = partial(_remove, path, ours)
    try:
        yield Listener(listener, path, withdraw)
    finally:
        withdraw()
        listener.close()


def _remove(path: str, ours: os.stat_result) -> None:
    """Remove the socket file, unless another process has replaced it."""
    with suppress(OSError):
        if os.path.samestat(os.lstat(path), ours):
            Path(path).unlink()


@contextmanager
def loopback_port(port: int) -> Iterator[Listener]:
    """Listen on 127.0.0.1 at `port`, or a free port for 0. Raises OutputError if it is in use."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise OutputError(
            f"cannot listen on {_HOST}:{port}: {error.strerror}", "choose another --port; 0 selects a free one"
        ) from error
    with listener:
        yield Listener(listener, f"http://{_HOST}:{listener.getsockname()[1]}/v1", lambda: None)


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Lock the directory, so that no other server checks the socket file before this one has bound it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _clear(path: str) -> None:
    """Remove the socket file of a process that was killed."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OutputExists(f"{path} already exists and is not a socket", "choose another --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
        except TimeoutError:
            pass
    raise OutputExists(f"another process listens on {path}", "use that process, stop it, or choose another --socket")


def _failed(path: str, error: OSError) -> OutputError:
    directory = Path(path).parent
    hint = f"create the directory first: mkdir -p {shlex.quote(str(directory))}"
    return OutputError(
        f"cannot listen on {path}: {error.strerror or error}",
        hint if isinstance(error, FileNotFoundError) else "choose another --socket",
    )
