"""Every key of LoRA files in the layouts of many trainers has a place in the model, or is named."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_chroma import ChromaTransformer2DModel
from diffusers.models.transformers.transformer_krea2 import Krea2Transformer2DModel
from diffusers.models.transformers.transformer_lumina2 import Lumina2Transformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sdcli.diffusion import architectures
from sdcli.errors import ModelError
from sdcli.models import families, loading, located, lora_file
from sdcli.models.addons import lora
from sdcli.models.loading.lora_change import Misfit, changed, changed_vector, of_rows
from sdcli.models.loading.lora_plan import Change, plan_of
from sdcli.models.lora_file import LoraFile
from sdcli.models.source import Source
from sdcli.models.weights import Addon, Asked
from tests import tiny_flow
from tests.lora import keys
from tests.lora.keys import Shapes

DEPTHS = ("num_layers", "num_single_layers", "n_layers", "n_refiner_layers", "num_hidden_layers", "num_refiner_layers")
BUILT: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "krea2": ("krea2", lambda: Krea2Transformer2DModel(num_layers=2)),
    "chroma": ("chroma", lambda: ChromaTransformer2DModel(num_layers=2, num_single_layers=2)),
    "lumina2": ("lumina2", lambda: Lumina2Transformer2DModel(num_layers=2, num_refiner_layers=1)),
}


@cache
def model(name: str, root: Path) -> tuple[str, dict[str, nn.Module]]:
    """The architecture, and the parts that LoRAs change, of a real width and of two blocks, on the meta device."""
    if name in BUILT:
        architecture, build = BUILT[name]
        with torch.device("meta"):
            return architecture, {"transformer": build()}
    folder = Path(families.__file__).parent / name
    index = json.loads((folder / "model_index.json").read_text())
    made = {}
    for part in index:
        if part in ("unet", "transformer") or part.startswith("text_encoder"):
            config = json.loads((folder / part / "config.json").read_text())
            shallow = {key: min(2, config[key]) if key in DEPTHS else config[key] for key in config}
            (root / name / part).mkdir(parents=True)
            (root / name / part / "config.json").write_text(json.dumps(shallow))
            made[part] = loading.build(root / name / part, part, index[part][1])
    denoiser = "unet" if "unet" in made else "transformer"
    config = json.loads((folder / denoiser / "config.json").read_text())
    return architectures.find(denoiser, config), made


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs")


def header_of(path: Path, shapes: Shapes) -> LoraFile:
    """A file with these tensors, of which only the header is on the disk."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return lora_file.read(path)


def problem_of(change: Change, weight: Tensor, shapes: Shapes) -> str | None:
    """What does not fit when a parameter is changed, computed on the meta device."""
    names = change.file.groups[change.layer]
    group = {
        role: torch.ones(()) if role in ("alpha", "on_input") else torch.empty(shapes[key], device="meta")
        for role, key in names.items()
    }
    try:
        group = group if change.rows is None else dict(of_rows(group, change.rows, change.total))
        if change.role is None:
            made = changed(weight, group, scale=1.0, alpha=None, rank_stabilized=False)
        else:
            made = changed_vector(weight, group[change.role], scale=1.0)
    except Misfit:
        return change.layer
    assert made.shape == weight.shape
    return None


def left_out(name: str, shapes: Shapes, path: Path, root: Path) -> set[str]:
    """The tensors of a file without a place in a model, by the names of their layers, or of their own."""
    architecture, parts = model(name, root)
    file = header_of(path, shapes)
    plan, unused, _ = plan_of(parts, architecture, Addon("lora", Asked("x"), Source(path)), file)
    states = {part: module.state_dict() for part, module in parts.items()}
    used = set[str]()
    for part, of_part in plan.items():
        for parameter, changes in of_part.items():
            for change in changes:
                problem = problem_of(change, states[part][parameter], shapes)
                unused += [problem] if problem else []
                layer = file.groups[change.layer]
                used |= {layer[change.role]} if change.role else set(layer.values())
    assert used | set(file.unknown) | {each for each in unused if each in shapes} >= shapes.keys()
    return set(unused)


@pytest.mark.parametrize("name", keys.LISTS)
def test_every_key_is_used_or_named(name, root, tmp_path):
    listed = keys.LISTS[name]
    assert left_out(listed.model, listed.shapes(), tmp_path / "x.safetensors", root) == set(listed.misfits)


OTHERS = {
    "FLUX.1, control": "FLUX.1",
    "Krea 2, kohya": "Krea 2",
    "Chroma": "Chroma",
    "FLUX.2, ai-toolkit": "FLUX.2",
    "FLUX.1, XLabs": "FLUX.1",
}


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flow.make_folder("sana", tmp_path_factory.mktemp("sana") / "sana")


@pytest.mark.parametrize("name", OTHERS)
def test_a_lora_of_another_transformer_is_refused(name, sana, tmp_path):
    path = tmp_path / "x.safetensors"
    header_of(path, keys.LISTS[name].shapes())
    with pytest.raises(ModelError, match=OTHERS[name]):
        lora.check_fit("x", Source(path), located.find(str(sana)))


def test_loras_of_anima_are_refused(sana, tmp_path):
    path = tmp_path / "x.safetensors"
    for kind, form in (("kohya", "lora_unet_"), ("peft", "diffusion_model."), ("lokr", "diffusion_model.")):
        header_of(path, keys.Keys("", kind, {form: keys.ANIMA}).shapes())
        with pytest.raises(ModelError, match="made for Anima"):
            lora.check_fit("x", Source(path), located.find(str(sana)))


def test_queries_keys_and_values_that_are_there_twice(root, tmp_path):
    """As in files of Z-Image that have both, of which diffusers uses the three layers."""
    architecture, parts = model("z-image", root)
    shapes = keys.Keys("", "dots", {"": {**keys.Z_DOTS, "layers.0.attention.qkv": (keys.Z, 3 * keys.Z)}}).shapes()
    file = header_of(tmp_path / "x.safetensors", shapes)
    plan, unused, twice = plan_of(parts, architecture, Addon("lora", Asked("x"), Source(file.path)), file)
    assert (unused, twice) == ([], ["layers.0.attention.qkv"])
    assert {change.layer for changes in plan["transformer"].values() for change in changes} == set(keys.Z_DOTS)
    again = {f"diffusion_model.{name}": shape for name, shape in shapes.items()}
    file = header_of(tmp_path / "y.safetensors", {**again, **shapes})
    plan, unused, twice = plan_of(parts, architecture, Addon("lora", Asked("x"), Source(file.path)), file)
    assert len(unused) == len(keys.Z_DOTS)
    assert unused[0].startswith("layers.0.attention.to.q (it is also diffusion_model.layers.0.attention.to.q)")


@settings(max_examples=15)
@given(st.sampled_from(sorted(keys.LISTS)), st.data())
def test_a_layer_of_another_width_is_named(root, tmp_path_factory, name, data):
    listed = keys.LISTS[name]
    shapes = listed.shapes()
    key = data.draw(st.sampled_from(sorted(each for each, shape in shapes.items() if len(shape) == 2)))
    axis = data.draw(st.sampled_from([axis for axis in (0, 1) if shapes[key][axis] > keys.RANK] or [0]))
    wrong = tuple(size + 1 if index == axis else size for index, size in enumerate(shapes[key]))
    found = left_out(listed.model, {**shapes, key: wrong}, tmp_path_factory.mktemp("x") / "x.safetensors", root)
    assert any(key.startswith(each) for each in found)
