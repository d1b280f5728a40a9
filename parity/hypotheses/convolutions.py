"""Convolutions and linear layers: their tensors, and how they pad."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from movinet_port.layers import Conv, legacy_padding, same_padding
from parity.hypotheses.faulty_layer import (
    LARGEST_PRECISION_LOSS,
    Explanation,
    FaultyLayer,
    Tensors,
    distance,
    equal,
    precision,
    rms,
)
from parity.hypotheses.tensors import (
    alike,
    differing,
    initial_values,
    parameters_of,
    relations,
    share_of,
    tensors_of,
)
from parity.reports.report import SUSPECT, status_of


def apply_affine(
    module: nn.Module, x: Tensor, tensors: Mapping[str, Tensor], pads: list[int] | None = None
) -> Tensor:
    """Return what a convolution or linear layer gives with some tensors and paddings."""
    weight, bias = tensors["weight"], tensors.get("bias")
    if isinstance(module, nn.Linear):
        return F.linear(x, weight, bias)
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if pads is None:
        pads = _declared_padding(module, x)
    run = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.ndim]
    stride, dilation = tuple(module.stride), tuple(module.dilation)
    return run(F.pad(x, pads), weight, bias, stride, 0, dilation, module.groups)


def _declared_padding(module: Any, x: Tensor) -> list[int]:
    """Return the padding that a convolution's attributes speak of, last axis first."""
    if isinstance(module, Conv):
        return module.padding_for(x) if module.kernel_size != (1, 1, 1) else [0] * 6
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [n for total in reversed(totals) for n in (total // 2, total - total // 2)]
    padding = [0] * (x.ndim - 2) if module.padding == "valid" else list(module.padding)
    return [n for amount in reversed(padding) for n in (amount, amount)]


def affine(layer: FaultyLayer) -> Iterator[Explanation]:
    """Its tensors, its padding, its precision; or other numbers that fit."""
    module, names = layer.module, ("weight", "bias")
    own = tensors_of(module, names)

    def compute(tensors: Mapping[str, Tensor]) -> Tensors:
        try:
            return [apply_affine(module, x, tensors) for x in layer.inputs]
        except RuntimeError:  # Shapes that do not fit: no hypothesis.
            return [torch.full_like(value, math.inf) for value in layer.expected]

    exact = compute(own)
    if layer.fits(exact):
        # The attributes are right, so the module's code must do something else.
        way = _pads_with(layer, own, exact)
        if way is not None:
            yield Explanation("padding", *way, layer.score(exact))
            return
        kind = _rounds_to(layer, own)
        if kind is None:
            yield from precision(layer, exact)
        else:
            mend = f"Run {layer.tap} in float32, without autocast or TF32."
            yield Explanation("precision", f"computes in {kind}", mend, layer.score(exact))
        return
    found = list(parameters_of(layer, compute, names))
    if not isinstance(module, nn.Linear):
        found += _padding(layer, own) or _both(layer, own, exact, found)
    if not found:
        found += _fitted(layer, own)
    yield from found


def _rounds_to(layer: FaultyLayer, own: Mapping[str, Tensor]) -> str | None:
    """Return the type that a layer rounds its input or its weight to before it computes."""
    weight = {**own, "weight": own["weight"]}
    for kind, narrow in _NARROW.items():
        weight["weight"] = narrow(own["weight"])
        inputs = [narrow(x) for x in layer.inputs]
        for xs, tensors in ((inputs, weight), (layer.inputs, weight), (inputs, own)):
            if layer.reproduces([apply_affine(layer.module, x, tensors) for x in xs]):
                return kind
    return None


def _tf32(x: Tensor) -> Tensor:
    """Round to ten bits behind the point."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.round(mantissa * 2**11) / 2**11, exponent)


_NARROW: dict[str, Callable[[Tensor], Tensor]] = {
    "bfloat16": lambda x: x.bfloat16().double(),
    "float16": lambda x: x.half().double(),
    "TF32": _tf32,
}


def _both(
    layer: FaultyLayer, own: Mapping[str, Tensor], exact: Tensors, found: Sequence[Explanation]
) -> list[Explanation]:
    """The tensors are wrong, and so is the padding: what is to be added to what was found."""
    if found:
        way = None if layer.reproduces(exact) else _pads_with(layer, own, exact)
        return [] if way is None else [Explanation("padding", *way, found[0].after)]
    wrong = differing(layer, own)
    pads = _padding(layer, {**own, **{name: layer.truth[name] for name in wrong}}) if wrong else []
    return [e for one in pads for e in (*relations(layer, own, wrong, one.after), one)]


def pairs(pads: Sequence[int]) -> str:
    """Return what is padded before and after each axis, as text."""
    by_axis = [(pads[i], pads[i + 1]) for i in range(len(pads) - 2, -1, -2)]
    names = ("frames", "height", "width")[-len(by_axis) :]
    return ", ".join(f"{n} {pair}" for n, pair in zip(names, by_axis, strict=True) if any(pair))


_PAD_MODES = ("replicate", "reflect", "circular")


def _pads_with(
    layer: FaultyLayer, own: Mapping[str, Tensor], exact: Tensors
) -> tuple[str, str] | None:
    """Return (detail, mend) if a module pads otherwise than it says, None if it does not."""
    module: Any = layer.module
    if isinstance(module, nn.Linear) or max(module.kernel_size) == 1:
        return None
    declared = _declared_padding(module, layer.inputs[0])
    zeros = f"Pad the input of {layer.tap} with zeros, as TensorFlow does."
    if distance(layer.outputs, exact) <= LARGEST_PRECISION_LOSS * rms(exact):
        return None  # Less than what any other padding does.
    for mode in _PAD_MODES:
        try:
            outputs = [
                apply_affine(module, F.pad(x, declared, mode=mode), own, [0] * len(declared))
                for x in layer.inputs
            ]
        except (RuntimeError, NotImplementedError):
            continue
        if layer.reproduces(outputs):
            return f"pads in mode {mode!r}, the reference with zeros", zeros
    for name, pads in _paddings(layer, declared):
        try:
            outputs = [apply_affine(module, x, own, pads) for x in layer.inputs]
        except RuntimeError:
            continue
        if layer.reproduces(outputs):
            ours, theirs = (pairs(p) or "nothing" for p in (pads, declared))
            mend = f"Pad the input of {layer.tap} by {theirs}."
            return f"pads {ours} ({name}), the reference {theirs}", mend
    if _only_at_borders(layer, exact):
        return "pads otherwise than with zeros", zeros
    return None


def _only_at_borders(layer: FaultyLayer, exact: Tensors) -> bool:
    """Whether the layer's output is right wherever its window lies inside the input."""
    module: Any = layer.module
    inner, right = [], []
    for x, out, wanted in zip(layer.inputs, layer.outputs, exact, strict=True):
        if out.shape != wanted.shape:
            return False
        pads = _declared_padding(module, x)
        index: list[slice] = [slice(None), slice(None)]
        for axis, (k, s) in enumerate(zip(module.kernel_size, module.stride, strict=True)):
            before = pads[-2 * (axis + 1)]
            size = x.shape[2 + axis]
            inside = [i for i in range(out.shape[2 + axis]) if 0 <= i * s - before <= size - k]
            if not inside:
                return False
            index.append(slice(inside[0], inside[-1] + 1))
        inner.append(out[tuple(index)])
        right.append(wanted[tuple(index)])
    return distance(inner, right) / layer.floor < SUSPECT


def _padding(layer: FaultyLayer, own: Mapping[str, Tensor]) -> list[Explanation]:
    """Another rule of padding, by name or else by trying all."""
    module: Any = layer.module
    if max(module.kernel_size) == 1:
        return []
    declared = _declared_padding(module, layer.inputs[0])
    for name, pads in _paddings(layer, declared):
        try:
            after = layer.score([apply_affine(module, value, own, pads) for value in layer.inputs])
        except RuntimeError:
            continue
        if status_of(after) == "match":
            rules = _padding_rules(layer).items()
            is_rule = next((n for n, p in rules if p == declared), "its own rule")
            detail = (
                f"pads {pairs(declared) or 'nothing'} ({is_rule}), "
                f"the reference {pairs(pads) or 'nothing'} ({name})"
            )
            mend = f"Pad the input of {layer.tap} by {name}."
            return [Explanation("padding", detail, mend, after)]
    return []


def _padding_rules(layer: FaultyLayer) -> dict[str, list[int]]:
    """Return what every rule that has a name pads, last axis first."""
    module: Any = layer.module
    size = layer.inputs[0].shape[2:]
    causal = isinstance(module, Conv) and module.causal

    def rule(pair: Callable[[int, int, int], tuple[int, int]]) -> list[int]:
        pads: list[int] = []
        for axis in reversed(range(len(module.kernel_size))):
            n, k, s = size[axis], module.kernel_size[axis], module.stride[axis]
            pads += (0, 0) if causal and axis == 0 else pair(n, k, s)
        return pads

    return {
        "TensorFlow's SAME": rule(same_padding),
        "legacy (k - 1, whatever the stride)": rule(lambda n, k, s: legacy_padding(k)),
        "symmetric (k // 2 on both sides)": rule(lambda n, k, s: (k // 2, k // 2)),
        "none": rule(lambda n, k, s: (0, 0)),
    }


def _paddings(layer: FaultyLayer, declared: list[int]) -> Iterator[tuple[str, list[int]]]:
    """Yield every other padding once: those of named rules first."""
    tried = [declared]
    for name, pads in itertools.chain(_padding_rules(layer).items(), _other_paddings(layer)):
        if pads not in tried:
            tried.append(pads)
            yield name, pads


def _other_paddings(layer: FaultyLayer) -> Iterator[tuple[str, list[int]]]:
    module: Any = layer.module
    size, out = layer.inputs[0].shape[2:], layer.expected[0].shape[2:]
    options: list[list[tuple[int, int]]] = []
    for axis in reversed(range(len(size))):
        k, s = module.kernel_size[axis], module.stride[axis]
        least = (out[axis] - 1) * s + k - size[axis]
        options.append(
            [
                (before, total - before)
                for total in range(max(least, 0), max(least, 0) + s)
                for before in range(total + 1)
            ]
        )
    for pairs in itertools.islice(itertools.product(*options), 300):
        yield "a rule of its own", [n for pair in pairs for n in pair]


def _fitted(layer: FaultyLayer, own: Mapping[str, Tensor]) -> Iterator[Explanation]:
    """Other numbers in the same layer do what the reference does: solved for, least squares."""
    module: Any = layer.module
    solved = _solve(module, layer.inputs, layer.expected, "bias" in own)
    if solved is None:
        return
    after = layer.score([apply_affine(module, x, solved) for x in layer.inputs])
    if status_of(after) != "match":
        return
    share = {name: share_of(own[name], value) for name, value in solved.items()}
    name = max(share, key=lambda key: share[key])
    full = layer.parameter(name)
    scale = float((own[name] * solved[name]).sum() / (solved[name] ** 2).sum())
    if own[name].numel() > 1 and equal(own[name], scale * solved[name], 1e-3):
        yield Explanation(
            "tensor-scaled",
            f"it is {scale:.4g} times what fits",
            f"Divide {full} by {scale:.4g}.",
            after,
            full,
        )
        return
    default = None if alike(own[name], solved[name]) else initial_values(full, own[name])
    yield Explanation(
        "tensor-not-loaded" if default else "weights-differ",
        default or f"other numbers fit, {share[name]:.2g} of its size away",
        f"Load {full} again from the reference.",
        after,
        full,
    )


def _solve(module: Any, inputs: Tensors, expected: Tensors, bias: bool) -> dict[str, Tensor] | None:
    """Return weights of a 1 x 1 convolution or linear layer that fit, if data determine them."""
    if isinstance(module, nn.Linear):
        x, y = (torch.cat([v.reshape(-1, v.shape[-1]) for v in vs]) for vs in (inputs, expected))
    elif set(module.kernel_size) == {1} and module.groups == 1 and set(module.stride) == {1}:
        x, y = (
            torch.cat([v.movedim(1, -1).reshape(-1, v.shape[1]) for v in vs])
            for vs in (inputs, expected)
        )
    else:
        return None
    # Fewer equations than this many per unknown would fit anything.
    if x.shape[0] < 4 * (x.shape[1] + 1):
        return None
    columns = torch.cat([x, x.new_ones(x.shape[0], 1)], dim=1) if bias else x
    solution = torch.linalg.lstsq(columns, y).solution.T
    weight = solution[:, : x.shape[1]].reshape(module.weight.shape)
    return {"weight": weight, "bias": solution[:, -1]} if bias else {"weight": weight}
