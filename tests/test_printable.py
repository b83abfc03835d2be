"""Text from files and from other programs reaches a person without what a terminal would obey."""

import io
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from sdcli.terminal import display, streams
from sdcli.terminal.printable import is_hidden, json_safe, one_line, printable

HIDDEN = ["\x1b[2J", "\x1b]0;owned\x07", "\x9b31m", "\u202egnp.exe", "\u2066", "\u200b", "\u2028", "\x7f", "\U000e0041"]
TEXTS = st.text(st.characters()) | st.lists(st.sampled_from([*HIDDEN, "fox", "\n", "é", "狐", "[bold]"])).map("".join)


def hidden_in(text: str) -> set[str]:
    return {letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n"}


@given(TEXTS)
def test_no_text_keeps_what_a_terminal_obeys(text):
    assert hidden_in(printable(text)) == set()
    assert "\n" not in printable(text)
    assert printable(text, keep="\n").count("\n") == text.count("\n")
    assert "\n" not in one_line(text)
    assert hidden_in(one_line(text)) == set()
    if not any(map(is_hidden, text)):
        assert printable(text) == text


@given(TEXTS)
def test_json_is_safe_and_says_the_same(text):
    line = streams.to_json({text: [text]})
    assert hidden_in(line) == set()
    assert json.loads(line) == {text: [text]}
    assert json_safe('{"a": "fox 狐"}') == '{"a": "fox 狐"}'


@pytest.mark.parametrize("hostile", HIDDEN)
def test_whatever_files_say_is_shown_with_escapes(run, tmp_path, hostile):
    (tmp_path / "c.toml").write_text(
        f"[models.m]\nfolder = '/x'\ndescription = {json.dumps(hostile)}\n[defaults]\noutput = {json.dumps(hostile)}\n"
    )
    (tmp_path / "jobs.jsonl").write_text(
        json.dumps({"prompt": "a", hostile: 1}) + "\n" + json.dumps({"prompt": hostile})
    )
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", f"a {hostile} fox\nSteps: 1, Sampler: {hostile}, Seed: 1, Size: 64x64, Model: kit")
    Image.new("RGB", (64, 64)).save(tmp_path / "fox.png", pnginfo=chunks)
    for words in (
        ["--config", "c.toml", "models", "list"],
        ["--config", "c.toml", "models", "list", "--json"],
        ["--config", "c.toml", "config", "show"],
        ["--config", "c.toml", "config", "show", "--json"],
        ["batch", "jobs.jsonl", "-o", "out", "--dry-run"],
        ["batch", "jobs.jsonl", "-o", "out", "--dry-run", "--json"],
        ["info", "fox.png"],
        ["info", "fox.png", "--json"],
        ["replay", "fox.png", "-o", "x.png"],
        ["generate", "a", "-m", hostile],
        ["generate", "a", "--scheduler", hostile, "--debug"],
        ["generate", "a", "-o", f"{hostile}.jpg"],
    ):
        done = run(*words)
        assert hidden_in(done.stdout.decode() + done.stderr) == set(), words


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError


@pytest.mark.parametrize("name", ["x[bold red]y", "a[/b]", "[link=x]y", "\x1b]0;owned\x07"])
def test_names_are_literal_in_bars(monkeypatch, name):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with display.job_progress(2, stream=stream) as show:
        show(0.5, f"loading {name}")
    with display.training(stream=stream) as tell:
        tell(name, 1, 2, None)
    with display.transfer(stream=stream) as start:
        start(10)(name, 5)
    assert stream.getvalue().count(printable(name)) >= 3
    assert "owned\x07" not in stream.getvalue()


def test_a_path_is_unchanged_for_programs_and_safe_on_a_terminal(monkeypatch):
    out = io.BytesIO()
    streams.write_line(out, "a\x1bb\udcff")
    monkeypatch.setattr(out, "isatty", lambda: True, raising=False)
    streams.write_line(out, "a\x1bb\udcff")
    assert out.getvalue() == b"a\x1bb\xff\n" + rb"a\x1bb\udcff" + b"\n"


def test_a_traceback_is_safe(capsys):
    streams.show_traceback(ValueError("\x1b[2Jfox"))
    assert r"\x1b[2Jfox" in capsys.readouterr().err
