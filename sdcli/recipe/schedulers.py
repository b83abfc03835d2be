"""The schedulers by the names users know: one table. Knows nothing of models; diffusion/samplers.py makes them.

To add one, write a row. All that is particular to a scheduler is said in its row; nothing elsewhere asks for a name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sdcli.errors import InvalidRecipe

SIGMAS = ("default", "karras", "exponential", "beta")
_PREDICTIONS = {"epsilon": "the noise", "v_prediction": "the velocity v", "sample": "x_0"}
"""What networks predict, by diffusers' `prediction_type`, in words."""

Config = Mapping[str, Any]
"""A model's scheduler config, in diffusers' key names."""


def _options(**options: Any) -> Mapping[str, Any]:
    return MappingProxyType(options)


def _trained_steps(config: Config) -> int:
    """Two less than the number of training timesteps, near which timesteps repeat or leave the range."""
    return int(config.get("num_train_timesteps", 1000)) - 2


def _distilled_steps(config: Config) -> int:
    return int(config.get("original_inference_steps", 50))


def _always(config: Config) -> bool:
    return True


def _never(config: Config) -> bool:
    return False


def _with_alpha_of_one(config: Config) -> bool:
    return bool(config.get("set_alpha_to_one", True))


def _with_alpha_of_one_if_told(config: Config) -> bool:
    return bool(config.get("set_alpha_to_one", False))


def _with_final_sigma_zero(config: Config) -> bool:
    return bool(config.get("final_sigmas_type", "zero") == "zero")


@dataclass(frozen=True)
class Row:
    """A scheduler: diffusers' class, the options that make it this one, and what it knows.

    `module` is the end of `diffusers.schedulers.scheduling_…`; `a1111` the sampler name other tools write. `options` go
    before those of a model's config.
    """

    module: str
    class_name: str
    a1111: str
    options: Mapping[str, Any] = field(default_factory=_options)
    sigmas: tuple[str, ...] = SIGMAS[:1]
    """The spacings of noise levels that it has: its own, as Karras et al. 2022, exponential, by a beta distribution."""
    predictions: tuple[str, ...] = tuple(_PREDICTIONS)
    """What a network may predict, by diffusers' `prediction_type`."""
    least_steps: int = 1
    most_steps: Callable[[Config], int] = _trained_steps
    """The most steps that it takes on a model."""
    ends_clean: Callable[[Config], bool] = _always
    """Whether its last step leads to x_0 on a model, rather than to the least noise level of training."""
    takes_eta: bool = False
    eta_in_last_step: bool = True
    """Whether eta adds noise in the last step too, where that does not end clean."""
    zero_snr: bool = False
    """Whether it knows `rescale_betas_zero_snr` (Lin et al. 2023, §3.1); the others are given the rescaled betas."""
    stochastic: bool = False
    """Whether its steps draw noise even at eta 0."""
    brownian: bool = False
    """Whether it draws that noise itself, along a Brownian path, rather than from the generators given to its steps."""


_NOISE_OR_V = ("epsilon", "v_prediction")
_MULTISTEP = ("dpmsolver_multistep", "DPMSolverMultistepScheduler")
_SDE = "sde-dpmsolver++"

