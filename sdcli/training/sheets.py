"""Sheets of sample pictures that show the progress of a run, generated at fixed seeds by sdcli's denoising loop."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdcli.diffusion.architectures import unet
from sdcli.diffusion.context import Context
from sdcli.diffusion.denoise import denoise
from sdcli.diffusion.guidance import Guidance
from sdcli.diffusion.noise import initial_latents
from sdcli.files import atomic
from sdcli.training.parts import Parts, tokenize
from sdcli.training.pool import Pool
from sdcli.training.team import Team

SIDE = 160
STEPS, GUIDANCE_SCALE = 20, 3.0


def save_sheet(pictures: Tensor, columns: int, path: Path) -> None:
    """Write pictures (n, 3, H, W) in -1 … 1 as one PNG, row by row, each SIDE pixels wide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * SIDE, rows * SIDE))
    pixels = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for index, picture in enumerate(pixels):
        thumbnail = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(thumbnail, (index % columns * SIDE, index // columns * SIDE))
    with atomic.replacing(path) as file:
        sheet.save(file, format="PNG")


class Sheet:
    """The same few pictures at each step: the masked image or the map, if there is one, above the picture."""

    def __init__(self, parts: Parts, pool: Pool, seed: int, team: Team, count: int = 8) -> None:
        self.parts, self.pool, self.team = parts, pool, team
        items = pool.source.draw(np.random.default_rng([seed, 7]), count)
        described = [pool.task.describe(pool.source, item, self._rng(place)) for place, item in enumerate(items)]
        self.prompts = [pool.source.caption(each, np.random.default_rng(place)) for place, each in enumerate(described)]
        seen = [pool.source.picture(item) for item in items] if pool.task.channels else []
        self.kept = pool.task.encode(pool.encoder, seen, [self._rng(place) for place in range(count)]) if seen else {}

    def _rng(self, place: int) -> np.random.Generator:
        return np.random.default_rng([place, 11])

    def __call__(self, path: Path) -> None:
        """Write the sheet, and its prompts to prompts.txt in the same folder."""
        context = self.pool.task.context(self.kept) if self.kept else None
        drawn = draw(self.parts, self.prompts, context, self.team)
        given = self.pool.task.show(self.kept, lambda latents: decode(self.parts, latents, self.team))
        half = len(drawn) // 2
        if given is None:
            save_sheet(drawn, columns=half, path=path)
        else:
            pairs = torch.cat([given[:half], drawn[:half], given[half:], drawn[half:]])
            save_sheet(pairs, columns=half, path=path)
        (path.parent / "prompts.txt").write_text("\n".join(self.prompts) + "\n", encoding="utf-8")


@torch.no_grad()
def draw(parts: Parts, prompts: Sequence[str], context: Tensor | None, team: Team) -> Tensor:
    """Generate pictures (n, 3, H, W) in -1 … 1.

    `context`: the channels (n, C, h, w) besides the latents.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    scheduler = type(parts.scheduler).from_config(parts.scheduler.config)
    scheduler.set_timesteps(STEPS, device=team.device)
    side = int(parts.unet.config.sample_size)
    start = initial_latents(generators, (int(parts.unet.config.out_channels), side, side), scheduler, team.device)
    with team.autocast():
        encode = parts.text_encoder
        states = encode(tokenize(parts.tokenizer, list(prompts)).to(team.device)).last_hidden_state
        empty = encode(tokenize(parts.tokenizer, [""]).to(team.device)).last_hidden_state
        y = Context(states, empty, concat_latents=None if context is None else context.to(team.device))
        denoiser = unet.bind(parts.unet, y, Guidance(GUIDANCE_SCALE), len(prompts))
        latents = denoise(denoiser, scheduler, start, timesteps=scheduler.timesteps, generators=generators)
    return decode(parts, latents, team)


@torch.no_grad()
def decode(parts: Parts, latents: Tensor, team: Team) -> Tensor:
    """Decode scaled latents (n, C, h, w) to pictures (n, 3, H, W), on the CPU."""
    with team.autocast():
        scaled = latents.to(team.device, torch.float32) / parts.vae.config.scaling_factor
        decoded: Tensor = parts.vae.decode(scaled).sample
    return decoded.float().cpu()
