"""All stages that make kit, in order: each a run of its own in one folder, each resumable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdcli.training import order as ordering
from sdcli.training.order import MODEL, Order

RECIPE: Mapping[str, Mapping[str, Any]] = {
    "autoencoder": {"steps": 1800, "cooldown": 900},
    "text-to-image": {"steps": 4000, "cooldown": 1300},
    "inpaint": {},
    "semantic": {},
}
"""The stages in order, with what differs from their defaults."""


def plan(stage: str, out: Path, sprites: Path | None) -> Order:
    """The order of one stage, once those before it are done."""
    begin: dict[str, Any] = {} if sprites is None else {"sprites": sprites}
    if stage == "text-to-image":
        begin["vae"] = out / "autoencoder" / MODEL
    elif stage != "autoencoder":
        begin["base"] = out / "text-to-image" / MODEL
    return ordering.plan(stage, out / stage, begin, RECIPE[stage])


def compose(out: Path) -> Path:
    """Put kit's folder together: one model, and beside its U-Net those of inpainting and of maps."""
    from sdcli.training import stages

    kit = out / "kit"
    folders = {"text-to-image": kit, "inpaint": kit / "unet-inpaint", "semantic": kit / "unet-semantic"}
    for stage, folder in folders.items():
        order = ordering.read(out / stage)
        stages.export_run(order, folder, averaged=None, unet_only=folder != kit, shard_mb=12)
    return kit
