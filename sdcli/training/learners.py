"""The learners of kit's phases: their modules, the data they keep of each chunk of scenes, and their losses.

The diffusion phases share one U-Net that takes all contexts at once: latents, a mask with the masked image's latents,
and a segmentation map; the channels of other contexts are zero. An exported U-Net takes only the channels of its own
context. One compiled graph serves all phases, and each phase continues from the weights of the previous one.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from sdcli.diffusion.context import segmentation
from sdcli.files import palette
from sdcli.training import autoencoder, checkpoint, export, parts, sheets
from sdcli.training import judge as judging
from sdcli.training.diffusion import target_of, weighted_mean
from sdcli.training.judge import Judge, Segmenter, judging_loss
from sdcli.training.parts import Parts
from sdcli.training.places import CLASSES
from sdcli.training.pool import Task
from sdcli.training.reading import Readout, reading_loss
from sdcli.training.settings import AutoencoderTraining, InpaintTraining
from sdcli.training.stream import Chunk
from sdcli.training.tasks import Inpaint, Semantic, TextToImage
from sdcli.training.team import Team
from sdcli.training.world import Vocabulary

Rows = dict[str, Tensor]
SHARD_MB = 13
JUDGE = "judge.pt"
CROP_GROUPS = 8
CAPTION_TOKENS = 48
DEFAULTS = InpaintTraining()
FOLDERS = {"text-to-image": "unet", "inpaint": "unet-inpaint", "semantic": "unet-semantic"}
PROMPTS = (
    "arctic fox",
    "an astronaut riding a horse on the beach",
    "a green t-rex in the city at night",
    "three penguins next to a castle",
    "a pizza",
    "a cat on a car",
    "a red dragon in the mountains",
    "a wizard in the forest at night",
    "two blue elephants in the desert",
    "a dog right of a cat in a meadow",
    "a purple octopus under water",
    "a photo of a sailboat at sunset",
    "a giraffe in the snow",
    "a small house in the mountains",
    "a robot on a white background",
    "a lion left of a tree",
)


@dataclass(frozen=True)
class Runtime:
    """The device with its autocast, whether to compile the U-Net, and a generator on the device."""

    team: Team
    generator: torch.Generator
    compiles: bool = False

    @property
    def device(self) -> torch.device:
        """The device."""
        return self.team.device


class Learner(Protocol):
    """What a phase trains, and how."""

    modules: dict[str, nn.Module]

    def rows(self, chunk: Chunk) -> Rows:
        """Return the tensors that the pool keeps of a chunk, on the device, with one row per scene."""

    def loss(self, rows: Rows, step: int) -> Tensor:
        """Return the loss of a batch of rows."""

    def export(self, kit: Path) -> dict[str, float]:
        """Write the trained components into kit's folder; returns measurements for the log."""

    def sheet(self, path: Path) -> None:
        """Write a sheet of sample pictures."""


def on_device(chunk: Chunk, device: torch.device) -> Rows:
    """Return all tensors of a chunk on the device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in chunk.items()}


def to_pixels(images: Tensor, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert uint8 (n, 3, H, W) to -1 … 1 on the device, in channels_last format."""
    pixels = images.to(device, non_blocking=True).to(dtype) / 127.5 - 1
    return pixels.contiguous(memory_format=torch.channels_last)


