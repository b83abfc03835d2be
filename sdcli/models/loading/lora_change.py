"""How the tensors of a LoRA file change a weight. Knows nothing of files and of names.

W is the weight (out, in) of a linear layer, or (out, in, kh, kw) of a convolution; r is the rank. Every kind gives a
difference ΔW of W's shape, which is added: W + scale · ΔW. All in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
"""The tensors of one layer by their role; see lora_file.py."""


_NORMS = {"dora_scale", "magnitude"}
"""The roles of the norms of DoRA."""
_COMMON = {"alpha", "up_bias", "diff_b", *_NORMS}
"""The roles of tensors that come with every kind of change."""


class Misfit(ValueError):
    """The tensors of a layer do not belong together, or do not fit its weight."""


def changed(
    weight: Tensor,
    tensors: Tensors,
    *,
    scale: float,
    alpha: float | None,
    rank_stabilized: bool,
    into: Tensor | None = None,
) -> Tensor:
    """Return `weight`, float32, with the change of `tensors`, that of a LoRA in the memory of `into`. Raises Misfit.

    `alpha` is used if the tensors have none. With DoRA the change is interpolated: W + scale · (W_dora − W), as in
    ComfyUI and Automatic1111.
    """
    if weight.ndim == 2 and _is_low_rank(tensors):
        return _added(weight, tensors, scale, alpha, rank_stabilized, into)
    difference = _difference(weight, tensors, alpha, rank_stabilized)
    if tensors.keys() & _NORMS:
        difference = _decomposed(weight + difference, tensors) - weight
    return weight + scale * difference


def factors(
    tensors: Tensors, *, scale: float, alpha: float | None, rank_stabilized: bool
) -> tuple[Tensor, Tensor] | None:
    """Return (down, up) with scale · ΔW = up · down for a linear layer; None for other kinds than LoRA."""
    if not _is_low_rank(tensors):
        return None
    up, down = tensors["up"].flatten(1), tensors["down"].flatten(1)
    return down, up * (scale * scaling(down.shape[0], tensors, alpha, rank_stabilized))


def _is_low_rank(tensors: Tensors) -> bool:
    return tensors.keys() - _COMMON == {"down", "up"} and not tensors.keys() & _NORMS


def of_rows(tensors: Tensors, rows: Sequence[tuple[int, int]], total: int) -> Tensors:
    """Return the tensors of the layer that has only `rows` of the layer of `tensors`, one range after the other.

    Raises Misfit if that layer has not `total` rows, and for norms of columns, which depend on all rows.
    """
    by_row = {"up", "hada_w1_a", "hada_w2_a", "diff", "diff_b", "up_bias", "magnitude"}
    whole = max((tensors[role].shape[0] for role in by_row & tensors.keys()), default=0)
    if any(role.startswith("lokr") for role in tensors):
        _check_rows(_kronecker_shape(tensors)[0], total)
        product = _kronecker(tensors).flatten(1)
        tensors = {role: each for role, each in tensors.items() if not role.startswith("lokr") and role != "alpha"} | {
            "diff": product * _kronecker_scaling(tensors)
        }
        whole = product.shape[0]
    if "weight" in tensors and not bool(tensors["on_input"].reshape(-1)[0]):
        by_row, whole = by_row | {"weight"}, tensors["weight"].numel()
    if "dora_scale" in tensors:
        norms = tensors["dora_scale"]
        if norms.shape[0] != norms.numel() or norms.numel() != whole:
            raise Misfit("has norms of columns, which cannot be divided among several layers")
        by_row.add("dora_scale")
    if "on_input" not in tensors:
        _check_rows(whole, total)
    return {
        role: torch.cat([each[start:end] for start, end in rows]) if role in by_row else each
        for role, each in tensors.items()
    }


def _check_rows(found: int, total: int) -> None:
    if found != total:
        raise Misfit(f"has {found} rows, and the model's layers have {total}")


def _kronecker_scaling(tensors: Tensors) -> float:
    factors = [tensors[name] for name in ("lokr_w1_b", "lokr_w2_b") if name in tensors]
    return scaling(factors[0].shape[0], tensors, None, False) if factors else 1.0


def _added(
    weight: Tensor, tensors: Tensors, scale: float, alpha: float | None, rank_stabilized: bool, into: Tensor | None
) -> Tensor:
    """Return W + scale · ΔW of a LoRA of a linear layer, which is the most frequent, in one operation."""
    up, down = tensors["up"].flatten(1), tensors["down"].flatten(1)
    if up.shape[1] != down.shape[0] or (up.shape[0], down.shape[1]) != weight.shape:
        raise Misfit(f"has {list(up.shape)} and {list(down.shape)}, for a weight of {list(weight.shape)}")
    factor = scale * scaling(down.shape[0], tensors, alpha, rank_stabilized)
    return torch.addmm(weight, up, down, alpha=factor, out=into)


def changed_vector(vector: Tensor, difference: Tensor, *, scale: float) -> Tensor:
    """Return a bias, or a norm's weight, float32, with a difference of its shape. Raises Misfit."""
    if difference.numel() != vector.numel():
        raise Misfit(f"has {difference.numel()} numbers for {vector.numel()}")
    return vector + scale * difference.reshape(vector.shape)


