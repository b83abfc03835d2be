"""Seconds a guided step at the shapes of SD 1.5 and SDXL, random weights, against diffusers' pipelines; and kit.

A part of `python -m tests.device.report`: builds its models, waits for one line on stdin that says how many seconds it
has, measures what fits in them, most wanted first, and prints one line of JSON for each thing.
"""

import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.diffusion import device, pipeline, samplers
from sdcli.diffusion.architectures import unet as architecture
from sdcli.diffusion.context import Context
from sdcli.diffusion.denoise import denoise
from sdcli.diffusion.guidance import Guidance
from sdcli.models import assemble, families, loading, located
from sdcli.models.weights import Weights
from sdcli.planning import resolve
from sdcli.recipe.recipe import Recipe
from tests.device.making import synchronise
from tests.device.where import DEVICE

CUDA = DEVICE == "cuda"
ON = DEVICE or "cpu"
DTYPE = torch.float32 if ON == "cpu" else torch.float16
GUIDANCE = 7.0
END = float("inf")


@dataclass
class Shape:
    """A U-Net and a VAE of a family's real shape, and what a picture of it is made of."""

    name: str
    unet: Any
    vae: Any
    context: Context
    latents: Tensor
    scheduler: str
    config: dict[str, Any]
    steps: int
    pipe: Any = None
    times: dict[str, float] = field(default_factory=dict)


def tell(what: str, **said: Any) -> None:
    print(json.dumps({"what": what, **said}), flush=True)


def left() -> float:
    return END - time.monotonic()


@contextmanager
def attempt(what: str) -> Any:
    """Run the body; what goes wrong in it is told, and the next thing is measured."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        told = traceback.format_exc()[-1500:]
        tell(f"{what} failed", error=f"{type(error).__name__}: {str(error)[:500]}", traceback=told)
        if CUDA:
            torch.cuda.empty_cache()


@torch.no_grad()
def randomise(module: nn.Module) -> Any:
    """`module`, built on the meta device, with weights on the device that keep activations in range."""
    module = module.to(DTYPE).to_empty(device=ON)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.7 * parameter[0].numel() ** -0.5)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return module.requires_grad_(False).eval()


def build(family: str) -> Shape:
    """The shape of `family`; where there is no device, a tiny one in its place."""
    large = family == "sdxl"
    folder = families.config_folder(family)
    if ON == "cpu":
        from tests import tiny

        unet, vae = (each.requires_grad_(False).eval() for each in (tiny.make_unet(family), tiny.make_vae(family)))
        width, pooled, side, tokens = unet.config.cross_attention_dim, 40, 8, 77
    else:
        unet = randomise(loading.build(folder / "unet", "unet", "UNet2DConditionModel"))
        vae = randomise(loading.build(folder / "vae", "vae", "AutoencoderKL"))
        width, pooled, side, tokens = (2048, 1280, 128, 77) if large else (768, 0, 64, 77)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(ON, DTYPE)

    pixels = float(side * 8)
    time_ids = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]], device=ON)
    context = Context(
        prompt_embeds=draw(1, tokens, width),
        negative_prompt_embeds=draw(1, tokens, width),
        pooled_prompt_embeds=draw(1, pooled) if large else None,
        negative_pooled_prompt_embeds=draw(1, pooled) if large else None,
        add_time_ids=time_ids if large else None,
    )
    config = dict(families.read_json(folder / "scheduler" / "scheduler_config.json"))
    name, steps = ("euler", 8) if large else ("dpm++-2m", 12)
    return Shape(family, unet, vae, context, draw(1, 4, side, side).float(), name, config, steps)


def with_pipe(shape: Shape) -> Shape:
    """`shape` with diffusers' own pipeline around the same modules."""
    scheduler = samplers.make(shape.scheduler, "default", shape.config)
    parts = {"vae": shape.vae, "unet": shape.unet, "scheduler": scheduler, "text_encoder": None, "tokenizer": None}
    if shape.name == "sdxl":
        from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

        pipe = StableDiffusionXLPipeline(**parts, text_encoder_2=None, tokenizer_2=None, add_watermarker=False)
    else:
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    shape.pipe = pipe
    return shape


