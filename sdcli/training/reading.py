"""Teaching a text encoder to read: what stands where in the scene that a caption speaks of.

The diffusion loss teaches a text encoder little about positions: after 70,000 pictures, the states for "a cat right of
a dog" and "a cat left of a dog" were nearly the same. Captions alone teach it at a hundredth of the cost. A readout,
which is not kept, has a query for each cell of a coarse grid over the picture: by cross-attention to the hidden states
it predicts which subject stands there in which colour, and for the whole picture the place and time of day. What the
readout finds in the hidden states, the cross-attention of a U-Net can learn to find.
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
from sdcli.training.optimizers import MatrixOptimizer, learning_rate
from sdcli.training.parts import tokenize
from sdcli.training.places import TIMES
from sdcli.training.settings import TextEncoderTraining
from sdcli.training.team import Team
from sdcli.training.world import Scene, Vocabulary, place_names, scenes

COLUMNS, ROWS = 8, 4
CELLS = COLUMNS * ROWS
TOKENS = 32
"""Of 77, at the least: captions and some padding. A causal encoder's states do not depend on what comes after them."""
PLACE_WEIGHT = 0.3
CELL_QUESTIONS, WHOLE_QUESTIONS = ("subjects", "colours"), ("places", "times")
NOTHING = 0
UNREAD = -100
"""cross_entropy's mark of what is not asked: the name of a place that is mixed of several."""

Layout = Mapping[str, Tensor]
"""What captions speak of: subjects and colours (n, CELLS), row by row, NOTHING where no subject stands; places and
times (n,), UNREAD for a mixed place."""


def layout_of(drawn: Sequence[Scene], vocabulary: Vocabulary) -> dict[str, Tensor]:
    """The subject whose box is about the middle of each cell, the smaller where there are two; place and time.

    The smaller is the one in front, or a rider, whom its mount's box would hide wholly.
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
    """Hidden states (n, tokens, width) to logits, by the names of a layout: of cells (n, CELLS, choices), of the
    whole (n, choices).
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
        """Logits of subjects, colours, places and times."""
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
    """The cross-entropies of what is read, summed, and the share of the cells whose subject is read right."""
    cells = [F.cross_entropy(logits[name].float().flatten(0, 1), layout[name].flatten()) for name in CELL_QUESTIONS]
    whole = []
    for name in WHOLE_QUESTIONS:
        asked = (layout[name] != UNREAD).sum().clamp(min=1)  # the mean of nothing is not a number
        total = F.cross_entropy(logits[name].float(), layout[name], ignore_index=UNREAD, reduction="sum")
        whole.append(PLACE_WEIGHT * total / asked)
    right = (logits["subjects"].argmax(-1) == layout["subjects"]).float().mean()
    return torch.stack([*cells, *whole]).sum(), right


class TextEncoderRun:
    """A run in memory: text encoder, readout, optimizer and step. `state` and `load_state` are exact."""

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
        """Nothing."""
        return iter(())

    def keep(self, folder: Path) -> None:
        """Nothing that the other processes do not have."""

    def state(self) -> checkpoint.State:
        """Weights and optimizer."""
        modules = {name: module.state_dict() for name, module in self.modules.items()}
        return {**modules, "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: checkpoint.State) -> None:
        """Take what `state` gave."""
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])

    def draw(self) -> tuple[Tensor, Layout]:
        """This process' captions of the present step as token ids (n, tokens), and what they speak of.

        There are TOKENS of each, or as many as the longest caption has.
        """
        settings, team = self.settings, self.team
        rng = np.random.default_rng([settings.seed, self.step, team.process])
        drawn = list(islice(scenes(int(rng.integers(2**62)), self.vocabulary), settings.batch // team.processes))
        ids = tokenize(self.tokenizer, [caption(scene, rng) for scene in drawn])
        longest = 1 + int((ids == self.tokenizer.eos_token_id).int().argmax(1).max())
        return ids[:, : max(TOKENS, longest)].to(team.device), layout_of(drawn, self.vocabulary)

    def loss_of(self, ids: Tensor, layout: Layout) -> Tensor:
        """Cross-entropies of what is read, and how far the states have moved; `read` becomes the share read right."""
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
        """One step; returns its loss."""
        settings, team = self.settings, self.team
        loss = self.loss_of(*self.draw())
        loss.backward()
        parameters = [parameter for module in self.modules.values() for parameter in module.parameters()]
        team.average(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        rate = learning_rate(self.step, settings.lr, settings.steps, settings.warmup, settings.cooldown)
        self.optimizer.step(rate)
        self.step += 1
        return team.mean(loss.item())

    def report(self) -> dict[str, object]:
        """What the log says besides step and loss: the share of cells of the last batch that was read right."""
        return {"samples": self.step * self.settings.batch, "read": round(self.read, 4)}

    def sheet(self, path: Path) -> None:
        """Nothing: no pictures come of this."""
