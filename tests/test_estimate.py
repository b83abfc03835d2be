"""What a step estimates as the finished picture."""

import pytest
import torch

from sdcli.diffusion import samplers
from sdcli.diffusion.denoise import Evaluation, denoise
from sdcli.diffusion.estimate import Watched

CONFIG = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TARGET = torch.linspace(-1, 1, 32).reshape(1, 2, 4, 4)


def exact(scheduler, prediction_type):
    """An f that knows the picture: what it predicts leads to TARGET from any latents."""

    def predict(latents, timestep, evaluation):
        if prediction_type == "flow_prediction":
            sigma = timestep / 1000
            return (latents - TARGET) / sigma
        place = min(int(timestep), 999)
        level = torch.lerp(scheduler.alphas_cumprod[place], scheduler.alphas_cumprod[min(place + 1, 999)], timestep % 1)
        noise = (latents - level.sqrt() * TARGET) / (1 - level).sqrt()
        if prediction_type == "v_prediction":
            return level.sqrt() * noise - (1 - level).sqrt() * TARGET
        return TARGET if prediction_type == "sample" else noise

    return predict


CASES = [
    (kind, name) for kind in ("epsilon", "v_prediction") for name in ("ddim", "euler", "euler-a", "dpm++-2m", "heun")
]


@pytest.mark.parametrize(
    ("prediction_type", "name"), [*CASES, *(("flow_prediction", name) for name in ("euler", "dpm++-2m", "heun"))]
)
def test_each_step_of_an_exact_model_estimates_the_picture(name, prediction_type):
    config = CONFIG | {"prediction_type": prediction_type}
    scheduler = samplers.make(name, "default", config, noise_seeds=[0])
    scheduler.set_timesteps(5)
    watched = Watched(exact(scheduler, prediction_type), scheduler)
    seen = []
    start = torch.randn(TARGET.shape, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    denoise(
        watched, scheduler, start, timesteps=scheduler.timesteps, generators=[torch.Generator()],
        on_step=lambda step: seen.append(watched.estimate()),
    )  # fmt: skip
    assert len(seen) == 5
    for each in seen:
        assert torch.allclose(each, TARGET, atol=2e-3)


def test_a_model_that_predicts_the_picture_itself():
    scheduler = samplers.make("ddim", "default", CONFIG | {"prediction_type": "sample"}, noise_seeds=[0])
    watched = Watched(lambda *_: TARGET, scheduler)
    watched(torch.zeros_like(TARGET), torch.tensor(500.0), Evaluation(0, 1, 500.0))
    assert watched.estimate() is TARGET
