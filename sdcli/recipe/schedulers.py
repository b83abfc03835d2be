"""The schedulers by the names users know: one table. Knows nothing of models; diffusion/samplers.py makes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sdcli.errors import InvalidRecipe

SIGMAS = ("default", "karras", "exponential", "beta")


def _options(**options: Any) -> Mapping[str, Any]:
    return MappingProxyType(options)


@dataclass(frozen=True)
class Row:
    """A scheduler: diffusers' class, the options that make it this one, and what it knows.

    `module` is the end of `diffusers.schedulers.scheduling_…`; `a1111` the sampler name other tools write.
    """

    module: str
    class_name: str
    a1111: str
    options: Mapping[str, Any] = field(default_factory=_options)
    has_sigmas: bool = False
    """Whether it can space its noise levels as Karras et al. 2022 do, exponentially, or by a beta distribution."""
    takes_eta: bool = False
    zero_snr: bool = False
    """Whether it knows `rescale_betas_zero_snr` (Lin et al. 2023, §3.1); the others are given the rescaled betas."""
    stochastic: bool = False
    """Whether its steps draw noise even at eta 0."""
    takes_sample: bool = True
    """Whether it can follow a U-Net that predicts x_0 itself, besides ε and v."""


_MULTISTEP = ("dpmsolver_multistep", "DPMSolverMultistepScheduler")
_SDE = "sde-dpmsolver++"

TABLE: Mapping[str, Row] = MappingProxyType(
    {
        "ddim": Row("ddim", "DDIMScheduler", "DDIM", takes_eta=True, zero_snr=True),
        "ddpm": Row("ddpm", "DDPMScheduler", "DDPM", zero_snr=True, stochastic=True),
        "pndm": Row("pndm", "PNDMScheduler", "PLMS", takes_sample=False),
        "lms": Row("lms_discrete", "LMSDiscreteScheduler", "LMS", has_sigmas=True),
        "euler": Row("euler_discrete", "EulerDiscreteScheduler", "Euler", has_sigmas=True, zero_snr=True),
        "euler-a": Row(
            "euler_ancestral_discrete",
            "EulerAncestralDiscreteScheduler",
            "Euler a",
            zero_snr=True,
            stochastic=True,
            takes_sample=False,
        ),
        "heun": Row("heun_discrete", "HeunDiscreteScheduler", "Heun", has_sigmas=True),
        "dpm2": Row("k_dpm_2_discrete", "KDPM2DiscreteScheduler", "DPM2", has_sigmas=True, takes_sample=False),
        "dpm2-a": Row(
            "k_dpm_2_ancestral_discrete",
            "KDPM2AncestralDiscreteScheduler",
            "DPM2 a",
            has_sigmas=True,
            stochastic=True,
            takes_sample=False,
        ),
        "dpm++-2m": Row(
            *_MULTISTEP,
            "DPM++ 2M",
            _options(algorithm_type="dpmsolver++", solver_order=2),
            has_sigmas=True,
            zero_snr=True,
        ),
        "dpm++-2m-sde": Row(
            *_MULTISTEP,
            "DPM++ 2M SDE",
            _options(algorithm_type=_SDE, solver_order=2),
            has_sigmas=True,
            zero_snr=True,
            stochastic=True,
        ),
        "dpm++-sde": Row(
            "dpmsolver_sde",
            "DPMSolverSDEScheduler",
            "DPM++ SDE",
            has_sigmas=True,
            stochastic=True,
            takes_sample=False,
        ),
        "dpm++-2s": Row(
            "dpmsolver_singlestep",
            "DPMSolverSinglestepScheduler",
            "DPM++ 2S",
            _options(algorithm_type="dpmsolver++", solver_order=2, lower_order_final=True),
            has_sigmas=True,
        ),
        "dpm++-3m-sde": Row(
            *_MULTISTEP,
            "DPM++ 3M SDE",
            _options(algorithm_type=_SDE, solver_order=3),
            has_sigmas=True,
            zero_snr=True,
            stochastic=True,
        ),
        "unipc": Row("unipc_multistep", "UniPCMultistepScheduler", "UniPC", has_sigmas=True, zero_snr=True),
        "deis": Row("deis_multistep", "DEISMultistepScheduler", "DEIS", has_sigmas=True),
        "lcm": Row("lcm", "LCMScheduler", "LCM", zero_snr=True, stochastic=True),
        "tcd": Row("tcd", "TCDScheduler", "TCD", takes_eta=True, zero_snr=True),
    }
)

NAMES: tuple[str, ...] = tuple(TABLE)

_AUTOMATIC = ("", "automatic", "uniform", "default")


def check(
    name: str,
    sigmas: str,
    eta: float,
    scheduler_config: Mapping[str, Any] | None = None,
    steps: int | None = None,
) -> None:
    """Raise InvalidRecipe where a scheduler, its sigmas, eta, the steps and the model do not go together.

    `name` is one of NAMES and `sigmas` one of SIGMAS. `scheduler_config` is the model's, in diffusers' key names;
    without it nothing is said of the model, nor of `steps`.
    """
    row = TABLE[name]
    if sigmas != "default" and not row.has_sigmas:
        hint = f"use --sigmas default, or one of {_having('has_sigmas')}"
        raise InvalidRecipe(f"the scheduler {name} has no {sigmas} sigmas", hint, "sigmas")
    if eta and not row.takes_eta:
        hint = f"leave --eta at 0, or use one of {_having('takes_eta')}"
        raise InvalidRecipe(f"the scheduler {name} takes no eta", hint, "eta")
    if scheduler_config is not None:
        _check_model(name, row, scheduler_config)
        if steps is not None:
            _check_steps(name, sigmas, scheduler_config, steps)


def _check_model(name: str, row: Row, config: Mapping[str, Any]) -> None:
    if config.get("prediction_type") == "sample" and not row.takes_sample:
        message = f"the scheduler {name} cannot follow a model that predicts x_0"
        raise InvalidRecipe(message, f"use one of {_having('takes_sample')}", "scheduler")


def _check_steps(name: str, sigmas: str, config: Mapping[str, Any], steps: int) -> None:
    """Refuse the numbers of steps that diffusers' schedulers fail at, or get wrong without a word.

    Near the number of training timesteps T their timesteps repeat or leave the range. Trailing spacing counts down
    from T by T/steps, which for some numbers of steps (61 of 1000) rounds to one timestep too many, −1.
    """
    trained = int(config.get("num_train_timesteps", 1000))
    least, most = 1, trained - 2
    if name in ("lcm", "tcd"):
        most = int(config.get("original_inference_steps", 50))
    if name == "pndm" and not config.get("skip_prk_steps"):
        least = 4
    if not least <= steps <= most:
        message = f"the scheduler {name} cannot take {steps} steps on this model"
        raise InvalidRecipe(message, f"steps must be between {least} and {most}", "steps")
    if config.get("timestep_spacing") == "trailing" and sigmas == "default" and not _divides(trained, steps):
        fit = [number for number in range(1, most + 1) if _divides(trained, number)]
        near = [*[number for number in fit if number < steps][-1:], *[number for number in fit if number > steps][:1]]
        hint = f"the nearest numbers of steps are {' and '.join(map(str, near))}"
        raise InvalidRecipe(f"this model's timesteps cannot be divided into {steps} steps", hint, "steps")


def _divides(trained: int, steps: int) -> bool:
    return math.ceil(trained / (trained / steps)) == steps


def _having(fact: str) -> str:
    return ", ".join(name for name, row in TABLE.items() if getattr(row, fact))


def a1111_name(name: str, sigmas: str) -> str:
    """The sampler as Automatic1111 writes it, such as `DPM++ 2M Karras`."""
    return TABLE[name].a1111 + ("" if sigmas == "default" else f" {sigmas.capitalize()}")


def from_a1111(sampler: str, schedule_type: str = "") -> tuple[str, str] | None:
    """The scheduler's name and sigmas for Automatic1111's `Sampler` and, since its 1.9, `Schedule type`.

    None for one that is not in the table, as `DPM++ 2S a`, whose ancestral noise diffusers' class lacks.
    """
    words = sampler.casefold().split()
    kind = schedule_type.casefold().strip()
    if kind in _AUTOMATIC:
        kind = "default"
    if words and words[-1] in SIGMAS[1:]:
        kind = words.pop()
    for name, row in TABLE.items():
        if row.a1111.casefold() == " ".join(words) and kind in (SIGMAS if row.has_sigmas else SIGMAS[:1]):
            return name, kind
    return None
