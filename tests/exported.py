"""What diffusers makes of a folder by itself: `python exported.py FOLDER LATENTS.npy`.

Knows nothing of sdcli, so that any Python can run it, with other versions of transformers and diffusers.
"""

import sys

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

ASKED = {"prompt": "a red fox, in the snow", "negative_prompt": "grey", "steps": 3, "guidance_scale": 3.0}
SEED, SIZE = 7, 64


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


def mask() -> Image.Image:
    drawn = Image.new("L", (SIZE, SIZE))
    drawn.paste(255, (8, 16, 40, 56))
    return drawn


def latents(folder: str) -> tuple[str, Tensor]:
    """The pipeline that the folder names, and the latents that it ends in, with the folder's own scheduler."""
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    inpaints = "Inpaint" in type(pipe).__name__
    given = {"image": picture(), "mask_image": mask(), "strength": 1.0} if inpaints else {}
    made = pipe(
        ASKED["prompt"],
        negative_prompt=ASKED["negative_prompt"],
        num_inference_steps=ASKED["steps"],
        guidance_scale=ASKED["guidance_scale"],
        width=SIZE,
        height=SIZE,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="latent",
        **given,
    )
    return type(pipe).__name__, made.images


if __name__ == "__main__":
    name, found = latents(sys.argv[1])
    np.save(sys.argv[2], found.numpy())
    print(name)
