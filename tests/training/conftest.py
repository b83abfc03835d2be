from pathlib import Path

import pytest
from PIL import Image

from sdcli.training.sprites import tinted_sprites

SPRITES = Path(__file__).parent / "sprites"


@pytest.fixture(scope="session")
def sprites() -> dict[tuple[str, str], Image.Image]:
    """Every subject in every tint, from small renderings: no font is needed."""
    return tinted_sprites(SPRITES)