def ours(shape: Shape, steps: int, unet: Any = None) -> Tensor:
    """Latents by sdcli's loop."""
    scheduler = samplers.make(shape.scheduler, "default", shape.config)
    scheduler.set_timesteps(steps)
    return denoise(
        architecture.bind(unet or shape.unet, shape.context, Guidance(GUIDANCE), len(shape.latents)),
        scheduler,
        shape.latents * scheduler.init_noise_sigma,
        timesteps=scheduler.timesteps,
        generators=[torch.Generator().manual_seed(1)],
    )


@torch.inference_mode()
def theirs(shape: Shape, steps: int) -> Tensor:
    """Latents by diffusers' pipeline as it comes, of the same embeddings and noise."""
    y, side = shape.context, shape.latents.shape[-1] * 8
    given = {"prompt_embeds": y.prompt_embeds, "negative_prompt_embeds": y.negative_prompt_embeds}
    if shape.name == "sdxl":
        given |= {"pooled_prompt_embeds": y.pooled_prompt_embeds}
        given |= {"negative_pooled_prompt_embeds": y.negative_pooled_prompt_embeds}
    latents = shape.latents.to(DTYPE)
    size = {"width": side, "height": side, "num_inference_steps": steps, "guidance_scale": GUIDANCE}
    return shape.pipe(**given, **size, latents=latents, output_type="latent").images


def seconds(work: Callable[[], Any]) -> float:
    synchronise(ON)
    begun = time.perf_counter()
    work()
    synchronise(ON)
    return time.perf_counter() - begun


def difference(one: Tensor, other: Tensor) -> float:
    """The greatest, in standard deviations of the other."""
    return round(float((one.float() - other.float()).abs().max() / other.float().std()), 5)


def peak() -> int | None:
    return torch.cuda.max_memory_allocated() if CUDA else None


def steps_in_turns(shape: Shape) -> None:
    theirs(shape, 2), ours(shape, 2)
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    kept: dict[str, list[float]] = {"sdcli": [], "diffusers": []}
    for _ in range(3):
        kept["diffusers"].append(seconds(lambda: theirs(shape, shape.steps)) / shape.steps)
        kept["sdcli"].append(seconds(lambda: ours(shape, shape.steps)) / shape.steps)
    shape.times |= {name: statistics.median(times) for name, times in kept.items()}
    tell(
        f"{shape.name} seconds a guided step",
        **{name: round(shape.times[name], 5) for name in kept},
        all={name: [round(each, 5) for each in times] for name, times in kept.items()},
        times_as_fast=round(shape.times["diffusers"] / shape.times["sdcli"], 3),
        difference_of_latents=difference(ours(shape, 4), theirs(shape, 4)),
        peak_bytes=peak(),
        scheduler=shape.scheduler,
        dtype=str(DTYPE),
    )


@torch.inference_mode()
def decoding(shape: Shape) -> None:
    """Seconds to decode: float16, channels_last, and what sdcli does with a VAE that asks for float32."""
    z = (shape.latents / shape.vae.config.scaling_factor).to(DTYPE)
    told: dict[str, Any] = {}

    def measure(name: str, latents: Tensor) -> None:
        if left() < 3:
            return
        decode = lambda: shape.vae.decode(latents, return_dict=False)  # noqa: E731
        decode()
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        told[name] = round(min(seconds(decode) for _ in range(3)), 5)
        told[f"{name} peak_bytes"] = peak()

    measure("as it is", z)
    shape.vae.to(memory_format=torch.channels_last)
    measure("channels_last", z)
    if CUDA:
        torch.backends.cudnn.benchmark = True
        measure("channels_last, cudnn.benchmark", z)
        torch.backends.cudnn.benchmark = False
        shape.vae.to(torch.bfloat16)
        measure("channels_last, bfloat16", z.to(torch.bfloat16))
    shape.vae.to(memory_format=torch.contiguous_format)
    if shape.vae.config.force_upcast:
        shape.vae.to(torch.float32)
        measure("float32, as diffusers and sdcli do with float16", z.float())
    shape.vae.to(DTYPE)
    tell(f"{shape.name} seconds to decode", **told)


