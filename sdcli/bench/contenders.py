"""What takes turns: sdcli, and diffusers' own pipelines around copies of the same weights. Imports torch."""

from __future__ import annotations

import copy
import inspect
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sdcli.bench import pipelines
from sdcli.diffusion import autoencode, packed, pipeline, samplers
from sdcli.diffusion import layout as arrangement
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.diffusion.noise import draw_noise
from sdcli.errors import UsageError
from sdcli.recipe.recipe import Recipe

OURS, DIFFUSERS = "sdcli", "diffusers"
RIVALS: Mapping[str, tuple[torch.dtype | None, torch.memory_format]] = {
    DIFFUSERS: (None, torch.contiguous_format),
    "diffusers-channels-last": (None, torch.channels_last),
    "diffusers-float32": (torch.float32, torch.contiguous_format),
}
"""How diffusers' pipelines are used, by name: in sdcli's dtype, in channels_last, or in float32, their default."""


@dataclass(frozen=True)
class Turn:
    """The seconds of one turn: encoding the prompt (None if that is not measured), each step, and decoding."""

    encode: float | None
    steps: tuple[float, ...]
    decode: float
    busy: float
    """The seconds of all processors divided by the seconds of the turn: how many threads computed on average."""
    latents: Tensor
    """The latents that were decoded, float32, on the CPU."""


class Contender(Protocol):
    """Makes the picture of a recipe with fewer steps."""

    name: str

    def turn(self, steps: int) -> Turn:
        """Make the picture with `steps` steps, and measure it."""


class Clock:
    """Seconds on a device, after what was started there is done."""

    def __init__(self, device: torch.device) -> None:
        self._wait: Callable[[], None] = lambda: None
        if device.type != "cpu":
            self._wait = getattr(torch, device.type).synchronize

    def now(self) -> float:
        """Wait for the device, and return the time in seconds."""
        self._wait()
        return time.perf_counter()


class Ours:
    """sdcli, as it makes pictures."""

    name = OURS

    def __init__(self, model: LatentDiffusionModel, recipe: Recipe) -> None:
        self.model, self.recipe, self._clock = model, recipe, Clock(model.device)

    @torch.inference_mode()
    def turn(self, steps: int) -> Turn:
        """See `Contender`."""
        recipe, now = self.recipe.replace(steps=steps), self._clock.now
        started, worked = now(), time.process_time()
        contexts = pipeline.encode_conditions(self.model, recipe)
        times = [now()]
        encode = times[0] - started
        latents = pipeline.sample(self.model, [recipe], lambda step: times.append(now()), contexts=contexts)
        before = now()
        autoencode.decode_finite(self.model, latents)
        ended = now()
        busy = (time.process_time() - worked) / (ended - started)
        return Turn(encode, _differences(times), ended - before, busy, latents.cpu())


class Diffusers:
    """A pipeline of diffusers, with a copy of the weights of `model` and the same embeddings, scheduler and noise.

    Prompts are not encoded again: the text encoders are the same classes.
    """

    def __init__(self, name: str, model: LatentDiffusionModel, recipe: Recipe, vae: Any) -> None:
        dtype, layout = RIVALS[name]
        self.name, self.recipe, self._clock = name, recipe, Clock(model.device)
        self._dtype = dtype or model.dtype
        self._config, self._space = model.scheduler_config, model.latent_space
        vae_dtype = torch.float32 if vae.dtype == torch.float32 else self._dtype
        found = pipelines.of(model)
        assert found is not None
        self._kind, options = found
        packed.undo(model.network)
        network = copy.deepcopy(model.network).to(self._dtype)
        packed.prepare(model, recipe)
        vae = copy.deepcopy(vae).to(vae_dtype)
        arrangement.use_less_memory(vae, wanted=False)
        for each in (network, vae):
            each.to(memory_format=layout)
        with torch.inference_mode():
            (context,) = pipeline.encode_conditions(model, recipe)
        self._conditions = self._kind.conditions(context, self._dtype) | self._kind.guidance(recipe)
        self._pipe = self._kind.make(network, vae, self._scheduler(), **options)

    def _scheduler(self) -> Any:
        sampling = self.recipe.sampling
        return samplers.make(sampling.scheduler, sampling.sigmas, self._config, noise_seeds=[self.recipe.seed])

    @torch.inference_mode()
    def turn(self, steps: int) -> Turn:
        """See `Contender`."""
        recipe, now = self.recipe, self._clock.now
        kept: list[Tensor] = []

        def on_step(pipe: Any, index: int, timestep: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
            times.append(now())
            kept[:] = [values["latents"]]
            return {}

        self._pipe.scheduler = self._scheduler()
        generator = torch.Generator().manual_seed(recipe.seed)
        shape = self._space.shape(recipe.width, recipe.height)
        noise = self._kind.to_theirs(draw_noise([generator], shape))
        device = getattr(self._pipe, self._kind.network).device
        times, worked = [now()], time.process_time()
        sampling = {"guidance_rescale": recipe.sampling.guidance_rescale, "eta": recipe.sampling.eta}
        taken = inspect.signature(self._pipe.__call__).parameters
        self._pipe(
            **self._conditions,
            **{key: value for key, value in sampling.items() if key in taken},
            width=recipe.width,
            height=recipe.height,
            num_inference_steps=steps,
            generator=[generator],
            latents=noise.to(device, self._kind.latents_dtype or self._dtype),
            callback_on_step_end=on_step,
            output_type="pt",
        )
        ended = now()
        busy = (time.process_time() - worked) / (ended - times[0])
        latents = self._kind.to_ours(kept[0], *shape[1:])
        return Turn(None, _differences(times), ended - times[-1], busy, latents.float().cpu())


def rival(name: str, model: LatentDiffusionModel, recipe: Recipe, vae: Any = None) -> Contender:
    """Return diffusers' pipeline for `model`, used as RIVALS says, and with another `vae` if that is given.

    It computes the exact picture, without the shortcuts of `recipe`. Raises UsageError if there is no pipeline for
    comparison.
    """
    if pipelines.of(model) is None:
        what = f"--against {name} does not compare models of this kind"
        raise UsageError(what, "omit --against, or choose another model")
    return Diffusers(name, model, recipe, model.vae if vae is None else vae)


def _differences(times: list[float]) -> tuple[float, ...]:
    return tuple(after - before for before, after in itertools.pairwise(times))
