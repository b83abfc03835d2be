import dataclasses
import json

import pytest

from sdcli.errors import InputError, ModelCorrupt, ModelNotFound, UsageError
from sdcli.training import run_config
from sdcli.training.settings import STAGES, InpaintTraining


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    return folder


def test_a_run_continues_with_its_settings(base, tmp_path):
    first = run_config.plan("inpaint", tmp_path / "run", {"base": base}, {"steps": 9, "lr": 0.1})
    first.write()
    again = run_config.plan("inpaint", tmp_path / "run", {}, {})
    assert again == first
    assert again.settings == InpaintTraining(steps=9, lr=0.1)
    longer = run_config.plan("inpaint", tmp_path / "run", {"base": base}, {"steps": 12, "cooldown": 3, "lr": 0.1})
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
def test_a_run_does_not_continue_with_other_settings(base, tmp_path, stage, begin, settings, said):
    run_config.plan("inpaint", tmp_path / "run", {"base": base}, {"lr": 0.1}).write()
    with pytest.raises(UsageError, match=said):
        run_config.plan(stage, tmp_path / "run", begin, settings)


def test_another_base_is_an_error(base, tmp_path):
    run_config.plan("inpaint", tmp_path / "run", {"base": base}, {}).write()
    other = tmp_path / "other"
    base.rename(other)
    with pytest.raises(UsageError, match="started with --from"):
        run_config.plan("inpaint", tmp_path / "run", {"base": other}, {})


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
def test_settings_out_of_range_are_errors(stage, name, value, said):
    with pytest.raises(UsageError, match=said):
        STAGES[stage](**{name: value})


@pytest.mark.parametrize("stage", STAGES)
def test_each_setting_has_a_help_text_and_an_option_type(stage):
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
        ("autoencoder", {"data": "/nowhere"}, InputError, r"no metadata\.jsonl and no image in /nowhere"),
        ("autoencoder", {"world": "other"}, UsageError, "--world is other"),
    ],
)
def test_missing_inputs_are_errors_before_anything_is_written(tmp_path, stage, begin, error, said):
    with pytest.raises(error, match=said):
        run_config.plan(stage, tmp_path / "run", begin, {})
    assert not (tmp_path / "run").exists()


def test_crops_are_multiples_of_8(tmp_path):
    with pytest.raises(UsageError, match="--crop is 100"):
        run_config.plan("autoencoder", tmp_path, {}, {"crop": 100})


def test_changed_pictures_are_an_error(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.png").write_bytes(b"123")
    (data / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "x"}) + "\n")
    run_config.plan("autoencoder", tmp_path / "run", {"data": data}, {}).write()
    run_config.plan("autoencoder", tmp_path / "run", {}, {})
    (data / "a.png").write_bytes(b"1234")
    with pytest.raises(InputError, match="have changed"):
        run_config.plan("autoencoder", tmp_path / "run", {}, {})


def test_maps_need_classes(base, tmp_path):
    (base / "a.png").write_bytes(b"")
    (base / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x", "map_file_name": "a.png"}\n')
    with pytest.raises(InputError, match=r"no classes\.json"):
        run_config.plan("semantic", tmp_path / "run", {"base": base, "data": base}, {})


def test_a_folder_without_a_run_or_with_an_invalid_one_is_an_error(tmp_path):
    with pytest.raises(ModelNotFound):
        run_config.read(tmp_path)
    (tmp_path / "run.json").write_text('{"stage": "inpaint"')
    with pytest.raises(ModelCorrupt):
        run_config.read(tmp_path)