def _difference(weight: Tensor, tensors: Tensors, alpha: float | None, rank_stabilized: bool) -> Tensor:
    roles = tensors.keys() - _COMMON
    rank: int | None
    try:
        if {"down", "up"} <= roles <= {"down", "up", "mid"}:
            rank = tensors["down"].shape[0]
            if "mid" not in tensors:
                _check_shape((tensors["up"].shape[0], tensors["down"].flatten(1).shape[1]), weight)
            product = _low_rank(tensors["up"], tensors["down"], tensors.get("mid"))
        elif {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} <= roles:
            rank = tensors["hada_w1_b"].shape[0]
            if "hada_t1" not in tensors:
                _check_shape((tensors["hada_w1_a"].shape[0], tensors["hada_w1_b"].shape[1]), weight)
            product = _hadamard(tensors)
        elif _has_half(roles, "lokr_w1") and _has_half(roles, "lokr_w2"):
            factors = [tensors[name] for name in ("lokr_w1_b", "lokr_w2_b") if name in tensors]
            rank = factors[0].shape[0] if factors else None
            _check_shape(_kronecker_shape(tensors), weight)
            product = _kronecker(tensors)
        elif roles == {"weight", "on_input"}:
            return _rescaled(weight, tensors["weight"], on_input=bool(tensors["on_input"].reshape(-1)[0]))
        elif roles == {"diff"}:
            rank, product = None, tensors["diff"]
        else:
            raise Misfit(f"has only {', '.join(sorted(roles)) or 'a scale'}")
        product = product.reshape(weight.shape)
    except (RuntimeError, IndexError) as error:
        shapes = ", ".join(f"{role} {list(tensor.shape)}" for role, tensor in sorted(tensors.items()))
        raise Misfit(f"has {shapes}, for a weight of {list(weight.shape)}") from error
    if rank is None:
        return product
    return product * scaling(rank, tensors, alpha, rank_stabilized)


def _check_shape(made: tuple[int, int], weight: Tensor) -> None:
    """Raise Misfit for a change of another shape, before memory is needed for it."""
    if made != weight.flatten(1).shape:
        raise Misfit(f"changes {made[0]} × {made[1]} numbers, and the weight has {list(weight.shape)}")


def scaling(rank: int, tensors: Tensors, alpha: float | None, rank_stabilized: bool) -> float:
    """Return alpha / rank, or alpha / √rank if it is stabilized. Without any alpha it is the rank."""
    own = float(tensors["alpha"]) if "alpha" in tensors else alpha
    return (rank if own is None else own) / (math.sqrt(rank) if rank_stabilized else rank)


