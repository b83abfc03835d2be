from pathlib import Path

import pytest

from sdcli.training.world import Sprites, sprites_of

SPRITES = Path(__file__).parent / "sprites"


@pytest.fixture(scope="session")
def sprites() -> Sprites:
    """Every subject of kit in every tint, from small renderings: no font is needed."""
    return sprites_of(SPRITES)
