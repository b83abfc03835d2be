"""All stages that make kit, in order: each a run of its own in one folder, each resumable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdcli.training import order as ordering
from sdcli.training.order import MODEL, Order


@dataclass(frozen=True)
class Step:
    """One stage: what it trains, the step whose model it goes on from, what of the world it sees, and its settings."""

    stage: str
    after: str | None = None
    world: str = "kit"
    settings: Mapping[str, Any] = field(default_factory=dict)


RECIPE: Mapping[str, Step] = {
    "autoencoder": Step("autoencoder", settings={"steps": 1800, "cooldown": 900}),
    "text-to-image": Step("text-to-image", "autoencoder", settings={"steps": 4000, "cooldown": 1300}),
    "text-encoder": Step("text-encoder", "text-to-image", "kit-rows"),
    "rows": Step(
        "text-to-image", "text-encoder", "kit-rows", {"steps": 2600, "cooldown": 1000, "lr": 1.2e-3, "warmup": 30}
    ),
    "inpaint": Step("inpaint", "rows"),
    "semantic": Step("semantic", "rows"),
}
"""The steps by the names of their folders, in order, with what differs from the stages' defaults."""
KIT = {"rows": "", "inpaint": "unet-inpaint", "semantic": "unet-semantic"}
"""The steps whose models kit is put together of, and where in its folder: a whole one, and two U-Nets."""


def plan(name: str, out: Path, sprites: Path | None) -> Order:
    """The order of one step, once those before it are done."""
    step = RECIPE[name]
    begin: dict[str, Any] = {"world": step.world} | ({} if sprites is None else {"sprites": sprites})
    if step.after is not None:
        begin["vae" if step.after == "autoencoder" else "base"] = out / step.after / MODEL
    return ordering.plan(step.stage, out / name, begin, step.settings)


def compose(out: Path) -> Path:
    """Put kit's folder together: one model, and beside its U-Net those of inpainting and of maps."""
    from sdcli.training import stages

    kit = out / "kit"
    for name, folder in KIT.items():
        stages.export_run(ordering.read(out / name), kit / folder, averaged=None, unet_only=bool(folder), shard_mb=12)
    return kit
