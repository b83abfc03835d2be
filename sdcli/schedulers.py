"""The schedulers by the names users know: one table. Knows nothing of models; imports diffusers only to make one."""

from __future__ import annotations

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
    """Whether it can space its noise levels as Karras et al. 2022 do, exponentially, or as a beta distribution."""
    takes_eta: bool = False
    zero_snr: bool = False
    """Whether it knows `rescale_betas_zero_snr` (Lin et al. 2023, §3.1)."""
    stochastic: bool = False
    """Whether its steps draw noise even at eta 0."""


_MULTISTEP = ("dpmsolver_multistep", "DPMSolverMultistepScheduler")
_SDE = "sde-dpmsolver++"

TABLE: Mapping[str, Row] = MappingProxyType(
    {
        "ddim": Row("ddim", "DDIMScheduler", "DDIM", takes_eta=True, zero_snr=True),
        "ddpm": Row("ddpm", "DDPMScheduler", "DDPM", zero_snr=True, stochastic=True),
        "pndm": Row("pndm", "PNDMScheduler", "PLMS"),
        "lms": Row("lms_discrete", "LMSDiscreteScheduler", "LMS", has_sigmas=True),
        "euler": Row("euler_discrete", "EulerDiscreteScheduler", "Euler", has_sigmas=True, zero_snr=True),
        "euler-a": Row(
            "euler_ancestral_discrete",
            "EulerAncestralDiscreteScheduler",
            "Euler a",
            zero_snr=True,
            stochastic=True,
        ),
        "heun": Row("heun_discrete", "HeunDiscreteScheduler", "Heun", has_sigmas=True),
        "dpm2": Row("k_dpm_2_discrete", "KDPM2DiscreteScheduler", "DPM2", has_sigmas=True),
        "dpm2-a": Row(
            "k_dpm_2_ancestral_discrete",
            "KDPM2AncestralDiscreteScheduler",
            "DPM2 a",
            has_sigmas=True,
            stochastic=True,
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
            "dpmsolver_sde", "DPMSolverSDEScheduler", "DPM++ SDE", has_sigmas=True, stochastic=True
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


def check(name: str, sigmas: str, eta: float, scheduler_config: Mapping[str, Any] | None = None) -> None:
    """Raise InvalidRecipe where a scheduler, its sigmas, eta and (where known) the model do not go together.

    `name` is one of NAMES and `sigmas` one of SIGMAS. `scheduler_config` is the model's, in diffusers' key names.
    """
    row = TABLE[name]
    if sigmas != "default" and not row.has_sigmas:
        raise InvalidRecipe(
            f"the scheduler {name} has no {sigmas} sigmas",
            f"use --sigmas default, or one of {_names('has_sigmas')}",
            "sigmas",
        )
    if eta and not row.takes_eta:
        raise InvalidRecipe(
            f"the scheduler {name} takes no eta",
            f"leave --eta at 0, or use one of {_names('takes_eta')}",
            "eta",
        )
    if scheduler_config and scheduler_config.get("rescale_betas_zero_snr") and not row.zero_snr:
        raise InvalidRecipe(
            f"the scheduler {name} cannot start from this model's pure noise (zero terminal SNR)",
            f"use one of {_names('zero_snr')}",
            "scheduler",
        )


def _names(fact: str) -> str:
    return ", ".join(name for name, row in TABLE.items() if getattr(row, fact))