class Graphed:
    """A U-Net whose call is recorded once as a CUDA graph and replayed: the host launches one thing a call."""

    def __init__(self, unet: Any) -> None:
        self.unet, self.dtype, self.config, self.graph = unet, unet.dtype, unet.config, None

    def __call__(self, sample: Tensor, timestep: Tensor, *, return_dict: bool = False, **y: Any) -> tuple[Tensor]:
        if self.graph is None:
            self._record(sample, timestep, y)
        self.sample.copy_(sample)
        self.timestep.copy_(timestep)
        self.graph.replay()
        return (self.made,)

    def _record(self, sample: Tensor, timestep: Tensor, y: Any) -> None:
        self.sample, self.timestep, self.y = sample.clone(), timestep.clone(), y
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.unet(self.sample, self.timestep, **y, return_dict=False)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.made = self.unet(self.sample, self.timestep, **y, return_dict=False)[0]


def variants(shape: Shape) -> None:
    """What each change is worth, one on the other; every one against the pixels of none."""
    plain = ours(shape, 4)
    base = shape.times.get("diffusers") or seconds(lambda: theirs(shape, shape.steps)) / shape.steps

    def measure(name: str, unet: Any = None, around: Any = nullcontext, needs: float = 2.5) -> None:
        if left() < needs:
            tell(f"{shape.name} {name}", skipped="no time is left")
            return
        with attempt(f"{shape.name} {name}"):
            with around():
                ready = seconds(lambda: ours(shape, 2, unet))
                apart = difference(ours(shape, 4, unet), plain)
                taken = min(seconds(lambda: ours(shape, shape.steps, unet)) / shape.steps for _ in range(2))
            tell(
                f"{shape.name} {name}",
                seconds_a_step=round(taken, 5),
                times_diffusers=round(base / taken, 3),
                difference_of_latents=apart,
                first_call=round(ready, 2),
            )

    unet = shape.unet
    if CUDA:
        measure("cudnn attention", around=_cudnn_attention)
        measure("flash attention", around=_flash_attention)
        measure("cuda graph", Graphed(unet))
    unet.to(memory_format=torch.channels_last)
    measure("channels_last")
    if CUDA:
        torch.backends.cudnn.benchmark = True
        measure("channels_last, cudnn.benchmark", needs=5)
        measure("channels_last, cudnn.benchmark, cuda graph", Graphed(unet), needs=4)
        measure("channels_last, cudnn.benchmark, cudnn attention, cuda graph", Graphed(unet), _cudnn_attention, needs=4)
    with attempt(f"{shape.name} fused projections"):
        unet.fuse_qkv_projections()
        if CUDA:
            name = "channels_last, cudnn.benchmark, fused qkv, cudnn attention, cuda graph"
            measure(name, Graphed(unet), _cudnn_attention)
        else:
            measure("channels_last, fused qkv")
        unet.unfuse_qkv_projections()