class AutoencoderLearner:
    """Trains an autoencoder on crops; its first steps use a linear teacher (see `training.autoencoder`).

    With `only_decoder`, latents stay what they are, so U-Nets that were trained on them remain right.
    """

    def __init__(
        self,
        runtime: Runtime,
        unseen: Tensor,
        fitted_to: Tensor,
        base: Path | None = None,
        *,
        only_decoder: bool = False,
    ) -> None:
        torch.manual_seed(1)
        fresh = base is None
        vae = AutoencoderKL(**autoencoder.ARCHITECTURE) if base is None else parts.read_vae(base / "vae")
        self.runtime, self.unseen = runtime, unseen
        self.vae = vae.train().requires_grad_(True).to(runtime.device, memory_format=torch.channels_last)
        self.modules: dict[str, nn.Module] = {"vae": self.vae}
        self.only_decoder = only_decoder
        if only_decoder:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
            self.modules = {"decoder": self.vae.decoder, "post_quant_conv": self.vae.post_quant_conv}
        self.settings = AutoencoderTraining()
        self.teacher_steps = self.settings.teacher_steps if fresh else 0
        channels = int(self.vae.config.latent_channels)
        self.teacher = autoencoder.fit_teacher(fitted_to, channels).to(runtime.device)

    def rows(self, chunk: Chunk) -> Rows:
        """Return the pictures."""
        return on_device(chunk, self.runtime.device)

    def loss(self, rows: Rows, step: int) -> Tensor:
        """Return the loss of crops. The batch has CROP_GROUPS groups, each with its own crop offset."""
        crop = self.settings.crop
        room = rows["images"].shape[-1] - crop
        rng = np.random.default_rng([7, step])
        crops = []
        for part in rows["images"].chunk(CROP_GROUPS):
            top, left = (round(room * rng.beta(1.3, 1.3)) for _ in range(2))
            crops.append(part[..., top : top + crop, left : left + crop])
        images = to_pixels(torch.cat(crops), self.runtime.device)
        side = crop // autoencoder.PATCH
        shape = (len(images), int(self.vae.config.latent_channels), side, side)
        noise = torch.randn(shape, generator=self.runtime.generator, device=self.runtime.device)
        teacher = self.teacher if step < self.teacher_steps else None
        return autoencoder.total_loss(self.vae, images, teacher, noise, self.settings, self.runtime.team)

    def export(self, kit: Path) -> dict[str, float]:
        """Write the autoencoder with its scaling factor; returns its PSNR on unseen pictures."""
        self.vae.eval()
        if not self.only_decoder:
            autoencoder.set_scaling_factor(self.vae, self.unseen)
        psnr = autoencoder.measure_psnr(self.vae, self.unseen)
        export.export_vae(copy.deepcopy(self.vae), kit / "vae")
        self.vae.train()
        return {"psnr": round(psnr, 2)}

    def sheet(self, path: Path) -> None:
        """Write pictures, and their reconstructions below them."""
        images = self.unseen[:6]
        sheets.save_sheet(torch.cat([images, autoencoder.reconstruct(self.vae, images)]), columns=6, path=path)


class CaptionLearner:
    """Trains a text encoder on captions alone, with a readout of positions (see `training.reading`)."""

    def __init__(self, runtime: Runtime, kit: Path, vocabulary: Vocabulary, base: Path | None = None) -> None:
        torch.manual_seed(2)
        tokenizer = parts.read_tokenizer(kit / "tokenizer")
        encoder = parts.build_text_encoder(tokenizer) if base is None else parts.read_text(base)[0]
        config = encoder.config
        readout = Readout(config.hidden_size, config.num_attention_heads, vocabulary)
        self.runtime = runtime
        self.modules: dict[str, nn.Module] = {
            "text_encoder": encoder.train().to(runtime.device),
            "readout": readout.to(runtime.device),
        }
        self.right = torch.zeros((), device=runtime.device)

    def rows(self, chunk: Chunk) -> Rows:
        """Return token ids, without the columns that are padding in every caption, and layouts."""
        return on_device({**chunk, "ids": chunk["ids"][:, :CAPTION_TOKENS]}, self.runtime.device)

    def loss(self, rows: Rows, step: int) -> Tensor:
        """Return the loss of the readout."""
        with self.runtime.team.autocast():
            states = self.modules["text_encoder"](rows["ids"].long()).last_hidden_state
            logits = self.modules["readout"](states)
        loss, self.right = reading_loss(logits, rows)
        return loss

    def export(self, kit: Path) -> dict[str, float]:
        """Write the text encoder; returns the share of cells predicted correctly in the last batch."""
        export.export_text_encoder(self.modules["text_encoder"], kit / "text_encoder")
        return {"read": round(self.right.item(), 4)}

    def sheet(self, path: Path) -> None:
        """Do nothing: there are no pictures."""


def world_classes() -> tuple[palette.Class, ...]:
    """Return the classes of the world's maps."""
    return tuple(palette.Class(index, *each) for index, each in enumerate(CLASSES.items()))


def tasks_of(latents: int) -> dict[str, Task]:
    """Return the task of each kind. Their channels follow the latents in the shared U-Net, in this order."""
    return {
        "text-to-image": TextToImage(),
        "inpaint": Inpaint(latents, DEFAULTS.known_weight),
        "semantic": Semantic(world_classes()),
    }


def slots_of(kind: str, latents: int) -> list[int]:
    """Return the indices of the shared U-Net's input channels that a kind of model uses."""
    slots, first = list(range(latents)), latents
    for name, task in tasks_of(latents).items():
        if name == kind:
            slots += range(first, first + task.channels)
        first += task.channels
    return slots


@torch.no_grad()
def shared_unet(unet: UNet2DConditionModel, kind: str) -> UNet2DConditionModel:
    """Return a U-Net for all contexts from a U-Net for `kind`; the new weights are zero."""
    latents, known = int(unet.config.out_channels), unet.conv_in.weight
    total = latents + sum(task.channels for task in tasks_of(latents).values())
    slots = slots_of(kind, latents)
    if known.shape[1] != len(slots):
        known = known[:, :latents]
    weight = known.new_zeros((len(known), total, *known.shape[2:]))
    weight[:, slots[: known.shape[1]]] = known
    return parts.with_input_weight(unet, weight)


