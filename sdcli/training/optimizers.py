"""Optimizers: Muon for weight matrices and AdamW for the rest, a learning rate schedule, averaged weights.

Does not depend on what is trained.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

NS_COEFFICIENTS, NS_STEPS = (3.4445, -4.7750, 2.0315), 5
MOMENTUM = 0.95


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return the nearest semi-orthogonal matrices to (k, m, n), in bfloat16.

    Uses five Newton-Schulz steps (Jordan et al. 2024).
    """
    a, b, c = NS_COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NS_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class MatrixOptimizer:
    """Muon (Jordan et al. 2024) for weights of two or more dimensions, AdamW for all other parameters.

    The weight of a convolution is treated as a matrix (out, in·k·k). Muon's updates are scaled to the RMS of AdamW's
    (Liu et al. 2025, "Muon is Scalable for LLM Training"), so that both use the same learning rate. The updates equal
    those of `torch.optim.Muon` with Nesterov momentum; matrices of the same shape are updated together, which is faster
    on a GPU.
    """

    def __init__(self, modules: Iterable[nn.Module], lr: float, weight_decay: float) -> None:
        matrices: dict[tuple[int, ...], list[Tensor]] = {}
        others: list[Tensor] = []
        for module in modules:
            embedded = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
            for parameter in module.parameters():
                shape = parameter.flatten(1).shape if parameter.ndim >= 2 else parameter.shape
                if parameter.ndim >= 2 and min(shape) > 8 and id(parameter) not in embedded:
                    matrices.setdefault(tuple(shape), []).append(parameter)
                else:
                    others.append(parameter)
        self.groups = list(matrices.values())
        self.momenta = [torch.stack([p.detach().flatten(1) for p in group]).zero_() for group in self.groups]
        self.weight_decay = weight_decay
        fused = any(parameter.is_cuda for parameter in others)
        self.adamw = torch.optim.AdamW(others, lr=lr, weight_decay=0.0, betas=(0.9, 0.99), fused=fused)

    def parameters(self) -> list[Tensor]:
        """Return all trained parameters."""
        matrices = [parameter for group in self.groups for parameter in group]
        return [*matrices, *(each for group in self.adamw.param_groups for each in group["params"])]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update all parameters at this learning rate and clear the gradients.

        In a group of matrices, a missing gradient counts as zeros.
        """
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            if all(parameter.grad is None for parameter in group):
                continue
            gradients = torch.stack([_gradient(parameter) for parameter in group]).to(momentum.dtype)
            momentum.lerp_(gradients, 1 - MOMENTUM)
            updates = orthogonalize(gradients.lerp_(momentum, MOMENTUM)).to(momentum.dtype)
            scale = 0.2 * max(momentum.shape[1:]) ** 0.5
            torch._foreach_mul_(group, 1 - lr * self.weight_decay)
            torch._foreach_add_(
                group,
                [update.view(p.shape) for update, p in zip(updates.contiguous(), group, strict=True)],
                alpha=-lr * scale,
            )
            for parameter in group:
                parameter.grad = None
        for settings in self.adamw.param_groups:
            settings["lr"] = lr
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both optimizers."""
        return {"momenta": self.momenta, "adamw": self.adamw.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        for momentum, saved in zip(self.momenta, state["momenta"], strict=True):
            momentum.copy_(saved)
        self.adamw.load_state_dict(state["adamw"])


class Adam:
    """AdamW with the interface of MatrixOptimizer, for low-rank factors, which are no matrices of their own."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.01) -> None:
        self.adamw = torch.optim.AdamW(list(parameters), lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99))

    def parameters(self) -> list[Tensor]:
        """Return all trained parameters."""
        return [each for group in self.adamw.param_groups for each in group["params"]]

    def step(self, lr: float) -> None:
        """Update all parameters at this learning rate and clear the gradients."""
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state."""
        return self.adamw.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self.adamw.load_state_dict(state)


def _gradient(parameter: Tensor) -> Tensor:
    whole = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return whole.flatten(1)


def learning_rate(step: int, peak: float, steps: int, warmup: int, cooldown: int) -> float:
    """Return the learning rate: linear warm-up, then `peak`, then a linear fall to zero over the last `cooldown` steps.

    The plateau does not depend on `steps`, so that a run can be extended.
    """
    rise = (step + 1) / max(1, warmup)
    fall = (steps - step) / max(1, cooldown)
    return peak * max(0.0, min(1.0, rise, fall))


class AveragedWeights:
    """An exponential moving average of parameters: average += (1 - decay) · (parameter - average).

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the initial weights lose their influence quickly.
    """

    def __init__(self, modules: Iterable[nn.Module], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.parameters = [parameter for module in modules for parameter in module.parameters()]
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current parameters."""
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
        """Return the averages and the number of updates."""
        return {"updates": self.updates, "averages": self.averages}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self.updates = state["updates"]
        saved: list[Tensor] = state["averages"]
        for average, value in zip(self.averages, saved, strict=True):
            average.copy_(value)