def compiled(shape: Shape) -> None:
    """torch.compile of the repeated blocks alone, then of the whole U-Net, where there is time for it."""
    if not CUDA:
        return
    plain, base = ours(shape, 4), shape.times.get("diffusers", 0.0)
    shape.unet.to(memory_format=torch.channels_last)

    def measure(name: str, unet: Any = None) -> None:
        with attempt(f"{shape.name} {name}"):
            ready = seconds(lambda: ours(shape, 2, unet))
            apart = difference(ours(shape, 4, unet), plain)
            taken = min(seconds(lambda: ours(shape, shape.steps, unet)) / shape.steps for _ in range(2))
            told = {"seconds_a_step": round(taken, 5), "times_diffusers": round(base / taken, 3)}
            tell(f"{shape.name} {name}", **told, difference_of_latents=apart, first_call=round(ready, 2))

    if left() > (25 if shape.name == "sdxl" else 40):
        shape.unet.compile_repeated_blocks(fullgraph=True)
        measure("channels_last, compiled blocks")
        measure("channels_last, compiled blocks, cuda graph", Graphed(shape.unet))
    else:
        tell(f"{shape.name} compiled blocks", skipped="no time is left")
    if left() > (100 if shape.name == "sdxl" else 70):
        inner = torch.compile(shape.unet)
        inner_call = _Called(inner, shape.unet)
        measure("channels_last, compiled whole", inner_call)
        measure("channels_last, compiled whole, cuda graph", Graphed(inner_call))


class _Called:
    """A compiled module with the dtype and config of the plain one."""

    def __init__(self, made: Any, plain: Any) -> None:
        self.made, self.dtype, self.config = made, plain.dtype, plain.config

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.made(*args, **options)


def _cudnn_attention() -> Any:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], set_priority=True)


def _flash_attention() -> Any:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], set_priority=True)


def kit() -> None:
    """Seconds a picture of kit, and pictures a second in batches of 16, as sdcli makes them today."""
    asked = {"prompt": "a red fox in the snow", "model": "kit", "seed": 1, "device": ON}
    for dtype in ("float32", "auto"):
        if left() > 3:
            with attempt(f"kit {dtype}"):
                resolved = resolve.resolve(located.find("kit"), {**asked, "dtype": dtype}, user=False)
                tell(f"kit {dtype}", **_kit(resolved.weights, device.resolve_execution(resolved.recipe)))


def _kit(weights: Weights, recipe: Recipe) -> dict[str, Any]:
    begun = time.perf_counter()
    model = assemble.load(weights, recipe)
    synchronise(ON)
    told: dict[str, Any] = {"load": round(time.perf_counter() - begun, 3)}
    pipeline.run(model, [recipe])
    told["seconds_a_picture"] = round(min(seconds(lambda: pipeline.run(model, [recipe])) for _ in range(3)), 4)
    count = 16 if ON != "cpu" else 2
    many = [recipe.replace(seed=seed, batch_size=count) for seed in range(count)]
    pipeline.run(model, many)
    told[f"pictures_a_second_by_{count}"] = round(count / seconds(lambda: pipeline.run(model, many)), 2)
    return {**told, "dtype": recipe.execution.dtype, "steps": recipe.sampling.steps}


def main() -> None:
    global END
    begun = time.monotonic()
    shapes = {}
    for family in ("sd15", "sdxl"):
        with attempt(f"build {family}"):
            shapes[family] = with_pipe(build(family))
    synchronise(ON)
    if CUDA:
        _, total = torch.cuda.mem_get_info()
        tell("gpu", name=torch.cuda.get_device_name(0), total_bytes=total, weights_bytes=torch.cuda.memory_allocated())
        tell("libraries", torch=torch.__version__, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    tell("ready", seconds=round(time.monotonic() - begun, 1))
    budget = float(sys.stdin.readline() or "60")
    END = time.monotonic() + budget
    tell("budget", seconds=round(budget, 1))
    for shape in shapes.values():
        if left() > 3:
            with attempt(f"{shape.name} steps"):
                steps_in_turns(shape)
    for shape in shapes.values():
        if left() > 3:
            with attempt(f"{shape.name} decoding"):
                decoding(shape)
    with attempt("kit"):
        kit()
    for shape in shapes.values():
        if left() > 3:
            with attempt(f"{shape.name} variants"):
                variants(shape)
            torch.backends.cudnn.benchmark = False
    for shape in reversed(shapes.values()):
        with attempt(f"{shape.name} compiled"):
            compiled(shape)
    tell("end", left=round(left(), 1))


if __name__ == "__main__":
    main()