TABLE: Mapping[str, Row] = MappingProxyType(
    {
        "ddim": Row("ddim", "DDIMScheduler", "DDIM", ends_clean=_with_alpha_of_one, takes_eta=True, zero_snr=True),
        "ddpm": Row("ddpm", "DDPMScheduler", "DDPM", zero_snr=True, stochastic=True),
        # Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds", without its Runge-Kutta start
        "pndm": Row(
            "pndm",
            "PNDMScheduler",
            "PLMS",
            _options(skip_prk_steps=True),
            predictions=_NOISE_OR_V,
            ends_clean=_with_alpha_of_one_if_told,
        ),
        "lms": Row("lms_discrete", "LMSDiscreteScheduler", "LMS", sigmas=SIGMAS),
        "euler": Row(
            "euler_discrete",
            "EulerDiscreteScheduler",
            "Euler",
            sigmas=SIGMAS,
            ends_clean=_with_final_sigma_zero,
            zero_snr=True,
        ),
        "euler-a": Row(
            "euler_ancestral_discrete",
            "EulerAncestralDiscreteScheduler",
            "Euler a",
            predictions=_NOISE_OR_V,
            zero_snr=True,
            stochastic=True,
        ),
        "heun": Row("heun_discrete", "HeunDiscreteScheduler", "Heun", sigmas=SIGMAS),
        "dpm2": Row("k_dpm_2_discrete", "KDPM2DiscreteScheduler", "DPM2", sigmas=SIGMAS, predictions=_NOISE_OR_V),
        "dpm2-a": Row(
            "k_dpm_2_ancestral_discrete",
            "KDPM2AncestralDiscreteScheduler",
            "DPM2 a",
            sigmas=SIGMAS,
            predictions=_NOISE_OR_V,
            stochastic=True,
        ),
        "dpm++-2m": Row(
            *_MULTISTEP,
            "DPM++ 2M",
            _options(algorithm_type="dpmsolver++", solver_order=2),
            sigmas=SIGMAS,
            ends_clean=_with_final_sigma_zero,
            zero_snr=True,
        ),
        "dpm++-2m-sde": Row(
            *_MULTISTEP,
            "DPM++ 2M SDE",
            _options(algorithm_type=_SDE, solver_order=2),
            sigmas=SIGMAS,
            ends_clean=_with_final_sigma_zero,
            zero_snr=True,
            stochastic=True,
        ),
        "dpm++-sde": Row(
            "dpmsolver_sde",
            "DPMSolverSDEScheduler",
            "DPM++ SDE",
            sigmas=SIGMAS,
            predictions=_NOISE_OR_V,
            stochastic=True,
            brownian=True,
        ),
        "dpm++-2s": Row(
            "dpmsolver_singlestep",
            "DPMSolverSinglestepScheduler",
            "DPM++ 2S",
            _options(algorithm_type="dpmsolver++", solver_order=2, lower_order_final=True),
            sigmas=SIGMAS,
            ends_clean=_with_final_sigma_zero,
        ),
        "dpm++-3m-sde": Row(
            *_MULTISTEP,
            "DPM++ 3M SDE",
            _options(algorithm_type=_SDE, solver_order=3),
            sigmas=SIGMAS,
            ends_clean=_with_final_sigma_zero,
            zero_snr=True,
            stochastic=True,
        ),
        "unipc": Row(
            "unipc_multistep",
            "UniPCMultistepScheduler",
            "UniPC",
            sigmas=SIGMAS,
            ends_clean=_with_final_sigma_zero,
            zero_snr=True,
        ),
        "deis": Row("deis_multistep", "DEISMultistepScheduler", "DEIS", sigmas=SIGMAS, ends_clean=_never),
        "lcm": Row("lcm", "LCMScheduler", "LCM", most_steps=_distilled_steps, zero_snr=True, stochastic=True),
        "tcd": Row(
            "tcd",
            "TCDScheduler",
            "TCD",
            most_steps=_distilled_steps,
            ends_clean=_never,
            takes_eta=True,
            eta_in_last_step=False,
            zero_snr=True,
        ),
    }
)

NAMES: tuple[str, ...] = tuple(TABLE)

_AUTOMATIC = ("", "automatic", "uniform", "default")


def check(
    name: str,
    sigmas: str,
    eta: float,
    scheduler_config: Config | None = None,
    steps: int | None = None,
) -> None:
    """Raise InvalidRecipe where a scheduler, its sigmas, eta, the steps and the model do not go together.

    `name` is one of NAMES and `sigmas` one of SIGMAS. `scheduler_config` is the model's, in diffusers' key names;
    without it nothing is said of the model, nor of `steps`.
    """
    row = TABLE[name]
    if sigmas not in row.sigmas:
        hint = f"use --sigmas default, or one of {_names(lambda row: sigmas in row.sigmas)}"
        raise InvalidRecipe(f"the scheduler {name} has no {sigmas} sigmas", hint, "sigmas")
    if eta and not row.takes_eta:
        hint = f"leave --eta at 0, or use one of {_names(lambda row: row.takes_eta)}"
        raise InvalidRecipe(f"the scheduler {name} takes no eta", hint, "eta")
    if scheduler_config is not None:
        _check_model(name, row, scheduler_config)
        if steps is not None:
            _check_steps(name, sigmas, scheduler_config, steps)


def _check_model(name: str, row: Row, config: Config) -> None:
    predicted = config.get("prediction_type", "epsilon")
    if predicted not in row.predictions:
        message = f"the scheduler {name} cannot follow a model that predicts {_PREDICTIONS.get(predicted, predicted)}"
        able = _names(lambda row: predicted in row.predictions)
        raise InvalidRecipe(message, f"use one of {able}" if able else "use another model", "scheduler")


def _check_steps(name: str, sigmas: str, config: Config, steps: int) -> None:
    """Refuse the numbers of steps that diffusers' schedulers fail at, or get wrong without a word.

    Trailing spacing counts down from the number of training timesteps T by T/steps, which for some numbers of steps
    (61 of 1000) rounds to one timestep too many, −1.
    """
    row, trained = TABLE[name], int(config.get("num_train_timesteps", 1000))
    least, most = row.least_steps, row.most_steps(config)
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


def _names(fits: Callable[[Row], bool]) -> str:
    return ", ".join(name for name, row in TABLE.items() if fits(row))


def uses_eta(name: str, config: Config, steps: int) -> bool:
    """Whether eta adds noise in any of `steps`: the last one adds none where it ends clean."""
    row = TABLE[name]
    return row.takes_eta and (steps > 1 or (row.eta_in_last_step and not row.ends_clean(config)))


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
        if row.a1111.casefold() == " ".join(words) and kind in row.sigmas:
            return name, kind
    return None
