"""What a command ends with is the signal that came, whatever becomes of its exception."""

import os
import signal
import subprocess
import sys
import time
from collections import deque

import pytest

from sdcli import cli
from sdcli.jobs import making
from sdcli.terminal import signals
from tests.shell import ROOT, clean_environment


@pytest.fixture(autouse=True)
def _handlers():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has the tests, and what they start, ignore
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signals._seen.clear()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("becomes", [ImportError, SystemError, None])
def test_a_signal_that_becomes_another_exception_is_still_the_signal(monkeypatch, capsys, number, becomes):
    def interrupted(**given):
        try:
            os.kill(os.getpid(), number)
            time.sleep(1)
        except BaseException as error:
            if becomes is None:
                raise
            raise becomes("initialization failed") from error

    monkeypatch.setattr(cli, "application", lambda names: interrupted)
    assert cli.run([]) == 128 + number
    assert capsys.readouterr().err == ""


def test_a_bug_after_an_earlier_command_s_signal_is_a_bug(monkeypatch, capsys):
    signals._seen.append(signal.SIGINT)

    def broken(**given):
        raise ImportError("x")

    monkeypatch.setattr(cli, "application", lambda names: broken)
    assert cli.run([]) == 1


def test_a_signal_while_a_batch_imports_is_no_job_s_failure(monkeypatch):
    class Maker:
        def load(self, weights, recipe):
            signals._seen.append(signal.SIGINT)
            raise ImportError("numpy.core.multiarray failed to import")

    class Entry:
        name = "m"

    class Planned:
        weights = recipe = None
        model = type("Model", (), {"entry": Entry})

    run = making._Run(making.Batch((), "."), None, None)
    with pytest.raises(KeyboardInterrupt):
        making._load(run, Maker(), deque([[Planned()]]))
    assert run.failed == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_anything_is_under_way_ends_without_a_word(tmp_path, number):
    probe = "import os, sys; from sdcli import __main__ as entry\n"
    probe += (
        f"class Slow:\n def find_spec(self, name, *_): name == 'sdcli.cli' and os.kill(os.getpid(), {int(number)})\n"
    )
    probe += "sys.meta_path.insert(0, Slow()); sys.argv = ['sdcli', '--version']; entry.main()"
    environment = clean_environment(tmp_path) | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, b"", b"")


def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.watch()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
