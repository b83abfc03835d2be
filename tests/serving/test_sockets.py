"""Binding: who may connect, what is replaced, what is left alone."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from sdcli.errors import OutputError, OutputExists, UsageError
from sdcli.serving.sockets import loopback_port, unix_socket


@pytest.fixture(autouse=True)
def _short_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_it_listens_for_its_owner_alone_and_is_gone_at_the_end():
    before = os.umask(0)  # the mode does not come from the umask
    try:
        with unix_socket("s.sock") as listener:
            mode = Path("s.sock").lstat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
            assert listener.address == "s.sock"
            connect("s.sock")
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert not Path("s.sock").exists()


def test_it_can_be_withdrawn_before_it_closes():
    with unix_socket("s.sock") as listener:
        listener.withdraw()
        assert not Path("s.sock").exists()


def test_a_socket_that_nobody_listens_at_is_replaced():
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind("s.sock")
    assert Path("s.sock").exists()
    with unix_socket("s.sock"):
        connect("s.sock")


def test_a_socket_that_somebody_listens_at_is_not():
    with unix_socket("s.sock"):
        with pytest.raises(OutputExists, match=r"another process listens on s\.sock"), unix_socket("s.sock"):
            pass
        connect("s.sock")


def test_of_many_that_find_a_dead_socket_one_gets_it():
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind("s.sock")
    outcomes: list[str] = []
    barrier = threading.Barrier(6)

    def race() -> None:
        barrier.wait()
        try:
            with unix_socket("s.sock"):
                outcomes.append("listens")
                barrier.wait()
        except OutputExists:
            outcomes.append("refused")
            barrier.wait()

    threads = [threading.Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["listens"] + ["refused"] * 5


def test_a_file_that_is_no_socket_is_left_alone():
    Path("s.sock").write_text("mine")
    with pytest.raises(OutputExists, match="not a socket"), unix_socket("s.sock"):
        pass
    assert Path("s.sock").read_text() == "mine"


def test_the_socket_of_a_successor_is_left_alone():
    with unix_socket("s.sock"):
        Path("s.sock").rename("old")
        Path("s.sock").write_text("another's")
    assert Path("s.sock").read_text() == "another's"


@pytest.mark.parametrize(
    ("path", "error", "hint"), [("no/such/s.sock", OutputError, "mkdir -p no/such"), ("x" * 108, UsageError, "shorter")]
)
def test_places_that_cannot_be(path, error, hint):
    with pytest.raises(error) as caught, unix_socket(path):
        pass
    assert hint in caught.value.hint


def test_a_port_is_on_loopback_and_one_that_is_taken_is_refused():
    with loopback_port(0) as listener:
        host, port = listener.socket.getsockname()
        assert host == "127.0.0.1"
        assert listener.address == f"http://127.0.0.1:{port}/v1"
        with pytest.raises(OutputError, match=str(port)), loopback_port(port):
            pass
