"""What was done to the clip on its way into the network."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from parity.hypotheses.faulty_layer import EQUAL, Tensors, distance


def clip_changes(given: Tensors, right: Tensors) -> Iterator[tuple[str, str, str, Tensors]]:
    """Yield (cause, detail, mend, the clip with the change undone) for what could be wrong."""
    shapes = all(a.shape == b.shape for a, b in zip(given, right, strict=True))
    channels = right[0].shape[1]
    if shapes:
        for order in itertools.permutations(range(channels)) if channels <= 4 else ():
            undone = [x[:, list(order)] for x in given]
            yield (
                "channel-order",
                f"channels in the order {tuple(order.index(i) for i in range(channels))}",
                "Give the channels in the order red, green, blue.",
                undone,
            )
        yield from _rescaled(given, right)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = [x.to(dtype).double() for x in right]
        if shapes and distance(given, rounded) == 0:
            kind = str(dtype).removeprefix("torch.")
            yield "precision", f"rounded to {kind}", "Give the clip in float32.", right
    yield from _reordered(given, right)
    for order in itertools.permutations(range(right[0].ndim)):
        for read in (False, True):
            undone = []
            for x, y in zip(given, right, strict=True):
                if x.numel() != y.numel():
                    return
                shape = [y.shape[axis] for axis in order]
                inverse = [order.index(axis) for axis in range(y.ndim)]
                if not read and tuple(x.shape) != tuple(shape):
                    break
                undone.append(x.reshape(shape).permute(inverse))
            if len(undone) == len(right):
                yield (
                    "input-layout",
                    f"axes in the order {order}" + (", read as if they were not" if read else ""),
                    "Give the clip as (batch, channels, frames, height, width).",
                    undone,
                )


def _rescaled(given: Tensors, right: Tensors) -> Iterator[tuple[str, str, str, Tensors]]:
    """The same for all channels, or a factor and an offset for each."""
    x = torch.cat([v.movedim(1, 0).flatten(1) for v in given], dim=1)
    y = torch.cat([v.movedim(1, 0).flatten(1) for v in right], dim=1)
    for each in (False, True):
        a, b = (x, y) if each else (x.reshape(1, -1), y.reshape(1, -1))
        mean_a, mean_b = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
        square = ((b - mean_b) ** 2).mean(1, keepdim=True).clamp_min(1e-30)
        slope = ((a - mean_a) * (b - mean_b)).mean(1, keepdim=True) / square
        offset = mean_a - slope * mean_b
        if bool((slope.abs() < 1e-12).any()) or not bool(torch.isfinite(slope).all()):
            continue
        # In the units of the given clip: its own rounding is the limit.
        limit = 4e-7 * float(a.abs().max())
        if float((a - slope * b - offset).abs().max()) > limit:
            continue
        text = ", ".join(
            f"{float(s):.4g} x {float(o):+.4g}" for s, o in zip(slope, offset, strict=True)
        )
        yield (
            "input-scaling",
            f"the clip became {text}",
            "Give RGB in [0, 1].",
            right,
        )
        return


def _reordered(given: Tensors, right: Tensors) -> Iterator[tuple[str, str, str, Tensors]]:
    """Each frame is one of the reference's, at another place."""
    ours, theirs = torch.cat(given, dim=2), torch.cat(right, dim=2)
    if ours.shape[:2] != theirs.shape[:2] or ours.shape[3:] != theirs.shape[3:]:
        return
    a, b = (v.movedim(2, 0).flatten(1) for v in (ours, theirs))
    far = torch.cdist(a, b)
    nearest = far.argmin(dim=1)
    if float(far.gather(1, nearest[:, None]).max()) > EQUAL * float(b.norm(dim=1).max()):
        return
    order = nearest.tolist()
    missing = sorted(set(range(b.shape[0])) - set(order))
    if order == list(range(b.shape[0])):
        return
    if order == list(reversed(range(b.shape[0]))):
        detail = "the frames come in reverse"
    elif missing and order == sorted(order):
        detail = f"frame {', '.join(map(str, missing))} is missing"
        if len(set(order)) < len(order):
            detail += ", another is repeated"
    else:
        detail = f"the frames come in the order {order}"
    yield "frame-order", detail, "Give every frame once, in the order of the video.", right
