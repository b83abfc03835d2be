"""--compile: a network that is compiled makes almost the same picture, and says so in its recipe."""

import json
import shutil

import pytest
import torch

from sdcli import cli
from sdcli.diffusion import compiled, pipeline
from sdcli.errors import InvalidRecipe
from sdcli.making.maker import LocalMaker, Task
from sdcli.models import assemble
from sdcli.models.source import Source
from sdcli.models.weights import Weights
from sdcli.recipe.recipe import Recipe
from tests import pairs

FLAT = {**pairs.DEFAULTS, "model": "tiny", "steps": 1, "guidance_scale": 1.0}


def test_the_recipe_only_names_it_where_it_is_on():
    assert "compile" not in Recipe.from_dict(FLAT).to_dict()
    assert Recipe.from_dict({**FLAT, "compile": True}).to_dict()["compile"] is True


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_only_the_network_is_compiled_and_only_where_it_is_asked_for(sd15, monkeypatch):
    monkeypatch.setattr(compiled, "_check_compiler", lambda: None)
    for asked in (False, True):
        model = assemble.load(Weights(Source(sd15)), Recipe.from_dict({**FLAT, "compile": asked}))
        assert (model.network._compiled_call_impl is not None) == asked
        assert model.vae._compiled_call_impl is None


def test_a_missing_compiler_is_named(sd15, monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(InvalidRecipe, match=r"C\+\+ compiler") as caught:
        assemble.load(Weights(Source(sd15)), Recipe.from_dict({**FLAT, "compile": True}))
    assert caught.value.field == "compile"


def test_what_the_compiler_raises_is_no_fault_of_the_model(sd15, monkeypatch):
    """torch raises InductorError from its own files."""
    model = assemble.load(Weights(Source(sd15)), Recipe.from_dict(FLAT))

    def compiler(*arguments, **options):
        raise RuntimeError("no code")

    def run(*arguments, **options):
        exec(compile("compiler()", "/lib/torch/_inductor/compile_fx.py", "exec"), {"compiler": compiler})

    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(pipeline, "sample", run)
    with pytest.raises(InvalidRecipe, match="cannot be compiled: no code"):
        LocalMaker().make(Task(Weights(Source(sd15)), [Recipe.from_dict(FLAT)]))
    assert model


def test_the_command_says_that_the_first_picture_is_slow(sd15, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(compiled, "prepare", lambda model, recipe: model)
    words = ["generate", "a fox", "-m", str(sd15), "--steps", "1", "--compile", "-o", str(tmp_path / "fox.png")]
    assert cli.run(words) == 0
    assert "first step compiles the network" in capfd.readouterr().err
    assert cli.run(["info", "--json", str(tmp_path / "fox.png")]) == 0
    assert json.loads(capfd.readouterr().out)["recipe"]["compile"] is True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_network_makes_almost_the_same(sd15, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    plain, fast = (Recipe.from_dict({**FLAT, "compile": each, "steps": 2}) for each in (False, True))
    weights = Weights(Source(sd15))
    latents = [pipeline.sample(assemble.load(weights, each), [each]) for each in (plain, fast)]
    assert torch.allclose(*latents, atol=1e-4)
    assert any((tmp_path / "sdcli" / "compiled").iterdir())
