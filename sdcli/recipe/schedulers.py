"""The table of schedulers by name. Knows nothing of models; diffusion/samplers.py makes them.

To add one, add a row. Everything specific to a scheduler is in its row; no other code depends on its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sdcli.errors import InvalidRecipe

SIGMAS = ("default", "karras", "exponential", "beta")
FLOW = "flow_prediction"
"""The prediction of models trained by flow matching: the velocity from the picture to the noise."""
PREDICTIONS = {"epsilon": "the noise", "v_prediction": "the velocity v", "sample": "x_0", FLOW: "flow"}
"""What networks predict, by diffusers' `prediction_type`."""

Config = Mapping[str, Any]
"""A model's scheduler config, in diffusers' key names."""


def _options(**options: Any) -> Mapping[str, Any]:
    return MappingProxyType(options)


def _trained_steps(config: Config) -> int:
    """Two less than the number of training timesteps: with more, timesteps repeat or leave the range."""
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
class Flow:
    """How a scheduler runs a model that was trained by flow matching: diffusers' class, its options and spacings."""

    module: str
    class_name: str
    options: Mapping[str, Any] = field(default_factory=_options)
    sigmas: tuple[str, ...] = SIGMAS[:1]


@dataclass(frozen=True)
class Row:
    """A scheduler: diffusers' class, its options, and its properties.

    `module` is the end of `diffusers.schedulers.scheduling_…`, and `a1111` the sampler name in other tools. `options`
    take precedence over a model's config.
    """

    module: str
    class_name: str
    a1111: str
    options: Mapping[str, Any] = field(default_factory=_options)
    sigmas: tuple[str, ...] = SIGMAS[:1]
    """The supported spacings of noise levels: its own, Karras et al. 2022, exponential, or a beta distribution."""
    predictions: tuple[str, ...] = ("epsilon", "v_prediction", "sample")
    """The supported predictions, by diffusers' `prediction_type`; see `flow` for flow matching."""
    flow: Flow | None = None
    """The class for models of flow matching, None if it does not support them."""
    least_steps: int = 1
    most_steps: Callable[[Config], int] = _trained_steps
    """The maximum number of steps with a model."""
    ends_clean: Callable[[Config], bool] = _always
    """Whether the last step ends at x_0 with a model, rather than at the lowest noise level of training."""
    takes_eta: bool = False
    eta_in_last_step: bool = True
    """Whether eta adds noise in the last step too, if that does not end at x_0."""
    zero_snr: bool = False
    """Whether it supports `rescale_betas_zero_snr` (Lin et al. 2023, §3.1); the others get rescaled betas."""
    stochastic: bool = False
    """Whether its steps draw noise even with eta 0."""
    brownian: bool = False
    """Whether it draws the noise itself, along a Brownian path, instead of using the generators of its steps."""
    midway: str | None = None
    """The function of diffusion/midway.py that makes the class start correctly in the middle, if it does not."""


_NOISE_OR_V = ("epsilon", "v_prediction")
_MULTISTEP = ("dpmsolver_multistep", "DPMSolverMultistepScheduler")
_SDE = "sde-dpmsolver++"
_FLOW_MULTISTEP = Flow(*_MULTISTEP, _options(algorithm_type="dpmsolver++", solver_order=2))

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
            midway="repeat_second",
        ),
        "lms": Row("lms_discrete", "LMSDiscreteScheduler", "LMS", sigmas=SIGMAS, midway="order_at_hand"),
        "euler": Row(
            "euler_discrete",
            "EulerDiscreteScheduler",
            "Euler",
            sigmas=SIGMAS,
            flow=Flow("flow_match_euler_discrete", "FlowMatchEulerDiscreteScheduler", sigmas=SIGMAS),
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
        "heun": Row(
            "heun_discrete",
            "HeunDiscreteScheduler",
            "Heun",
            sigmas=SIGMAS,
            flow=Flow("flow_match_heun_discrete", "FlowMatchHeunDiscreteScheduler"),
        ),
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
            _FLOW_MULTISTEP.options,
            sigmas=SIGMAS,
            flow=_FLOW_MULTISTEP,
            ends_clean=_with_final_sigma_zero,
            zero_snr=True,
        ),
        "dpm++-2m-sde": Row(
            *_MULTISTEP,
            "DPM++ 2M SDE",
            _options(algorithm_type=_SDE, solver_order=2),
            sigmas=SIGMAS,
            flow=Flow(*_MULTISTEP, _options(algorithm_type=_SDE, solver_order=2)),
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
            flow=Flow(*_MULTISTEP, _options(algorithm_type=_SDE, solver_order=3)),
            ends_clean=_with_final_sigma_zero,
            zero_snr=True,
            stochastic=True,
        ),
        "unipc": Row(
            "unipc_multistep",
            "UniPCMultistepScheduler",
            "UniPC",
            sigmas=SIGMAS,
            flow=Flow("unipc_multistep", "UniPCMultistepScheduler"),
            ends_clean=_with_final_sigma_zero,
            zero_snr=True,
        ),
        "deis": Row(
            "deis_multistep",
            "DEISMultistepScheduler",
            "DEIS",
            _options(algorithm_type="deis"),
            sigmas=SIGMAS,
            ends_clean=_never,
        ),
        "lcm": Row(
            "lcm",
            "LCMScheduler",
            "LCM",
            flow=Flow("flow_match_lcm", "FlowMatchLCMScheduler", sigmas=SIGMAS),
            most_steps=_distilled_steps,
            zero_snr=True,
            stochastic=True,
        ),
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
CLASSES = frozenset(
    {row.class_name for row in TABLE.values()}
    | {"DDIMParallelScheduler", "DDPMParallelScheduler", "DDIMInverseScheduler", "SASolverScheduler"}
)
"""diffusers' classes whose configs describe what all rows of the table take: steps of ᾱ, and no EDM or flow."""
FLOW_CLASSES = frozenset({row.flow.class_name for row in TABLE.values() if row.flow is not None})
"""diffusers' classes whose configs can describe a model of flow matching."""

