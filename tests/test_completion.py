"""Completion in a shell: every completer by the protocol of each shell, and the shells themselves where they are."""

import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.core import TyperGroup

from sdcli import config
from sdcli.cli import application
from sdcli.commands import completion
from sdcli.jobs import read
from sdcli.models import registry
from sdcli.recipe import parts, schedulers
from sdcli.training import run_config
from tests.shell import ROOT, clean_environment

NAMES_WITH_CHOICES = {"scheduler", "sigmas", "device", "dtype", "format", "world", "phase", "control", "model"}
SHELLS = ("bash", "zsh", "fish")
WORLDS = set(run_config.WORLDS)


def models(*kinds: str) -> set[str]:
    return {name for name, entry in registry.shipped().items() if entry.kind in (kinds or (registry.MODEL,))}


# the words, and what completes the last one: all of it, or what must be among it
CASES: list[tuple[list[str], set[str]]] = [
    (["gen"], {"generate"}),
    (["generate", "--scheduler", ""], set(schedulers.NAMES)),
    (["generate", "--sigmas", ""], set(schedulers.SIGMAS)),
    (["generate", "--device", ""], set(parts.DEVICES)),
    (["generate", "--dtype", ""], set(parts.DTYPES)),
    (["generate", "-m", ""], models()),
    (["generate", "--control", ""], {f"{name}=" for name in models(registry.CONTROLNET)}),
    (["synthesize", "map.png", "--control", ""], {f"{name}=" for name in models(registry.CONTROLNET)}),
    (["replay", "-m", "ki"], {"kit", "kit-inpaint", "kit-semantic"}),
    (["serve", "-m", "ki"], {"kit", "kit-inpaint", "kit-semantic"}),
    (["batch", "--format", ""], set(read.FORMATS)),
    (["batch", "--matrix", "ste"], {"steps="}),
    (["batch", "--matrix", "clip"], {"clip_skip="}),
    (["models", "show", ""], models(*config.KINDS)),
    (["models", "pull", "sdxl-t"], {"sdxl-turbo"}),
    (["models", "pull", "kit"], set()),
    (["models", "rm", "kit"], set()),
    (["models", "add", "x", "y", "--part", "v"], {"vae="}),
    (["train", "kit", "--world", ""], WORLDS),
    (["train", "kit", "--device", ""], {"auto", "cpu", "cuda"}),
    (["train", "kit", "--dtype", "b"], {"bfloat16"}),
    (["train", "kit", "--phase", "j"], {"judge"}),
    (["train", "text-to-image", "--from", "ki"], {"kit", "kit-inpaint", "kit-semantic"}),
    (["train", "measure", "ki"], {"kit", "kit-inpaint", "kit-semantic"}),
    (["train", "measure", "--scheduler", "dd"], {"ddim", "ddpm"}),
    (["train", "measure", "--world", ""], WORLDS),
]


def asked_by(shell: str, words: list[str]) -> dict[str, str]:
    """The environment in which `shell` asks for the completions of the last of `words`."""
    line = ["sdcli", *words]
    if shell == "bash":
        return {"_SDCLI_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(line), "COMP_CWORD": str(len(words))}
    known = {"_SDCLI_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": " ".join(line)}
    return known | {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}


def answers(shell: str, output: str) -> set[str]:
    if shell != "zsh":
        return {line.partition("\t")[0] for line in output.splitlines()} - {""}
    inside = output.removeprefix("_arguments '*: :((").removesuffix("))'\n")
    return set() if output.strip() == "_files" else {line.split('":"')[0].strip('"') for line in inside.splitlines()}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(("words", "expected"), CASES, ids=lambda case: " ".join(case) if type(case) is list else "")
def test_every_completer_answers_every_shell(run, shell, words, expected):
    done = run(env=asked_by(shell, words))
    assert done.stderr == ""
    assert answers(shell, done.stdout.decode()) == expected


@pytest.mark.parametrize(
    ("shell", "word", "expected"),
    [
        ("zsh", "scheduler=ddim,eul", {"scheduler=ddim,euler", "scheduler=ddim,euler-a"}),
        ("fish", "prompt_weights=", {"prompt_weights=true", "prompt_weights=false"}),
        ("zsh", "model=kit-s", {"model=kit-semantic"}),
        ("fish", "seed=", set()),
        ("zsh", "nothing=", set()),
    ],
)
def test_values_of_a_matrix_are_completed_too(run, shell, word, expected):
    assert answers(shell, run(env=asked_by(shell, ["batch", "--matrix", word])).stdout.decode()) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["batch", "--matrix", "scheduler", "=", "dd"], {"ddim", "ddpm"}),
        (["batch", "--matrix", "scheduler", "=", "lms,dd"], {"lms,ddim", "lms,ddpm"}),
        (["batch", "--matrix", "scheduler", "="], set(schedulers.NAMES)),
        (["generate", "--device", "=", "c"], {"cpu", "cuda"}),
        (["generate", "--device", "="], set(parts.DEVICES)),
    ],
)
def test_bash_splits_words_at_the_equals_sign(run, words, expected):
    assert answers("bash", run(env=asked_by("bash", words)).stdout.decode()) == expected


