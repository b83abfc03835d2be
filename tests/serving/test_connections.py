"""What silent, slow and absent clients can do to a server: nothing."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from sdcli.errors import UsageError
from sdcli.serving.connections import Connection
from sdcli.serving.limits import Limits
from sdcli.serving.log import RequestLog
from sdcli.serving.process import _Server

HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
LARGE = 32 * 2**20


async def answer(request: Request) -> Response:
    """As many bytes as the body asks for, or an exception."""
    body = await request.body()
    if body == b"fail":
        raise RuntimeError("planted")
    return Response(b"x" * int(body))


@contextmanager
def listening(most: int = 4, seconds: float = 30, hurried: bool = True, quiet: bool = True) -> Iterator[int]:
    """A server of `answer` in a thread; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = RequestLog(Starlette(routes=[Route("/", answer, methods=["POST"])]), quiet=quiet)
        connection = partial(Connection, most=most, seconds=seconds, hurried=hurried)
        options: dict[str, Any] = {"lifespan": "off", "log_config": None, "log_level": "critical"}
        server = _Server(uvicorn.Config(app, http=cast(Any, connection), access_log=False, **options))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


def connected(port: int, stack: ExitStack, data: bytes = b"") -> socket.socket:
    client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
    client.sendall(data)
    return client


def all_of(client: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def is_closed(client: socket.socket) -> bool:
    client.settimeout(0.2)
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


@pytest.mark.parametrize("data", [b"", b"POST / HT", HEAD % 9 + b"1"], ids=["silent", "half a head", "half a body"])
def test_many_who_wait_make_room_for_who_asks(data):
    with listening(most=4) as port, ExitStack() as stack:
        waiting = []
        for _ in range(10):
            waiting.append(connected(port, stack, data))
            time.sleep(0.01)
        assert b"200 OK" in connected(port, stack, HEAD % 1 + b"7").recv(65536)
        assert [is_closed(each) for each in waiting] == [True] * 7 + [False] * 3


@pytest.mark.parametrize(
    "data",
    [b"", b"POST / HT", HEAD % 9 + b"1", HEAD % 1 + b"7" + HEAD % 9],
    ids=["silent", "half a head", "half a body", "half of a second request"],
)
def test_a_request_that_does_not_arrive_in_time_ends_its_connection(data):
    with listening(seconds=0.3) as port, ExitStack() as stack:
        client, started = connected(port, stack, data), time.monotonic()
        assert b"408 Request Timeout" in all_of(client)
        assert 0.2 < time.monotonic() - started < 5


def test_a_request_in_pieces_that_arrives_in_time_is_answered():
    with listening(seconds=1) as port, ExitStack() as stack:
        client = connected(port, stack)
        for _ in range(3):  # on one connection, each with its own time
            for piece in (HEAD[:20], HEAD[20:] % 2, b"1", b"2"):
                client.sendall(piece)
                time.sleep(0.15)
            assert client.recv(65536).endswith(b"x" * 12)


@pytest.mark.parametrize("hurried", [True, False])
def test_who_does_not_read_an_answer_keeps_it_for_a_time_only_if_everybody_may_connect(hurried):
    with listening(seconds=0.3, hurried=hurried) as port, ExitStack() as stack:
        body = str(LARGE).encode()
        client, read = connected(port, stack, HEAD % len(body) + body), 0
        time.sleep(1)
        with suppress(ConnectionResetError):
            while read < LARGE and (data := client.recv(2**20)):
                read += len(data)
        assert (read < LARGE) == hurried


def lines_of(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return capfd.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("data", "status"),
    [(HEAD % 1 + b"7", 200), (HEAD % 4 + b"fail", 500), (HEAD % 99 + b"7", 499)],
    ids=["answered", "a bug", "left"],
)
def test_a_request_is_a_line_and_who_leaves_is_no_traceback(data, status, capfd):
    with listening(quiet=False) as port, ExitStack() as stack:
        client = connected(port, stack, data)
        if status != 499:
            client.recv(65536)
        client.close()
        time.sleep(0.2)
    (line,) = lines_of(capfd)
    assert line.split()[2:5] == ["POST", "/", str(status)]


def test_a_quiet_server_writes_nothing(capfd):
    with listening(quiet=True) as port, ExitStack() as stack:
        connected(port, stack, HEAD % 1 + b"7").recv(65536)
    assert lines_of(capfd) == []


def test_who_leaves_is_no_error_to_the_server():
    async def leaves(scope: Any, receive: Any, send: Any) -> None:
        raise ClientDisconnect

    async def nothing(*_: Any) -> None: ...

    asyncio.run(RequestLog(leaves, quiet=True)({"type": "http"}, nothing, nothing))


def test_more_connections_than_files_may_be_open_are_refused(monkeypatch):
    import resource

    allowed = []

    def allow(_: int, limits: tuple[int, int]) -> None:
        if limits[0] > limits[1]:
            raise ValueError("current limit exceeds maximum limit")
        allowed.append(limits)

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 2048))
    monkeypatch.setattr(resource, "setrlimit", allow)
    Limits().reserve_files(2)
    assert allowed == [(898, 2048)]
    with pytest.raises(UsageError, match="--max-connections 900 needs 3986 open files, and the limit is 2048"):
        Limits(connections=900).reserve_files(2)


def test_silent_connections_leave_the_port_and_the_socket_to_others(warm, run, sd15):
    """At both addresses of a real server; see docs/serving.md."""
    host, port = warm.url.split("/")[2].split(":")
    with ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
        for _ in range(200):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(os.path.relpath(warm.socket))
        done = run("generate", "x", "-m", sd15, "--steps", 1, "-o", "x.png", env={"SDCLI_SOCKET": warm.socket})
        assert done.status == 0, done.stderr
        files = len(list(Path(f"/proc/{warm.process.pid}/fd").iterdir()))
        assert files < 400
