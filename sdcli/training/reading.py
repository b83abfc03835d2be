"""Trains a text encoder to represent positions: which subject of a caption's scene is where.

The diffusion loss teaches a text encoder little about positions: after 70,000 pictures, the states for "a cat right of
a dog" and "a cat left of a dog" were nearly the same. Captions alone teach it at a hundredth of the cost. A readout,
which is not exported, has a query for each cell of a coarse grid over the picture: with cross-attention to the hidden
states it predicts the subject in that cell and its colour, and for the whole picture the place and the time of day.
What the readout finds in the hidden states, the cross-attention of a U-Net can learn to find.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from sdcli.training import checkpoint
from sdcli.training.captions import caption
from sdcli.training.loop import finish_step
from sdcli.training.optimizers import MatrixOptimizer
from sdcli.training.parts import tokenize
from sdcli.training.places import TIMES
from sdcli.training.settings import TextEncoderTraining
from sdcli.training.team import Team
from sdcli.training.world import Scene, Vocabulary, place_names, scenes

COLUMNS, ROWS = 8, 4
CELLS = COLUMNS * ROWS
TOKENS = 32
"""The minimum number of tokens, instead of 77: captions and some padding.

Later tokens do not change the states of a causal encoder.
"""
PLACE_WEIGHT = 0.3
CELL_QUESTIONS, WHOLE_QUESTIONS = ("subjects", "colours"), ("places", "times")
NOTHING = 0
UNREAD = -100
"""The ignore_index of cross_entropy for the place of a scene with a mixed place."""

Layout = Mapping[str, Tensor]
"""The content of captions, as class indices.