def test_whatever_has_choices_has_a_completer():
    """Options by their help: what lists its values, or names a model, completes them."""
    missing = []

    def walk(command, path):
        if isinstance(command, TyperGroup):
            for name, each in command.commands.items():
                walk(each, [*path, name])
            return
        for each in command.params:
            takes = (
                each.name in NAMES_WITH_CHOICES
                or "NAME=" in (each.metavar or "")
                or each.metavar in ("MODEL", "KEY=V1,V2")
            )
            if takes and each._custom_shell_complete is None:
                missing.append([*path, each.name])

    walk(typer.main.get_command(application()), [])
    assert missing == []


def test_words_that_bash_joined_are_left_alone_elsewhere():
    for environment in ({}, {"_SDCLI_COMPLETE": "complete_zsh", "COMP_WORDS": "a\n=\nb", "COMP_CWORD": "2"}):
        before = dict(environment)
        completion.join_words(environment)
        assert environment == before


@pytest.fixture
def at_home(tmp_path: Path) -> dict[str, str]:
    """An environment with `sdcli` on the PATH."""
    program = tmp_path / "bin" / "sdcli"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sdcli "$@"\n')
    program.chmod(0o755)
    found = clean_environment(tmp_path)
    return found | {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "TERM": "xterm"}


def script_of(shell: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["sdcli"], env=environment | {"_SDCLI_COMPLETE": f"source_{shell}"}, capture_output=True, check=True
    )
    return done.stdout.decode()


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"there is no {shell} here")


@needs("bash")
def test_in_bash(at_home):
    script = script_of("bash", at_home) + (
        "\nCOMP_WORDS=(sdcli generate x --scheduler eul); COMP_CWORD=4; _sdcli_completion sdcli"
        '\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], env=at_home, capture_output=True, check=True)
    assert (done.stdout.decode().split(), done.stderr) == (["euler", "euler-a"], b"")


@needs("bash")
def test_in_bash_no_space_follows_a_key(at_home, tmp_path):
    shown = subprocess.run(
        ["sdcli", "--show-completion", "bash"],
        env=at_home | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        check=True,
    )
    assert shown.stdout.decode().strip() == script_of("bash", at_home).strip()
    (tmp_path / "rc").write_text(f"PS1='> '\n{script_of('bash', at_home)}\n")
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe("bash", ["bash", "--rcfile", str(tmp_path / "rc"), "-i"], at_home)
    try:
        reading(terminal, b"> ")
        os.write(terminal, b"sdcli batch --matrix clip\t")
        seen = reading(terminal, b"clip_skip=")
        os.write(terminal, b"2")
        seen += reading(terminal, b"2")
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
    assert b"clip_skip=2" in seen


@needs("fish")
def test_in_fish(at_home):
    script = script_of("fish", at_home) + "\ncomplete -C 'sdcli generate x --sigmas k'"
    done = subprocess.run(["fish", "--no-config", "-c", script], env=at_home, capture_output=True, check=True)
    assert done.stdout.decode().split() == ["karras"]


@needs("zsh")
def test_in_zsh(at_home, tmp_path):
    (tmp_path / ".zshrc").write_text(
        f"autoload -Uz compinit; compinit -u -D; PS1='> '; unsetopt zle_bracketed_paste\n{script_of('zsh', at_home)}\n"
    )
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe("zsh", ["zsh", "-i"], at_home | {"ZDOTDIR": str(tmp_path)})
    try:
        seen = reading(terminal, b"> ")
        os.write(terminal, b"sdcli generate x --sigmas kar\t")
        seen = reading(terminal, b"karras")
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
    assert b"karras" in seen


def reading(terminal: int, until: bytes) -> bytes:
    """What is written to the terminal, up to `until`, for 20 seconds at most."""
    seen, end = b"", time.monotonic() + 20
    os.set_blocking(terminal, False)
    while until not in seen and time.monotonic() < end:
        try:
            seen += os.read(terminal, 4096)
        except BlockingIOError:
            time.sleep(0.02)
    return seen


def test_loras_of_other_families_are_left_out(sd15, tmp_path, monkeypatch):
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    for name, width in (("ours", 32), ("xl", 2048)):
        tensors = {f"{layer}.lora_up.weight": torch.ones(4, 2), f"{layer}.lora_down.weight": torch.ones(2, width)}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"")
    monkeypatch.setattr(config, "read", lambda: config.Config(defaults={"lora_dir": config.Setting(str(tmp_path), "")}))
    found = {
        model: completion.lora_name(SimpleNamespace(params={"model": model}), "")
        for model in (str(sd15), "no-such-model")
    }
    absent = [name for name, entry in registry.shipped().items() if entry.kind == registry.LORA]
    assert found == {str(sd15): [*absent, "ours"], "no-such-model": [*absent, "broken", "ours", "xl"]}
