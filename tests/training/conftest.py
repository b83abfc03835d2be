from pathlib import Path

import pytest

from sdcli.training import parts
from sdcli.training.world import FEW, Sprites, sprites_of

SPRITES = Path(__file__).parent / "sprites"
TINY_TEXT_ENCODER = {**parts.TEXT_ENCODER, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TINY_UNET = {**parts.UNET, "block_out_channels": (16, 16, 16), "attention_head_dim": (1, 1, 1), "norm_num_groups": 4,
             "cross_attention_dim": 64}  # fmt: skip


@pytest.fixture(scope="session")
def sprites() -> Sprites:
    """The subjects of the world `few` in each tint, without a download."""
    return sprites_of(SPRITES, FEW)