def _low_rank(up: Tensor, down: Tensor, mid: Tensor | None) -> Tensor:
    """up · down; with `mid` (r, r, kh, kw) a convolution in three factors (LoCon with CP decomposition)."""
    if mid is None:
        return up.flatten(1) @ down.flatten(1)
    return torch.einsum("ijhw,oi,jc->ochw", mid, up.flatten(1), down.flatten(1))


def _hadamard(tensors: Tensors) -> Tensor:
    """LoHa: (w1_a · w1_b) ⊙ (w2_a · w2_b); each factor in Tucker form if there is a t (r, r, kh, kw)."""

    def factor(number: int) -> Tensor:
        a, b = tensors[f"hada_w{number}_a"], tensors[f"hada_w{number}_b"]
        core = tensors.get(f"hada_t{number}")
        return a @ b if core is None else torch.einsum("ijhw,io,jc->ochw", core, a, b)

    return factor(1) * factor(2)


def _has_half(roles: set[str], name: str) -> bool:
    return name in roles or {f"{name}_a", f"{name}_b"} <= roles


def _kronecker(tensors: Tensors) -> Tensor:
    """LoKr: w1 ⊗ w2, each whole or as a product of two factors; w2 in Tucker form if there is a t2 (r, r, kh, kw)."""
    first = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    core = tensors.get("lokr_t2")
    if "lokr_w2" in tensors:
        second = tensors["lokr_w2"]
    elif core is not None:
        second = torch.einsum("ijhw,io,jc->ochw", core, tensors["lokr_w2_a"], tensors["lokr_w2_b"])
    else:
        a, b = tensors["lokr_w2_a"], tensors["lokr_w2_b"]
        second = (a @ b.flatten(1)).reshape(a.shape[0], *b.shape[1:])
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - first.ndim)), second.contiguous())


def _kronecker_shape(tensors: Tensors) -> tuple[int, int]:
    """The rows and the columns of w1 ⊗ w2, whose further dimensions are columns too."""
    core, rows, columns = tensors.get("lokr_t2"), 1, 1
    for name in ("lokr_w1", "lokr_w2"):
        first, last = (name, name) if name in tensors else (f"{name}_a", f"{name}_b")
        is_tucker = core is not None and name == "lokr_w2"
        rows *= tensors[first].shape[1 if is_tucker else 0]
        columns *= math.prod(tensors[last].shape[1:])
    return rows, columns * math.prod(core.shape[2:] if core is not None else ())


def _rescaled(weight: Tensor, factors: Tensor, *, on_input: bool) -> Tensor:
    """(IA)³: the difference for W whose columns (`on_input`) or rows are multiplied by 1 + factors."""
    side = 1 if on_input else 0
    shape = [1] * weight.ndim
    shape[side] = weight.shape[side]
    return weight * factors.reshape(shape)


def _decomposed(weight: Tensor, tensors: Tensors) -> Tensor:
    """DoRA: `weight`, which is W + ΔW, with its rows or columns rescaled to the norms in the file.

    PEFT's magnitude vector has the norms of the rows. In LyCORIS's dora_scale the axis that is not 1 tells: (out, 1)
    has those of the rows, (1, in) those of the columns.
    """
    norms = tensors["magnitude"] if "magnitude" in tensors else tensors["dora_scale"]
    by_row = "magnitude" in tensors or norms.shape[0] == norms.numel() == weight.shape[0]
    axis = 0 if by_row else 1
    if norms.numel() != weight.shape[axis]:
        raise Misfit(f"has {norms.numel()} norms for {weight.shape[axis]} {'rows' if by_row else 'columns'}")
    shape = [1] * weight.ndim
    shape[axis] = weight.shape[axis]
    others = [each for each in range(weight.ndim) if each != axis]
    found: Tensor = torch.linalg.vector_norm(weight, dim=others, keepdim=True) + torch.finfo(torch.float32).eps
    return weight * norms.reshape(shape) / found
