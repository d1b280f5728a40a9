"""ReZero's scalar and the positional encoding's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from movinet_port.layers import encoding_rates
from parity.hypotheses.faulty_layer import (
    EQUAL,
    Explanation,
    FaultyLayer,
    Tensors,
    distance,
    precision,
    rms,
)
from parity.reports.report import status_of


def scale(layer: FaultyLayer) -> Iterator[Explanation]:
    """By which scalar the branch is multiplied."""
    module: Any = layer.module
    own = float(module.scale.detach())
    exact = [own * x for x in layer.inputs]
    if layer.fits(exact) and (rounded := list(precision(layer, exact))):
        yield from rounded
        return
    square = sum(float((x * x).sum()) for x in layer.inputs)
    product = sum(float((x * y).sum()) for x, y in zip(layer.inputs, layer.expected, strict=True))
    fitted = product / square if square else 0.0
    applied = sum(
        float((x * y).sum()) for x, y in zip(layer.inputs, layer.outputs, strict=True)
    ) / (square or 1.0)
    after = layer.score([fitted * x for x in layer.inputs])
    if status_of(after) != "match":
        return
    full = layer.parameter("scale")
    stored = _stored(layer, own, after)
    if stored is not None:
        yield stored
        return
    if abs(own - fitted) <= 1e-5 * abs(fitted):
        yield Explanation(
            "rezero",
            f"scales by {applied:.6g}, the parameter and the reference by {fitted:.6g}",
            f"Multiply the branch by {full}.",
            after,
            full,
        )
        return
    left = " (as created)" if own == 0 else ""
    yield Explanation(
        "rezero",
        f"scales by {own:.6g}{left}, the reference by {fitted:.6g}",
        f"Load {full}.",
        after,
        full,
    )
    yield from _another(layer, own, after)


def _stored(layer: FaultyLayer, own: float, after: float) -> Explanation | None:
    """The scalar is the reference's, in fewer bits."""
    truth = layer.truth.get("scale")
    if truth is None or own == float(truth):
        return None
    for dtype in (torch.bfloat16, torch.float16):
        if own == float(truth.to(dtype)):
            full, kind = layer.parameter("scale"), str(dtype).removeprefix("torch.")
            mend = f"Load {full} in float32."
            return Explanation("precision", f"stored in {kind}", mend, after, full)
    return None


def _another(layer: FaultyLayer, own: float, after: float) -> Iterator[Explanation]:
    """The scalar is another layer's."""
    full = layer.parameter("scale")
    kind = ".".join(full.split(".")[-2:])
    for name, value in layer.everything.items():
        same = (
            own != 0 and abs(float(value) - own) <= EQUAL * abs(own) if value.ndim == 0 else False
        )
        if same and name != full and name.endswith(kind):
            mend = f"Load {full} from its own tensor."
            yield Explanation("tensor-swapped", f"it holds {name}", mend, after, full)


def positional_encoding(layer: FaultyLayer) -> Iterator[Explanation]:
    """Which sinusoid, from which frame on, times which scalar."""
    assert layer.reference is not None
    module: Any = layer.module
    own = float(module.scale.detach())
    added = [y - x for x, y in zip(layer.inputs, layer.expected, strict=True)]
    ours = [y - x for x, y in zip(layer.inputs, layer.outputs, strict=True)]
    first = layer.reference.frames_before()
    found: list[tuple[str, float, float]] = []
    applied: tuple[str, float] | None = None
    for kind in _WAVES:
        for offset in (0, 1, -1):
            waves = [
                _wave(kind, x.shape[1], x.shape[2], n + offset).expand_as(x)
                for x, n in zip(layer.inputs, first, strict=True)
            ]
            name = kind if not offset else f"{kind}, {offset:+d} frame"
            scale, far = _fit(waves, added)
            after = far / layer.floor
            if status_of(after) == "match":
                found.append((name, scale, after))
            scale, far = _fit(waves, ours)
            if applied is None and far <= 1e-5 * rms(layer.outputs):
                applied = (name, scale)
    if rms(ours) == 0 and own != 0:
        applied = ("nothing", 0.0)
    for name, scale, after in found[:1]:
        full = layer.parameter("scale")
        stored = _stored(layer, own, after)
        if stored is not None and applied is not None and applied[0] == name:
            yield stored
            return
        if applied is None:
            exact = [x + a for x, a in zip(layer.inputs, added, strict=True)]
            if rounded := list(precision(layer, exact, guess=False)):
                yield from rounded
                return
            yield Explanation(
                "positional-encoding",
                f"adds something else than {name}",
                f"Add {name}, times {full}.",
                after,
                full,
            )
        elif abs(applied[1] - scale) <= 1e-4 * abs(scale) and applied[0] != name:
            yield Explanation(
                "positional-encoding",
                f"adds {applied[0]}, the reference {name}",
                f"Add {name} in {layer.tap}.",
                after,
                full,
            )
        else:
            yield Explanation(
                "positional-encoding",
                f"adds {applied[0]} times {applied[1]:.6g}, the reference {name} times {scale:.6g}",
                f"Load {full}, or add {name}.",
                after,
                full,
            )
            if applied[0] == name:
                yield from _another(layer, own, after)


def _fit(waves: Tensors, added: Tensors) -> tuple[float, float]:
    square = sum(float((w * w).sum()) for w in waves)
    scale = sum(float((w * a).sum()) for w, a in zip(waves, added, strict=True)) / square
    return scale, distance([scale * w for w in waves], added)


_WAVES = ("all sines, then all cosines", "sines and cosines in turn", "all cosines, then all sines")


def _wave(kind: str, channels: int, frames: int, first: int) -> Tensor:
    angle = (
        encoding_rates(channels, torch.float64, "cpu")[:, None]
        * (first + torch.arange(frames, dtype=torch.float64))[None]
    )
    sines, cosines = torch.sin(angle[0::2]), torch.cos(angle[1::2])
    if kind == _WAVES[0]:
        value = torch.cat([sines, cosines])
    elif kind == _WAVES[2]:
        value = torch.cat([torch.cos(angle[0::2]), torch.sin(angle[1::2])])
    else:
        value = torch.empty_like(angle)
        value[0::2], value[1::2] = sines, cosines
    return value[None, :, :, None, None]
