"""Draws the edges of an image, for ControlNets that were trained on such drawings. Knows no models."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
from PIL import Image

from sdcli.errors import InvalidRecipe

PACKAGE = "opencv-python-headless"


def check() -> None:
    """Raise InvalidRecipe if the library that draws edges is not installed."""
    if find_spec("cv2") is None:
        hint = "install it with: pip install 'sdcli[canny]'; or give a drawing of edges"
        raise InvalidRecipe(f"canny needs the package {PACKAGE}, which is not installed", hint, "control")


def canny(picture: Image.Image, low: int, high: int) -> Image.Image:
    """Draw the edges of an RGB picture, white on black, RGB (Canny 1986, "A Computational Approach to Edge Detection").

    By OpenCV, as for the training of ControlNets. An edge starts where brightness changes by more than `high`, and
    continues where it changes by more than `low`.
    """
    import cv2

    return Image.fromarray(cv2.Canny(np.asarray(picture), low, high)).convert("RGB")