_AUTOMATIC = ("", "automatic", "uniform", "default")


def check(
    name: str,
    sigmas: str,
    eta: float,
    scheduler_config: Config | None = None,
    steps: int | None = None,
) -> None:
    """Raise InvalidRecipe for an invalid combination of scheduler, sigmas, eta, steps and model.

    `name` is one of NAMES and `sigmas` one of SIGMAS. `scheduler_config` is the model's, in diffusers' key names;
    without it the model and `steps` are not checked.
    """
    row, is_flow = TABLE[name], predicts_flow(scheduler_config or {})
    if is_flow:
        _check_flow(name, row, sigmas)
    elif sigmas not in row.sigmas:
        hint = f"use --sigmas default, or one of {_names(lambda row: sigmas in row.sigmas)}"
        raise InvalidRecipe(f"the scheduler {name} does not support {sigmas} sigmas", hint, "sigmas")
    if eta and not row.takes_eta:
        hint = f"use --eta 0, or one of {_names(lambda row: row.takes_eta)}"
        raise InvalidRecipe(f"the scheduler {name} does not support eta", hint, "eta")
    if scheduler_config is not None and not is_flow:
        _check_model(name, row, scheduler_config)
        _check_sigmas(sigmas, scheduler_config)
    if scheduler_config is not None and steps is not None:
        _check_steps(name, sigmas, scheduler_config, steps)


def least_steps(name: str, config: Config) -> int:
    """Return the least number of steps that a scheduler can use with this model."""
    least = TABLE[name].least_steps
    if predicts_flow(config) and config.get("shift_terminal"):
        return max(least, 2)  # diffusers stretches the noise levels between the first and the last
    return least


def predicts_flow(config: Config) -> bool:
    """Whether the model with this scheduler config was trained by flow matching."""
    return config.get("prediction_type") == FLOW


def _check_flow(name: str, row: Row, sigmas: str) -> None:
    if row.flow is None:
        message = f"the scheduler {name} does not support models of flow matching, such as this one"
        raise InvalidRecipe(message, f"use one of {_names(lambda row: row.flow is not None)}", "scheduler")
    if sigmas not in row.flow.sigmas:
        able = _names(lambda row: row.flow is not None and sigmas in row.flow.sigmas)
        message = f"the scheduler {name} does not support {sigmas} sigmas with a model of flow matching"
        raise InvalidRecipe(message, f"use --sigmas default, or one of {able}", "sigmas")


def _check_model(name: str, row: Row, config: Config) -> None:
    predicted = config.get("prediction_type", "epsilon")
    if predicted not in row.predictions:
        message = f"the scheduler {name} does not support models that predict {PREDICTIONS.get(predicted, predicted)}"
        able = _names(lambda row: predicted in row.predictions)
        raise InvalidRecipe(message, f"use one of {able}" if able else "use another model", "scheduler")


def _check_sigmas(sigmas: str, config: Config) -> None:
    """Refuse beta sigmas for a noise schedule that starts at pure noise.

    diffusers spaces them between the lowest and the highest σ, which is several thousand there: nearly all steps would
    be spent on noise levels at which a picture has no shape yet.
    """
    if sigmas == "beta" and config.get("rescale_betas_zero_snr"):
        hint = "use --sigmas default or karras"
        raise InvalidRecipe("beta sigmas do not suit this model, whose noise schedule has zero SNR", hint, "sigmas")


def _check_steps(name: str, sigmas: str, config: Config, steps: int) -> None:
    """Reject numbers of steps with which diffusers' schedulers fail or give wrong results.

    Trailing spacing counts down from the number of training timesteps T in steps of T/steps. For some numbers of steps
    (61 of 1000), rounding gives one timestep too many, −1.
    """
    trained = int(config.get("num_train_timesteps", 1000))
    least, most = least_steps(name, config), TABLE[name].most_steps(config)
    if not least <= steps <= most:
        message = f"the scheduler {name} cannot use {steps} steps with this model"
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
    """Whether eta adds noise in any of `steps`; the last step adds none if it ends at x_0."""
    row = TABLE[name]
    return row.takes_eta and (steps > 1 or (row.eta_in_last_step and not row.ends_clean(config)))


def a1111_name(name: str, sigmas: str) -> str:
    """Return the sampler's name in Automatic1111, such as `DPM++ 2M Karras`."""
    return TABLE[name].a1111 + ("" if sigmas == "default" else f" {sigmas.capitalize()}")


def from_a1111(sampler: str, schedule_type: str = "") -> tuple[str, str] | None:
    """Return the scheduler's name and sigmas for Automatic1111's `Sampler` and, since 1.9, `Schedule type`.

    None for a sampler that is not in the table, such as `DPM++ 2S a`, which diffusers' class does not implement.
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