Subjects and colours are (n, CELLS), row by row, NOTHING if there is no subject; places and times are (n,), UNREAD for a
mixed place.
"""


def layout_of(drawn: Sequence[Scene], vocabulary: Vocabulary) -> dict[str, Tensor]:
    """Return the subject and colour in each cell, and place and time, of scenes.

    A subject is in a cell if its box contains the middle of the cell. The smaller of two is taken: it is the one in
    front, or a rider, whose box is inside that of its mount.
    """
    numbers = {name: number for number, name in enumerate(place_names(vocabulary))}
    found = np.full((2, len(drawn), ROWS, COLUMNS), NOTHING)
    x, y = (np.arange(COLUMNS) + 0.5) / COLUMNS, (np.arange(ROWS) + 0.5) / ROWS
    for index, scene in enumerate(drawn):
        for placement in sorted(scene.placements, key=lambda placement: -placement.side):
            half = placement.side / 2
            within = (np.abs(y - placement.y) < half)[:, None] & (np.abs(x - placement.x) < half)
            found[0, index, within] = 1 + vocabulary.subjects.index(placement.subject)
            found[1, index, within] = 1 + vocabulary.colours.index(placement.colour)
    subjects, colours = torch.from_numpy(found).flatten(2)
    return {
        "subjects": subjects,
        "colours": colours,
        "places": torch.tensor([numbers.get(scene.place, UNREAD) for scene in drawn]),
        "times": torch.tensor([TIMES.index(scene.time) for scene in drawn]),
    }


class Readout(nn.Module):
    """Predicts a layout from hidden states (n, tokens, width).

    Returns logits by name: (n, CELLS, choices) for subjects and colours, (n, choices) for places and times.
    """

    def __init__(self, width: int, heads: int, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.5 * torch.randn(CELLS + 1, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.hidden = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.subjects = nn.Linear(width, 1 + len(vocabulary.subjects))
        self.colours = nn.Linear(width, 1 + len(vocabulary.colours))
        self.places = nn.Linear(width, len(place_names(vocabulary)))
        self.times = nn.Linear(width, len(TIMES))

    def forward(self, states: Tensor) -> dict[str, Tensor]:
        """Return the logits of subjects, colours, places and times."""
        queries = self.queries.expand(len(states), -1, -1)
        found = self.hidden(self.attention(queries, states, states, need_weights=False)[0])
        cells, whole = found[:, :CELLS], found[:, CELLS]
        return {
            "subjects": self.subjects(cells),
            "colours": self.colours(cells),
            "places": self.places(whole),
            "times": self.times(whole),
        }


def reading_loss(logits: Mapping[str, Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    """Return the sum of the cross-entropies, and the share of cells whose subject is predicted correctly."""
    cells = [F.cross_entropy(logits[name].float().flatten(0, 1), layout[name].flatten()) for name in CELL_QUESTIONS]
    whole = []
    for name in WHOLE_QUESTIONS:
        asked = (layout[name] != UNREAD).sum().clamp(min=1)  # avoids 0 / 0
        total = F.cross_entropy(logits[name].float(), layout[name], ignore_index=UNREAD, reduction="sum")
        whole.append(PLACE_WEIGHT * total / asked)
    right = (logits["subjects"].argmax(-1) == layout["subjects"]).float().mean()
    return torch.stack([*cells, *whole]).sum(), right


class TextEncoderRun:
    """A text encoder run: encoder, readout, optimizer, step. `load_state(state())` restores it exactly."""

    def __init__(
        self,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        vocabulary: Vocabulary,
        settings: TextEncoderTraining,
        team: Team,
    ) -> None:
        self.text_encoder, self.tokenizer = text_encoder.to(team.device), tokenizer
        self.vocabulary, self.settings, self.team = vocabulary, settings, team
        self.before = copy.deepcopy(self.text_encoder).eval().requires_grad_(False)
        config = text_encoder.config
        readout = Readout(config.hidden_size, config.num_attention_heads, vocabulary).to(team.device)
        self.modules: dict[str, nn.Module] = {"text_encoder": self.text_encoder.train(), "readout": readout}
        self.optimizer = MatrixOptimizer(self.modules.values(), settings.lr, weight_decay=0.01)
        self.step = 0
        self.read = 0.0

    def prepare(self) -> Iterator[tuple[int, int]]:
        """Do nothing: there is nothing to encode."""
        return iter(())

    def keep(self, folder: Path) -> None:
        """Do nothing: this run has no data that belongs to one process."""

    def state(self) -> checkpoint.State:
        """Return the weights and the optimizer state."""
        modules = {name: module.state_dict() for name, module in self.modules.items()}
        return {**modules, "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: checkpoint.State) -> None:
        """Restore the result of `state`."""
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])

    def draw(self) -> tuple[Tensor, Layout]:
        """Return this process' captions of the current step as token ids (n, tokens), and their layouts.

        `tokens` is TOKENS, or the length of the longest caption.
        """
        settings, team = self.settings, self.team
        rng = np.random.default_rng([settings.seed, self.step, team.process])
        drawn = list(islice(scenes(int(rng.integers(2**62)), self.vocabulary), settings.batch // team.processes))
        ids = tokenize(self.tokenizer, [caption(scene, rng) for scene in drawn])
        longest = 1 + int((ids == self.tokenizer.eos_token_id).int().argmax(1).max())
        return ids[:, : max(TOKENS, longest)].to(team.device), layout_of(drawn, self.vocabulary)

    def loss_of(self, ids: Tensor, layout: Layout) -> Tensor:
        """Return the readout's loss plus the weighted change of the hidden states.

        Sets `read` to the share of cells predicted correctly.
        """
        with self.team.autocast():
            states = self.text_encoder(ids).last_hidden_state
            with torch.no_grad():
                before = self.before(ids).last_hidden_state
            logits = self.modules["readout"](states)
        loss, right = reading_loss(logits, {name: wanted.to(self.team.device) for name, wanted in layout.items()})
        self.read = self.team.mean(right.item())
        held: Tensor = loss + self.settings.hold * (states.float() - before.float()).square().mean()
        return held

    def train_step(self) -> float:
        """Train one step and return its loss, averaged over the processes."""
        loss = self.loss_of(*self.draw())
        return finish_step(self, loss, self.modules.values())

    def report(self) -> dict[str, object]:
        """Return additional log values: the share of cells predicted correctly in the last batch."""
        return {"samples": self.step * self.settings.batch, "read": round(self.read, 4)}

    def sheet(self, path: Path) -> None:
        """Do nothing: there are no pictures."""
