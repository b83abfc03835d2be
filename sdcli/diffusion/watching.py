"""Records the evaluations of f while a picture is made: x̂_0, and f with and without its condition.

What is recorded is computed in further evaluations, so that the picture does not change. Imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from sdcli.diffusion import architectures, attention
from sdcli.diffusion.context import Context
from sdcli.diffusion.denoise import Denoiser, Evaluation
from sdcli.diffusion.estimate import clean_latents, sigma_of
from sdcli.diffusion.guidance import Guidance
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.diffusion.shortcuts import Bind


@dataclass(frozen=True)
class Bound:
    """What f(z, t) was bound to: the model, y with all that is concatenated, the guidance, and the scheduler.

    `bind` binds further denoisers, each with a name of its own.
    """

    model: LatentDiffusionModel
    context: Context
    guidance: Guidance
    scheduler: Any
    bind: Bind


Watch = Callable[[Denoiser, Bound], Denoiser]
"""Called at the start of each run of the loop; returns a denoiser with the same result, which can record it."""


@dataclass(frozen=True)
class Seen:
    """One evaluation at the noise level `sigma` (with z = x_0 + σ ε), on the CPU in float32.

    `latents` are z_t as f gets it, and `prediction` is x̂_0 by the result of f: what remains if all noise that f sees is
    removed at once. `conditional` and `unconditional` are x̂_0 by each half of guidance, where there is guidance.
    """

    timestep: float
    sigma: float
    latents: Tensor
    prediction: Tensor
    conditional: Tensor
    unconditional: Tensor | None


@dataclass
class Recorder:
    """A `Watch` that records each evaluation of a single picture, and sums the attention to the tokens of its text."""

    seen: list[Seen] = field(default_factory=list)
    bound: Bound | None = None
    maps: attention.Maps | None = None

    def __call__(self, denoiser: Denoiser, bound: Bound) -> Denoiser:
        """Return `denoiser`, recorded. What an earlier run of the loop has recorded is dropped."""
        architecture = architectures.load(bound.model.architecture)
        context, guidance = bound.context, bound.guidance
        self.seen, self.bound, self.maps = [], bound, None
        with_condition = bound.bind(
            "watched", lambda network: architecture.bind(network, context.conditional, guidance, 1)
        )
        without = None
        if context.has_unconditional and guidance.is_on:
            without = bound.bind(
                "watched without condition",
                lambda network: architecture.bind(network, unconditional(context), guidance, 1),
            )

        def recorded(latents: Tensor, timestep: Tensor, evaluation: Evaluation) -> Tensor:
            result = denoiser(latents, timestep, evaluation)
            self._watch_attention(latents)
            with self.maps or nullcontext():
                conditional = with_condition(latents, timestep, evaluation)
            plain = None if without is None else without(latents, timestep, evaluation)
            level = sigma_of(bound.scheduler, evaluation.timestep)
            clean = [
                None if each is None else clean_latents(bound.scheduler, latents, each, level).float().cpu()
                for each in (result, conditional, plain)
            ]
            assert clean[0] is not None
            assert clean[1] is not None
            self.seen.append(Seen(evaluation.timestep, level, latents.float().cpu(), clean[0], clean[1], clean[2]))
            return result

        return recorded

    def _watch_attention(self, latents: Tensor) -> None:
        bound = self.bound
        assert bound is not None
        embeds = bound.context.prompt_embeds
        if self.maps is None and embeds is not None and attention.can_be_seen(bound.model.architecture):
            size = latents.shape[2], latents.shape[3]
            self.maps = attention.Maps(bound.model.network, bound.model.architecture, size, embeds.shape[1])


def unconditional(context: Context) -> Context:
    """Return a context whose condition is the unconditional half of `context`."""
    pairs = {
        "prompt_embeds": context.negative_prompt_embeds,
        "class_labels": context.negative_class_labels,
        "pooled_prompt_embeds": context.negative_pooled_prompt_embeds,
    }
    found: dict[str, Any] = {key: value for key, value in pairs.items() if value is not None}
    return replace(context.conditional, **found)
