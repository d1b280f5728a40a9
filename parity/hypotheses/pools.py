"""Averages: over windows, over space, over the clip, over the video so far."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from parity.hypotheses.convolutions import pairs
from parity.hypotheses.faulty_layer import (
    Explanation,
    FaultyLayer,
    Tensors,
    distance,
    precision,
    rms,
)
from parity.reports.report import status_of


def _average(x: Tensor, pads: list[int], include: bool) -> Tensor:
    def window_sum(values: Tensor) -> Tensor:
        return F.avg_pool3d(F.pad(values, pads), (1, 3, 3), (1, 2, 2), divisor_override=1)

    if include:
        return window_sum(x) / 9
    return window_sum(x) / window_sum(torch.ones_like(x[:1, :1, :1]))


def window_average(layer: FaultyLayer) -> Iterator[Explanation]:
    """How the windows are padded, and what is counted."""
    size, out = layer.inputs[0].shape[3:], layer.expected[0].shape[3:]
    options: list[list[tuple[int, int]]] = []
    for n, m in zip(size, out, strict=True):
        least = max((m - 1) * 2 + 3 - n, 0)
        options.append([(b, t - b) for t in range(least, least + 2) for b in range(t + 1)])
    right: tuple[list[int], bool, float] | None = None
    ours: tuple[list[int], bool] | None = None
    for height, width in itertools.product(*options):
        for include in (False, True):
            pads = [*width, *height]
            if max(pads) > 2:
                continue
            outputs = [_average(x, pads, include) for x in layer.inputs]
            after = layer.score(outputs)
            if right is None and status_of(after) == "match":
                right = (pads, include, after)
            if ours is None and layer.reproduces(outputs):
                ours = (pads, include)
    if right is None:
        return
    pads, include, after = right
    if rounded := list(precision(layer, [_average(x, pads, include) for x in layer.inputs])):
        yield from rounded
        return
    if ours is not None and ours[0] != pads:
        yield Explanation(
            "padding",
            f"pads {pairs(ours[0])}, the reference {pairs(pads)}",
            f"Pad {layer.tap} by {pairs(pads)}, as TensorFlow's SAME.",
            after,
        )
        return
    if ours is not None or _ratio_only(layer):
        counts = "counts" if include else "does not count"
        yield Explanation(
            "pool-divisor",
            f"divides by another number of cells; the reference {counts} padded ones",
            f"Divide by the cells inside the clip in {layer.tap}.",
            after,
        )


def _ratio_only(layer: FaultyLayer) -> bool:
    """Whether each cell is a multiple of the reference's, the same for all channels."""
    for out, right in zip(layer.outputs, layer.expected, strict=True):
        if out.shape != right.shape:
            return False
        ratio = (out * right).sum(dim=(0, 1)) / (right * right).sum(dim=(0, 1))
        if distance([out], [ratio * right]) > 1e-5 * rms([right]):
            return False
    return True


def mean(layer: FaultyLayer) -> Iterator[Explanation]:
    """A mean over space, or over space and time, or over the video so far."""
    cause = "se-pooling" if "squeeze_excitation" in layer.tap else "pool-divisor"
    candidates = _means(layer)
    right = {name: out for name, out in candidates.items() if layer.fits(out)}
    ours = next((n for n, out in candidates.items() if layer.reproduces(out)), "something else")
    rounded = (e for exact in right.values() for e in precision(layer, exact))
    if (ours in right or ours == "something else") and (found := next(rounded, None)):
        yield found
        return
    if cause == "pool-divisor" and not ("mean" in ours or "sum" in ours or _ratio_only(layer)):
        cause = "unknown"
    for name, outputs in right.items():
        yield Explanation(
            cause,
            f"gives {ours}, the reference {name}",
            f"Make {layer.tap} {name}.",
            layer.score(outputs),
        )


def _means(layer: FaultyLayer) -> dict[str, Tensors]:
    assert layer.reference is not None
    before = layer.reference.pools_before(layer.tap)
    candidates: dict[str, Tensors] = {}
    for number, x in enumerate(layer.inputs):
        space = x.mean(dim=(3, 4), keepdim=True)
        sums = torch.cumsum(space, dim=2)
        frames = torch.arange(1, x.shape[2] + 1, dtype=torch.float64).view(1, 1, -1, 1, 1)
        total, seen = before[number]
        values = {
            "the mean over the video so far, after each frame": (sums + total) / (frames + seen),
            "the mean over the video so far": (sums[:, :, -1:] + total) / (x.shape[2] + seen),
            "the mean of the clip": space.mean(dim=2, keepdim=True),
            "the mean of each frame": space,
            "the mean over the clip so far, after each frame": sums / frames,
            "the maximum over space": x.amax(dim=(3, 4), keepdim=True),
            "the maximum of the clip": x.amax(dim=(2, 3, 4), keepdim=True),
            "the sum over the video so far": sums[:, :, -1:] + total,
            "the sum over the video so far, after each frame": sums + total,
            "the last frame's mean": space[:, :, -1:],
        }
        shape = layer.expected[number].shape
        for name, value in values.items():
            if value.shape != shape and value.shape[2] == 1 and shape[3:] == (1, 1):
                value = value.expand(shape)
            candidates.setdefault(name, []).append(value)
    return candidates
