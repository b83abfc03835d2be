from pathlib import Path

import pytest

from sdcli.training.world import FEW, Sprites, sprites_of

SPRITES = Path(__file__).parent / "sprites"


@pytest.fixture(scope="session")
def sprites() -> Sprites:
    """The subjects of the world `few` in every tint: nothing is fetched."""
    return sprites_of(SPRITES, FEW)
