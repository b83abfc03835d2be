"""One folder loaded twice, by diffusers and by sdcli, to compare what they make of the same recipe."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from sdcli.diffusion import pipeline
from sdcli.diffusion.model import LatentDiffusionModel
from sdcli.models import loading
from sdcli.models.source import Source
from sdcli.recipe.recipe import Recipe

SEED = 7
DEFAULTS: dict[str, Any] = {
    "prompt": "an arctic fox in the snow",
    "width": 64,
    "height": 64,
    "steps": 4,
    "guidance_scale": 5.0,
    "scheduler": "ddim",
    "seed": SEED,
    "device": "cpu",
    "dtype": "float32",
}

# As diffusers' documentation pairs its classes with the names that users know, not as sdcli's table does.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2-a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpm++-2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++-2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++-sde": ("DPMSolverSDEScheduler", {"noise_sampler_seed": SEED}),
    "dpm++-2s": ("DPMSolverSinglestepScheduler", {}),
    "dpm++-3m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {"algorithm_type": "deis"}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}


@dataclass(frozen=True)
class Pair:
    """A folder as diffusers' pipeline and as sdcli's model; latents of either for the flat keys of a recipe."""

    pipe: Any
    model: LatentDiffusionModel

    def theirs(self, config: dict[str, Any] | None = None, *, more: Any = None, **options: Any) -> Tensor:
        asked = {**DEFAULTS, **options}
        self.set_scheduler(asked["scheduler"], asked.get("sigmas", "default"), config)
        passed = {key: asked[key] for key in ("width", "height", "guidance_scale", "negative_prompt") if key in asked}
        passed.update({key: asked[key] for key in ("guidance_rescale", "eta") if key in asked})
        if asked.get("clip_skip", 1) > 1:
            passed["clip_skip"] = asked["clip_skip"] - 1
        return self.pipe(
            asked["prompt"],
            num_inference_steps=asked["steps"],
            generator=torch.Generator("cpu").manual_seed(asked["seed"]),
            output_type="latent",
            **passed,
            **(more or {}),
        ).images

    def ours(self, config: dict[str, Any] | None = None, **options: Any) -> Tensor:
        recipe = Recipe.from_dict({"model": self.model.name, **DEFAULTS, **options})
        model = self.model if config is None else with_scheduler_config(self.model, config)
        return pipeline.sample(model, [recipe])

    def set_scheduler(self, name: str, sigmas: str, config: dict[str, Any] | None = None) -> None:
        class_name, extra = SCHEDULERS[name]
        if sigmas != "default":
            extra = {**extra, f"use_{sigmas}_sigmas": True}
        base = dict(self.model.scheduler_config) if config is None else config
        self.pipe.scheduler = getattr(diffusers, class_name).from_config(base, **extra)

    def difference(self, config: dict[str, Any] | None = None, **options: Any) -> float:
        """The greatest difference anywhere between the two sets of latents."""
        theirs = self.theirs(config, **options)
        assert theirs.isfinite().all()
        assert theirs.std() > 0.1
        return float((self.ours(config, **options) - theirs).abs().max())


def with_scheduler_config(model: LatentDiffusionModel, config: dict[str, Any]) -> LatentDiffusionModel:
    return replace(model, scheduler_config=config)


def load(folder: Path) -> Pair:
    diffusers.utils.logging.set_verbosity_error()
    model = loading.load(Source(folder), name=folder.name, device=torch.device("cpu"), dtype=torch.float32)
    if len(model.text_encoders) == 2:
        pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True, add_watermarker=False)
    else:
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
        # diffusers looks for the final layer norm, when layers are skipped, where transformers 4 had it.
        object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)
    pipe.set_progress_bar_config(disable=True)
    return Pair(pipe, model)
