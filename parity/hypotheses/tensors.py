"""How a parameter relates to the reference's: rearranged, another one, scaled, not loaded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from parity.hypotheses.faulty_layer import (
    EQUAL,
    Explanation,
    FaultyLayer,
    Tensors,
    distance,
    equal,
    rms,
)
from parity.reports.report import status_of


def explain_parameter(
    name: str, own: Tensor, truth: Tensor, others: Mapping[str, Tensor]
) -> list[tuple[str, str, str]]:
    """Say how a tensor relates to the one that should be there.

    Args:
        name: of the parameter.
        own: the tensor that is there.
        truth: the reference's.
        others: the reference's tensors, by name.

    Returns:
        (cause, detail, mend), all that hold.
    """
    own, truth = own.double(), truth.double()
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(own, truth.to(dtype).double()):
            kind = str(dtype).removeprefix("torch.")
            return [("precision", f"stored in {kind}", f"Load {name} in float32.")]
    found: list[tuple[str, str, str]] = []
    if truth.ndim > 1 and own.numel() == truth.numel():
        found += [
            ("kernel-layout", f"it is the reference's tensor with {how}", f"{undo} {name}.")
            for how, undo, value in arrangements(truth)
            if equal(own, value)
        ]
        found += [
            ("kernel-flip", f"it is reversed along {axes}", f"Flip {name} along {axes}.")
            for axes, value in flips(truth)
            if equal(own, value)
        ]
    if found:
        return found
    found += [
        ("tensor-swapped", f"it holds {other}", f"Load {name} from its own tensor, not {other}.")
        for other, value in others.items()
        if other != name and own.numel() > 1 and equal(own, value)
    ]
    if found:
        return found
    default = _constant(name, own)
    if default is not None:
        return [("tensor-not-loaded", default, f"Load {name}; it was left as created.")]
    scale = float((own * truth).sum() / (truth * truth).sum()) if truth.abs().max() > 0 else 0.0
    if scale not in (0.0, 1.0) and own.numel() > 1 and equal(own, scale * truth, 1e-5):
        return [
            (
                "tensor-scaled",
                f"it is {scale:.6g} times the reference's",
                f"Divide {name} by {scale:.6g}.",
            )
        ]
    axis = _reordered_along(own, truth)
    if axis is not None:
        return [
            (
                "weights-differ",
                f"it is the reference's tensor with axis {axis} in another order",
                f"Put {name} in the reference's order along axis {axis}.",
            )
        ]
    default = _spread_like_initial(own)
    if default is not None and not alike(own, truth):
        return [("tensor-not-loaded", default, f"Load {name}; it was left as created.")]
    return [
        (
            "weights-differ",
            f"it differs by {share_of(own, truth):.2g} of its size",
            f"Convert {name} again from this reference.",
        )
    ]


def alike(own: Tensor, truth: Tensor) -> bool:
    """Whether one tensor could have become the other by a little training."""
    a, b = own.flatten() - own.mean(), truth.flatten() - truth.mean()
    return float(a @ b) > 0.5 * float(a.norm() * b.norm())


def share_of(own: Tensor, truth: Tensor) -> float:
    """Return by how much of its size a tensor differs."""
    return distance([own], [truth]) / max(rms([truth]), 1e-30)


def _reordered_along(own: Tensor, truth: Tensor) -> int | None:
    """Return the axis along which one tensor's slices are the other's in another order."""
    if own.shape != truth.shape:
        return None
    for axis in range(own.ndim):
        if own.shape[axis] < 2:
            continue
        a, b = (v.movedim(axis, 0).reshape(v.shape[axis], -1) for v in (own, truth))
        far, nearest = torch.cdist(a, b).min(dim=1)
        same = float(far.max()) <= EQUAL * float(b.norm(dim=1).max())
        if same and sorted(nearest.tolist()) == list(range(len(b))):
            return axis
    return None


def initial_values(name: str, own: Tensor) -> str | None:
    """Return what a tensor looks like if it has the values that layers are created with."""
    return _constant(name, own) or _spread_like_initial(own)


def _constant(name: str, own: Tensor) -> str | None:
    """Return the one value of a tensor that was left at it."""
    leaf = name.rpartition(".")[2]
    created = 1.0 if own.ndim <= 1 and leaf in ("weight", "running_var") else 0.0
    if own.numel() and bool((own == created).all()):
        return f"every value is {created:g}"
    return None


def _spread_like_initial(own: Tensor) -> str | None:
    if own.ndim <= 1 or own.numel() < 64:
        return None
    fan_in, count = own[0].numel(), own.numel()
    spread, mean = float(own.std()), abs(float(own.mean()))
    # This project's own initial values, and PyTorch's for convolutions and linear layers.
    for what, expected in (
        ("kaiming normal", math.sqrt(2 / fan_in)),
        ("kaiming uniform", math.sqrt(1 / (3 * fan_in))),
        ("the classifier's", 0.01),
    ):
        # Four standard errors of a standard deviation, and of a mean.
        near = abs(spread / expected - 1) < 4 / math.sqrt(2 * count)
        if near and mean < expected * 4 / math.sqrt(count):
            return f"its values are spread like initial ones ({what})"
    return None


def arrangements(tensor: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (how, how to undo it, tensor) for every other order of axes with the same shape."""
    shape = tensor.shape
    seen = [tensor]

    def new(value: Tensor) -> bool:
        if value.shape != shape or any(torch.equal(value, old) for old in seen):
            return False
        seen.append(value)
        return True

    for order in itertools.permutations(range(tensor.ndim)):
        permuted = tensor.permute(order)
        if new(permuted):
            yield f"axes in the order {order}", "Put back the axes of", permuted
    for order in itertools.permutations(range(tensor.ndim)):
        # Written in another order and read as if it were this one.
        folded = tensor.permute(order).reshape(shape)
        if new(folded):
            yield f"axes read from the order {order}", "Read in the right order", folded


