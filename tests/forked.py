"""The command as forks of one process that has imported the libraries already, for scripts with many commands.

`serve(SOCKET)` waits for commands; `python -IS tests/forked.py SOCKET ARGUMENTS…` runs `sdcli ARGUMENTS…` in a fork,
with the caller's directory, environment and standard streams, and exits as it does. Only the start of the
interpreter and the imports are saved.
"""

import json
import os
import socket
import sys
import traceback
from contextlib import suppress

_LONGEST = 2**20


def serve(path: str) -> None:
    """Import what pictures need, then run each command that comes in a fork. Never returns."""
    import sdcli.diffusion.pipeline
    import sdcli.models.assemble
    import sdcli.models.loading.controlnet  # noqa: F401
    from sdcli.__main__ import main

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:  # waits for the command, so that several can run at once
                listening.close()
                _run(connection, main)
            connection.close()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _run(connection: socket.socket, main) -> None:
    data, streams, _, _ = socket.recv_fds(connection, _LONGEST, 3)
    asked = json.loads(data)
    child = os.fork()
    if child == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
        os.chdir(asked["directory"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.argv = ["sdcli", *asked["arguments"]]
        status = 1
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:  # noqa: BLE001  as the interpreter does at its end
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    for stream in streams:
        os.close(stream)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(str(status).encode())
    os._exit(0)


def call(path: str, arguments: list[str]) -> int:
    """Run a command in the process that waits at `path`; returns its exit status."""
    asked = {"arguments": arguments, "directory": os.getcwd(), "environment": dict(os.environ)}  # noqa: PTH109
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
        return int(connection.recv(16) or b"1")


if __name__ == "__main__":
    sys.exit(call(sys.argv[1], sys.argv[2:]))
