import dataclasses
import json

import pytest

from sdcli.errors import InputError, ModelCorrupt, ModelNotFound, UsageError
from sdcli.training import order
from sdcli.training.settings import STAGES, InpaintTraining


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    return folder


def test_a_run_goes_on_as_it_was_begun(base, tmp_path):
    begun = order.plan("inpaint", tmp_path / "run", {"base": base}, {"steps": 9, "lr": 0.1})
    begun.write()
    again = order.plan("inpaint", tmp_path / "run", {}, {})
    assert again == begun
    assert again.settings == InpaintTraining(steps=9, lr=0.1)
    longer = order.plan("inpaint", tmp_path / "run", {"base": base}, {"steps": 12, "cooldown": 3, "lr": 0.1})
    assert longer.settings == InpaintTraining(steps=12, lr=0.1, cooldown=3)


@pytest.mark.parametrize(
    ("stage", "begin", "settings", "said"),
    [
        ("inpaint", {}, {"lr": 0.2}, "--lr 0.1, not 0.2"),
        ("inpaint", {}, {"batch": 3}, "--batch 32, not 3"),
        ("inpaint", {"world": "few"}, {}, "--world kit, not few"),
        ("semantic", {}, {}, "a run of inpaint, not semantic"),
    ],
)
def test_a_run_does_not_go_on_as_another(base, tmp_path, stage, begin, settings, said):
    order.plan("inpaint", tmp_path / "run", {"base": base}, {"lr": 0.1}).write()
    with pytest.raises(UsageError, match=said):
        order.plan(stage, tmp_path / "run", begin, settings)


def test_another_base_is_refused_too(base, tmp_path):
    order.plan("inpaint", tmp_path / "run", {"base": base}, {}).write()
    other = tmp_path / "other"
    base.rename(other)
    with pytest.raises(UsageError, match="started with --from"):
        order.plan("inpaint", tmp_path / "run", {"base": other}, {})


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("steps", 0, "--steps is 0"),
        ("batch", -1, "--batch is -1"),
        ("lr", 0.0, "--lr is 0.0"),
        ("lr", float("nan"), "--lr is nan"),
        ("seed", 2**32, "--seed is"),
    ],
)
def test_settings_out_of_range_are_refused(stage, name, value, said):
    with pytest.raises(UsageError, match=said):
        STAGES[stage](**{name: value})


@pytest.mark.parametrize("stage", STAGES)
def test_every_setting_has_a_help_and_a_type_that_an_option_can_have(stage):
    for field in dataclasses.fields(STAGES[stage]):
        assert field.metadata["help"].endswith(".")
        assert field.type in ("int", "float")


@pytest.mark.parametrize(
    ("stage", "begin", "error", "said"),
    [
        ("inpaint", {}, UsageError, "inpaint needs a trained model"),
        ("semantic", {}, UsageError, "semantic needs a trained model"),
        ("text-to-image", {}, UsageError, "one of --vae and --from"),
        ("text-to-image", {"vae": "x", "base": "y"}, UsageError, "one of --vae and --from"),
        ("inpaint", {"base": "/nowhere"}, ModelNotFound, r"no model_index\.json in /nowhere"),
        ("text-to-image", {"vae": "/nowhere"}, ModelNotFound, r"no config\.json in /nowhere"),
        ("autoencoder", {"data": "/nowhere"}, InputError, r"no metadata\.jsonl in /nowhere"),
        ("autoencoder", {"world": "other"}, UsageError, "--world is other"),
    ],
)
def test_what_a_stage_lacks_is_said_before_anything_is_written(tmp_path, stage, begin, error, said):
    with pytest.raises(error, match=said):
        order.plan(stage, tmp_path / "run", begin, {})
    assert not (tmp_path / "run").exists()


def test_crops_fit_the_latents(tmp_path):
    with pytest.raises(UsageError, match="--crop is 100"):
        order.plan("autoencoder", tmp_path, {}, {"crop": 100})


def test_pictures_that_change_under_a_run_are_noticed(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.png").write_bytes(b"123")
    (data / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "x"}) + "\n")
    order.plan("autoencoder", tmp_path / "run", {"data": data}, {}).write()
    order.plan("autoencoder", tmp_path / "run", {}, {})
    (data / "a.png").write_bytes(b"1234")
    with pytest.raises(InputError, match="have changed"):
        order.plan("autoencoder", tmp_path / "run", {}, {})


def test_maps_need_classes(base, tmp_path):
    (base / "a.png").write_bytes(b"")
    (base / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x", "map_file_name": "a.png"}\n')
    with pytest.raises(InputError, match=r"no classes\.json"):
        order.plan("semantic", tmp_path / "run", {"base": base, "data": base}, {})


def test_a_folder_that_holds_no_run_or_a_torn_one(tmp_path):
    with pytest.raises(ModelNotFound):
        order.read(tmp_path)
    (tmp_path / "run.json").write_text('{"stage": "inpaint"')
    with pytest.raises(ModelCorrupt):
        order.read(tmp_path)
