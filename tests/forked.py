"""The command as forks of one process that has imported the libraries already: only starting it and importing is saved.

`waiting` starts it; `python -IS forked.py SOCKET ARGUMENTS…` runs `sdcli ARGUMENTS…` in
a fork, which has the caller's directory, environment and standard streams, gets the signals that the caller gets, ends
with it if it is killed, and ends it as it ends. Not for what a fork shares with the process that waits: its terminal,
process group and mounts, and what is imported.
"""

import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path

SERVE = "--serve"
_LONGEST = 2**20
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def waiting(folder: Path, environment: dict[str, str], master: int) -> list[str]:
    """The words that run the command in a fork of a process that waits with a socket in `folder`.

    It is started if there is none, and ends after the process `master`.
    """
    import fcntl
    import subprocess
    import time

    place = folder / "socket"
    near = os.path.relpath(place, Path.cwd())  # temporary directories can be too long for a socket
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            words = [sys.executable, "-m", "tests.forked", SERVE, near, str(master)]
            process = subprocess.Popen(words, env=environment, start_new_session=True)
            while not place.exists():
                assert process.poll() is None
                time.sleep(0.05)
            process.returncode = 0  # it is not waited for
    return [sys.executable, "-IS", __file__, str(place)]


def serve(path: str, master: int) -> None:
    """Import all modules, then run each command that comes in a fork, until the process `master` has ended."""
    import sdcli

    for module in pkgutil.walk_packages(sdcli.__path__, "sdcli."):
        importlib.import_module(module.name)
    gc.freeze()  # so that forks do not copy what they only look through
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        while Path(f"/proc/{master}").exists():
            if not select.select([listening], [], [], 1.0)[0]:
                continue
            connection, _ = listening.accept()
            if os.fork() == 0:  # waits for the command, so that several can run at once
                listening.close()
                _run(connection)
            connection.close()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _run(connection: socket.socket) -> None:
    data, streams, _, _ = socket.recv_fds(connection, _LONGEST, 3)
    child = os.fork()
    if child == 0:
        connection.close()
        _become(json.loads(data), streams)
    for stream in streams:
        os.close(stream)
    connection.sendall(f"{child}\n".encode())
    threading.Thread(target=_end_with_caller, args=(connection, child), daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(BrokenPipeError):
        connection.sendall(str(status).encode())
    os._exit(0)


def _end_with_caller(connection: socket.socket, child: int) -> None:
    connection.recv(1)  # nothing comes but the end
    os.kill(child, signal.SIGKILL)


def _become(asked: dict, streams: list[int]) -> None:
    """Run the command as a fresh interpreter does, and end. Never returns."""
    from sdcli.__main__ import main
    from tests.shell import forget

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(asked["directory"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["sdcli", *asked["arguments"]]
    forget()
    status = 1
    try:
        main()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:  # noqa: BLE001  as the interpreter does at its end
        traceback.print_exc()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)  # without taking all the modules apart, which takes longer than most commands


def call(path: str, arguments: list[str]) -> int:
    """Run a command in the process that waits at `path`; returns its exit status."""
    asked = {"arguments": arguments, "directory": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
        answer = connection.makefile()
        child = int(answer.readline())
        for number in _PASSED_ON:
            signal.signal(number, lambda given, _: os.kill(child, given))
        status = int(answer.read() or "1")
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    if sys.argv[1] == SERVE:
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(call(sys.argv[1], sys.argv[2:]))
