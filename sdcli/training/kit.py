"""All stages that make kit, in order: each a run of its own in one folder, each resumable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdcli.errors import UsageError
from sdcli.files import folders
from sdcli.training import order as ordering
from sdcli.training.order import MODEL, Order


@dataclass(frozen=True)
class Stage:
    """What is trained, the stage whose model it goes on from, what of the world it sees, and its settings."""

    kind: str
    after: str | None = None
    world: str = "kit"
    settings: Mapping[str, Any] = field(default_factory=dict)


STAGES: Mapping[str, Stage] = {
    "autoencoder": Stage("autoencoder", settings={"steps": 1800, "cooldown": 900}),
    "text-to-image": Stage("text-to-image", "autoencoder", settings={"steps": 4000, "cooldown": 1300}),
    "text-encoder": Stage("text-encoder", "text-to-image", "kit-rows"),
    "rows": Stage(
        "text-to-image", "text-encoder", "kit-rows", {"steps": 2600, "cooldown": 1000, "lr": 1.2e-3, "warmup": 30}
    ),
    "inpaint": Stage("inpaint", "rows"),
    "semantic": Stage("semantic", "rows"),
}
"""By the names of their folders, in order, with what differs from the defaults of their kinds."""
PARTS = {"rows": "", "inpaint": "unet-inpaint", "semantic": "unet-semantic"}
"""The stages whose models kit is put together of, and where in its folder: a whole one, and two U-Nets."""


def plan(name: str, out: Path, sprites: Path | None) -> Order:
    """The order of one stage, once those before it are done. Raises UsageError where `out` holds others' runs."""
    stage = STAGES[name]
    begin: dict[str, Any] = {"world": stage.world}
    if sprites is not None and stage.kind != "text-encoder":
        begin["sprites"] = sprites
    if stage.after is not None:
        begin["vae" if stage.after == "autoencoder" else "base"] = out / stage.after / MODEL
    try:
        return ordering.plan(stage.kind, out / name, begin, stage.settings)
    except UsageError as error:
        raise UsageError(f"{out / name} was begun otherwise: {error}", "name another folder with --out") from error


def compose(out: Path) -> Path:
    """Put kit's folder together: one model, and beside its U-Net those of inpainting and of maps."""
    from sdcli.training import stages

    with folders.written(str(out / "kit"), force=True) as kit:
        for name, part in PARTS.items():
            order = ordering.read(out / name)
            stages.export_run(order, kit / part, averaged=None, unet_only=bool(part), shard_mb=12)
    return out / "kit"
