"""Optimization: Muon for the weight matrices and AdamW for the rest, a learning rate schedule, averaged weights.

Knows nothing of what is trained.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class MatrixOptimizer:
    """Muon (Jordan et al. 2024) for hidden weights of two or more dimensions, AdamW for all other parameters.

    A convolution's weight is seen as a matrix (out, in·k·k). Muon's steps are scaled to the RMS of AdamW's
    (Liu et al. 2025, "Muon is Scalable for LLM Training"), so that one learning rate serves both.
    """

    def __init__(self, modules: Iterable[nn.Module], lr: float, weight_decay: float) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for module in modules:
            embedded = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
            for parameter in module.parameters():
                hidden = parameter.ndim >= 2 and min(parameter.flatten(1).shape) > 8
                (matrices if hidden and id(parameter) not in embedded else others).append(parameter)
        self.sources = matrices
        # Same storage, two dimensions: a step on the view is a step on the weight.
        self.views = [nn.Parameter(parameter.detach().flatten(1)) for parameter in matrices]
        self.muon = torch.optim.Muon(self.views, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(others, lr=lr, weight_decay=0.0, betas=(0.9, 0.99))

    def parameters(self) -> list[nn.Parameter]:
        """Everything that is stepped."""
        return [*self.sources, *(each for group in self.adamw.param_groups for each in group["params"])]

    def step(self, lr: float) -> None:
        """One step at this learning rate; clears the gradients."""
        for optimizer in (self.muon, self.adamw):
            for group in optimizer.param_groups:
                group["lr"] = lr
        for source, view in zip(self.sources, self.views, strict=True):
            view.grad = None if source.grad is None else source.grad.flatten(1)
        self.muon.step()
        self.adamw.step()
        for source, view in zip(self.sources, self.views, strict=True):
            source.grad = view.grad = None
        self.adamw.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """The state of both optimizers."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


def learning_rate(step: int, peak: float, steps: int, warmup: int, cooldown: int) -> float:
    """Linear rise over `warmup` steps, then `peak`, then linear fall to nothing over the last `cooldown` of `steps`.

    The middle does not depend on `steps`, so that a run can be prolonged without regret.
    """
    rise = (step + 1) / max(1, warmup)
    fall = (steps - step) / max(1, cooldown)
    return peak * max(0.0, min(1.0, rise, fall))


class AveragedWeights:
    """An exponential moving average of parameters: average += (1 - decay) · (parameter - average).

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the start is forgotten.
    """

    def __init__(self, modules: Iterable[nn.Module], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.parameters = [parameter for module in modules for parameter in module.parameters()]
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the present parameters into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and averages; call again to undo."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """The averages and how many updates they have seen."""
        return {"updates": self.updates, "averages": self.averages}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.updates = state["updates"]
        saved: list[Tensor] = state["averages"]
        for average, value in zip(self.averages, saved, strict=True):
            average.copy_(value)