def own_unet(unet: UNet2DConditionModel, kind: str) -> UNet2DConditionModel:
    """Return a copy of a shared U-Net with only the input channels of `kind`; its output is the same."""
    slots = slots_of(kind, int(unet.config.out_channels))
    return parts.with_input_weight(copy.deepcopy(unet), unet.conv_in.weight[:, slots])


class UnetLearner:
    """Trains the U-Net for one kind of context; for text-to-image, also the text encoder."""

    def __init__(self, runtime: Runtime, kit: Path, kind: str, base: Path | None = None) -> None:
        torch.manual_seed(3)
        self.runtime, self.kind = runtime, kind
        tokenizer = parts.read_tokenizer(kit / "tokenizer")
        vae = parts.read_vae(kit / "vae")
        self.parts = Parts(vae, unet_of(kit, kind, base), parts.read_text_encoder(kit / "text_encoder"), tokenizer,
                           parts.noise_scheduler())  # fmt: skip
        self.parts.to(runtime.device)
        self.parts.unet.train().to(memory_format=torch.channels_last)
        self.encoder = copy.deepcopy(vae.encoder).to(runtime.device)
        self.quant = copy.deepcopy(vae.quant_conv).to(runtime.device)
        if runtime.device.type == "cuda":
            for part in (self.encoder, self.quant):
                part.to(torch.bfloat16, memory_format=torch.channels_last)
        self.modules: dict[str, nn.Module] = {"unet": self.parts.unet}
        self.parts.text_encoder.requires_grad_(kind == "text-to-image")
        if kind == "text-to-image":
            self.modules["text_encoder"] = self.parts.text_encoder.train()
        self.predict = torch.compile(self.parts.unet) if runtime.compiles else self.parts.unet
        latents = int(self.parts.unet.config.out_channels)
        self.task, slots = tasks_of(latents)[kind], slots_of(kind, latents)
        self.place = slice(slots[-1] + 1 - latents - self.task.channels, slots[-1] + 1 - latents)
        """Where the task's channels are in the context."""
        self.empty = parts.tokenize(tokenizer, [""]).to(runtime.device)
        self.alphas = self.parts.scheduler.alphas_cumprod.to(runtime.device)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return the scaled means of the latents, float16, for pictures in -1 … 1."""
        dtype = next(self.encoder.parameters()).dtype
        moments = self.quant(self.encoder(pixels.to(dtype))).float()
        latents: Tensor = moments.chunk(2, dim=1)[0] * self.parts.vae.config.scaling_factor
        return latents.half().contiguous()

    def rows(self, chunk: Chunk) -> Rows:
        """Return latents, captions, and the data for the context."""
        device = self.runtime.device
        pixels = to_pixels(chunk["images"], device)
        rows = {"latents": self.encode(pixels), "ids": chunk["ids"].to(device)}
        if self.kind == "inpaint":
            masks = chunk["masks"].to(device).float()[:, None]
            rows["masked"] = self.encode(pixels * (masks < 0.5))
            rows["mask"] = F.interpolate(masks, size=rows["latents"].shape[-2:]).byte()
        if self.kind == "semantic":
            rows["shares"] = segmentation.encode(chunk["maps"].to(device), len(CLASSES), autoencoder.PATCH).half()
        return rows

    def context(self, rows: Rows) -> Tensor:
        """Return all contexts of the shared U-Net, (n, channels, h, w); zeros for other kinds."""
        latents, own = rows["latents"], self.task.context(rows)
        channels = int(self.parts.unet.config.in_channels) - latents.shape[1]
        context = torch.zeros((len(latents), channels, *latents.shape[2:]), device=latents.device)
        if own is not None:
            context[:, self.place] = own
        return context

    def draw(self, count: int) -> Tensor:
        """Return logit-normal timesteps (Esser et al. 2024, section 3.1), shifted towards noise."""
        normal = torch.randn(count, generator=self.runtime.generator, device=self.runtime.device)
        steps = len(self.alphas)
        return ((normal + DEFAULTS.timestep_shift).sigmoid() * steps).long().clamp(max=steps - 1)

    def loss(self, rows: Rows, step: int) -> Tensor:
        """Return the mean squared error of v. For inpainting, the known part has a lower weight."""
        runtime, latents, count = self.runtime, rows["latents"].float(), len(rows["latents"])
        timesteps = self.draw(count)
        noise = torch.randn(latents.shape, generator=runtime.generator, device=runtime.device)
        scheduler = self.parts.scheduler
        sample = torch.cat([scheduler.add_noise(latents, noise, timesteps), self.context(rows)], dim=1)
        chosen = torch.randint(rows["ids"].shape[1], (count,), generator=runtime.generator, device=runtime.device)
        ids = rows["ids"][torch.arange(count, device=runtime.device), chosen].long()
        dropped = torch.rand(count, generator=runtime.generator, device=runtime.device) < DEFAULTS.empty_prompts
        ids = torch.where(dropped[:, None], self.empty, ids)
        with runtime.team.autocast():
            with torch.set_grad_enabled(self.kind == "text-to-image"):
                states = self.parts.text_encoder(ids).last_hidden_state
            sample = sample.contiguous(memory_format=torch.channels_last)
            prediction = self.predict(sample, timesteps, states, return_dict=False)[0]
        error = (prediction.float() - target_of(scheduler, latents, noise, timesteps)).square()
        return weighted_mean(error, self.task.weights(rows))

    def own(self) -> Parts:
        """Return the components, with a U-Net that has only this kind's input channels."""
        held = self.parts
        return Parts(held.vae, own_unet(held.unet, self.kind).eval(), held.text_encoder, held.tokenizer, held.scheduler)

    def export(self, kit: Path) -> dict[str, float]:
        """Write the U-Net in shards, and the text encoder if it was trained."""
        if self.kind == "text-to-image":
            export.export_text_encoder(self.parts.text_encoder, kit / "text_encoder")
        folder = kit / FOLDERS[self.kind]
        export.export_unet(own_unet(self.parts.unet, self.kind), folder, SHARD_MB)
        if self.kind == "semantic":
            palette.write(folder, world_classes())
        return {}

    def sheet(self, path: Path) -> None:
        """Write pictures of PROMPTS for text-to-image. Other kinds would need a context for each prompt."""
        if self.kind == "text-to-image":
            drawn = sheets.draw(self.own(), PROMPTS, None, self.runtime.team)
            sheets.save_sheet(drawn, columns=8, path=path)