_AXES = {5: ["batch", "channels", "frames", "height", "width"], 4: ["out", "in", "height", "width"]}


def flips(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield (axes, tensor) for every way to reverse a kernel in time and space."""
    names = _AXES.get(tensor.ndim, [str(axis) for axis in range(tensor.ndim)])
    axes = [axis for axis in range(2, tensor.ndim) if tensor.shape[axis] > 1]
    for count in range(1, len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            yield ", ".join(names[axis] for axis in chosen), tensor.flip(chosen)


def parameters_of(
    layer: FaultyLayer, compute: Callable[[Mapping[str, Tensor]], Tensors], names: Sequence[str]
) -> Iterator[Explanation]:
    """The layer is right, and its tensors are not: the reference's own ones, or ours rearranged."""
    own = tensors_of(layer.module, names)
    wrong = differing(layer, own)
    if wrong:
        after = layer.score(compute({**own, **{name: layer.truth[name] for name in wrong}}))
        if status_of(after) == "match":
            # A difference that does not change the output is no cause.
            needed = [
                name
                for name in wrong
                if len(wrong) == 1
                or status_of(
                    layer.score(compute({**own, **{n: layer.truth[n] for n in wrong if n != name}}))
                )
                != "match"
            ]
            yield from relations(layer, own, needed, after)
            return
    yield from _rearranged(layer, compute, own, names)


def differing(layer: FaultyLayer, own: Mapping[str, Tensor]) -> list[str]:
    """Return which of a module's tensors are not the reference's."""
    return [n for n in own if n in layer.truth and not _same(own[n], layer.truth[n])]


def relations(
    layer: FaultyLayer, own: Mapping[str, Tensor], names: Sequence[str], after: float
) -> Iterator[Explanation]:
    """Say of each tensor how it relates to the reference's."""
    for name in names:
        full = layer.parameter(name)
        for cause, detail, mend in explain_parameter(
            full, own[name], layer.truth[name], layer.everything
        ):
            yield Explanation(cause, detail, mend, after, full)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.double(), b.double())


def _rearranged(
    layer: FaultyLayer,
    compute: Callable[[Mapping[str, Tensor]], Tensors],
    own: Mapping[str, Tensor],
    names: Sequence[str],
) -> Iterator[Explanation]:
    """Our own tensors in another order, or another one of them, do what the reference does."""
    for name in names:
        if name not in own:
            continue
        full, value = layer.parameter(name), own[name]
        if value.ndim > 1:
            for how, _, tensor in arrangements(value):
                if status_of(after := layer.score(compute({**own, name: tensor}))) == "match":
                    yield Explanation(
                        "kernel-layout",
                        f"right with {how}",
                        f"Put the axes of {full} in another order.",
                        after,
                        full,
                    )
            for axes, tensor in flips(value):
                if status_of(after := layer.score(compute({**own, name: tensor}))) == "match":
                    yield Explanation(
                        "kernel-flip",
                        f"right when reversed along {axes}",
                        f"Flip {full} along {axes}.",
                        after,
                        full,
                    )
        for other, tensor in layer.own.items():
            if other == full or tensor.shape != value.shape or not tensor.is_floating_point():
                continue
            if status_of(after := layer.score(compute({**own, name: tensor.double()}))) == "match":
                yield Explanation(
                    "tensor-swapped",
                    f"its tensor is in {other}",
                    f"Load into {full} what is in {other}.",
                    after,
                    full,
                )


def tensors_of(module: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Return those of a module's tensors that it has, float64."""
    found = {name: getattr(module, name, None) for name in names}
    return {name: v.detach().double() for name, v in found.items() if isinstance(v, Tensor)}
