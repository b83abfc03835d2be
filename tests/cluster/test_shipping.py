"""Finding models by digest, and copying those that are missing to another machine."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdcli.errors import ModelCorrupt
from sdcli.making.cluster import shipping, wanted
from sdcli.making.cluster.shipping import Piece
from sdcli.making.cluster.wanted import Wanted
from sdcli.making.cluster.worker import Failure, RemoteTask, Worker
from sdcli.models.source import Source
from sdcli.models.weights import Addon, Asked, Weights
from tests import tiny


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.setattr(shipping, "PIECE", 1000)


def lora(folder: Path) -> Path:
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(4, 4)}, folder / "style.safetensors")
    return folder / "style.safetensors"


@pytest.fixture(params=["folder", "file", "with a part in another folder", "file with a part that is a file"])
def source(request, tmp_path, sd15) -> Source:
    file = tmp_path / "model.fp32.safetensors"
    save_file({"a": torch.zeros(600)}, file)
    (tmp_path / "model.fp32.yaml").write_text("model: {params: {parameterization: v}}")
    match request.param:
        case "folder":
            return Source(sd15)
        case "file":
            return Source(lora(tmp_path))
        case "with a part in another folder":
            return Source(sd15, parts=(("vae", tiny.make_folder("sd15", tmp_path / "other", seed=1) / "vae"),))
    return Source(file, family="sd15", parts=(("vae", lora(tmp_path)),))


def abroad(source: Source) -> Wanted:
    """What another machine is asked for, where the paths of this one mean nothing."""
    parts = tuple((part, Path("/elsewhere") / place.name) for part, place in source.parts)
    elsewhere = replace(source, path=Path("/elsewhere") / source.path.name, parts=parts)
    return Wanted(wanted.MODEL, "no such model", elsewhere, source.sha256)


def test_a_copy_in_pieces_has_the_same_digest(source):
    asked = abroad(source)
    assert wanted.find(asked) is None
    sent = list(shipping.pieces(source))
    assert all(len(piece.data) <= 1000 for piece in sent)
    for piece in sent[:-1]:
        shipping.write(wanted.shipped_folder(asked), piece)
    assert wanted.find(asked) is None
    shipping.write(wanted.shipped_folder(asked), sent[-1])
    found = wanted.find(asked)
    assert found is not None
    assert found.sha256 == source.sha256
    assert found.path.is_relative_to(wanted.shipped_folder(asked))


def test_a_copy_of_a_folder_or_file_has_no_other_files(source):
    asked = abroad(source)
    for piece in shipping.pieces(source):
        shipping.write(wanted.shipped_folder(asked), piece)
    folder = wanted.shipped_folder(asked)
    assert sum(each.is_file() for each in folder.rglob("*")) == len(source.files())


@pytest.mark.parametrize("name", ["../a", "/tmp/a", "a/../../b"])
def test_nothing_is_written_outside_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="outside"):
        shipping.write(tmp_path / "folder", Piece(name, 0, b"", last=True))


def test_a_model_is_found_by_its_path_or_its_name_only_with_the_same_digest(sd15, tmp_path):
    source = Source(sd15)
    assert wanted.find(Wanted(wanted.MODEL, "x", source, source.sha256)) == source
    assert wanted.find(Wanted(wanted.MODEL, "x", source, "0" * 64)) is None
    moved = replace(source, path=tmp_path / "not here")
    assert wanted.find(Wanted(wanted.MODEL, str(sd15), moved, source.sha256)) == source
    file = Source(lora(tmp_path))
    assert wanted.find(Wanted("lora", str(file.path), Source(Path("/elsewhere")), file.sha256)) == file


def test_no_digest_that_was_computed_here_travels(sd15):
    weights = Weights(Source(sd15))
    assert weights.digests
    (asked,) = wanted.of(weights, "x")
    assert "_identity" not in vars(asked.source)


def test_add_ons_are_wanted_after_the_model(sd15, tmp_path):
    style = Addon("lora", Asked("style", 0.5), Source(lora(tmp_path)))
    asked = wanted.of(Weights(Source(sd15), (style,)), "tiny")
    assert [(each.kind, each.name) for each in asked] == [("model", "tiny"), ("lora", "style")]
    assert [each.title.split(" (")[0] for each in asked] == ["model 'tiny'", "LoRA 'style'"]


def recipe_task(folder: Path) -> RemoteTask:
    from sdcli.models import registry

    entry = registry.find(str(folder))
    flat = {"prompt": "a fox", "model": str(folder), "steps": 1, "seed": 7, "dtype": "float32", "threads": 1}
    weights = Weights(registry.locate(entry))
    return RemoteTask(wanted.of(weights, "tiny"), (), [tiny.recipe_for(entry, flat)])


def test_a_model_that_does_not_load_is_tried_once_for_a_worker(sd15, tmp_path, monkeypatch):
    from sdcli.models import assemble

    tries = []

    def fail(*given, **options):
        tries.append(given)
        raise ModelCorrupt("it is truncated", "get it again")

    monkeypatch.setattr(assemble, "load", fail)
    worker = Worker(1, 1)
    answers = [worker.make(recipe_task(sd15)) for _ in range(2)]
    assert [type(each) for each in answers] == [Failure, Failure]
    assert answers[0].recorded["message"] == "it is truncated"
    assert "ModelCorrupt" in answers[0].traceback
    assert len(tries) == 1


def test_a_worker_that_has_lost_a_model_names_it(sd15):
    task = recipe_task(sd15)
    lost = replace(task, wanted=(replace(abroad(Source(sd15)), sha256="0" * 64),))
    answer = Worker(1, 1).make(lost)
    assert answer.recorded["message"].startswith("a worker lacks the model 'no such model' (sha256 000000000000")