def unet_of(kit: Path, kind: str, base: Path | None) -> UNet2DConditionModel:
    """Return the shared U-Net that a phase starts with.

    It comes from the model `base` if that has a U-Net of this kind, else from the text-to-image U-Net of kit or `base`,
    else it is new.
    """
    own, text = FOLDERS[kind], FOLDERS["text-to-image"]
    if base is not None and (base / own).is_dir():
        return shared_unet(parts.read_unet(base / own), kind)
    if kind != "text-to-image":
        folder = base if base is not None and not (kit / text).is_dir() else kit
        return shared_unet(parts.read_unet(folder / text), "text-to-image")
    return shared_unet(UNet2DConditionModel(**parts.UNET), kind)


class JudgeLearner:
    """Trains the judge of pictures and the segmenter (see `training.judge`).

    From those of a base, the means of their weights and the trained ones are exported, which after a short run are
    better than either (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
    """

    def __init__(self, runtime: Runtime, vocabulary: Vocabulary, base: Path | None = None) -> None:
        torch.manual_seed(4)
        self.runtime = runtime
        self.began: dict[str, dict[str, Tensor]] = {}
        if base is not None and (base.parent / JUDGE).exists():
            judge, segmenter = judging.load(base.parent / JUDGE, vocabulary)
            self.began = copy.deepcopy({"judge": judge.state_dict(), "segmenter": segmenter.state_dict()})
        else:
            judge, segmenter = Judge(vocabulary), Segmenter()
        self.modules: dict[str, Any] = {
            "judge": judge.train().to(runtime.device),
            "segmenter": segmenter.train().to(runtime.device),
        }

    def rows(self, chunk: Chunk) -> Rows:
        """Return the pictures, their maps and the correct answers."""
        return on_device(chunk, self.runtime.device)

    def loss(self, rows: Rows, step: int) -> Tensor:
        """Return the sum of both networks' losses."""
        images, maps = to_pixels(rows["images"], self.runtime.device), rows["maps"]
        targets = {name: rows[name] for name in self.modules["judge"].choices}
        with self.runtime.team.autocast():
            return judging_loss(self.modules["judge"], self.modules["segmenter"], images, targets, maps,
                                np.random.default_rng([9, step]))  # fmt: skip

    def export(self, kit: Path) -> dict[str, float]:
        """Write judge.pt next to kit's folder."""
        states: dict[str, dict[str, Tensor]] = {}
        for name, module in self.modules.items():
            after = {key: value.cpu() for key, value in module.state_dict().items()}
            before = self.began.get(name, after)
            states[name] = {key: ((value + before[key]) / 2).half() for key, value in after.items()}
        checkpoint.save(kit.parent / JUDGE, states)
        return {}

    def sheet(self, path: Path) -> None:
        """Do nothing: there are no pictures."""
