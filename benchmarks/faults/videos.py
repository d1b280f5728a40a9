"""Faults of the stream and of the video."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.faults.fault import UNKNOWN, Apply, Forward, TensorEdit, change, random_like

# The stream.


def _buffered(new: Callable[[Tensor, Tensor, int], Tensor]) -> Apply | Callable[[str], Apply]:
    """Hand on another buffer than the last frames of (buffer, clip)."""

    def build(path: str) -> Apply:
        def action(block: Any) -> None:
            right = block._with_buffer

            def with_buffer(x: Tensor, buffer: Any) -> Any:
                size = block.stream_conv.frames_before
                joined, _ = right(x, buffer)
                return joined, new(joined, x, size).clone()

            block._with_buffer = with_buffer

        return change(path, action)

    return build


def _read(given: Callable[[Tensor], Tensor]) -> Callable[[str], Apply]:
    """Read the buffer wrongly, and hand on the right one."""

    def build(path: str) -> Apply:
        def action(block: Any) -> None:
            right = block._with_buffer

            def with_buffer(x: Tensor, buffer: Any) -> Any:
                joined, new = right(x, None if buffer is None else given(buffer))
                return joined, (new if buffer is None else right(x, buffer)[1])

            block._with_buffer = with_buffer

        return change(path, action)

    return build


BUFFERS: tuple[tuple[str, Any], ...] = (
    ("one frame late", _buffered(lambda joined, x, n: joined[:, :, -n - 1 : -1])),
    ("never updated", _buffered(lambda joined, x, n: joined[:, :, :n])),
    ("zeroed with each clip", _buffered(lambda joined, x, n: 0 * joined[:, :, -n:])),
    ("frames reversed", _buffered(lambda joined, x, n: joined[:, :, -n:].flip(2))),
    ("zeroed when read", _read(lambda b: 0 * b)),
    ("reversed when read", _read(lambda b: b.flip(2))),
    ("one frame on when read", _read(lambda b: b.roll(-1, 2))),
    ("of another clip of the batch", _read(lambda b: b.flip(0))),
)
SUMS_CARRIED: tuple[tuple[str, Callable[..., Tensor]], ...] = (
    ("zeroed with each clip", lambda total, before, frames: 0 * total),
    ("never updated", lambda total, before, frames: before),
    ("of the last clip only", lambda total, before, frames: total - before),
    ("mean for sum", lambda total, before, frames: total / frames),
)


def carried(new: Callable[..., Tensor]) -> Forward:
    """Carry another sum to the next clip."""

    def forward(pool: Any, right: Any, x: Tensor, buffer: Any, count: Tensor) -> Any:
        out, total = right(x, buffer, count)
        return out, new(total, torch.zeros_like(total) if buffer is None else buffer, x.shape[2])

    return forward


# The video. Edits that keep the number of frames unless they say otherwise.

_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1, 1)


def _order(*frames: int) -> TensorEdit:
    """Return an edit to clips of so many frames as are named."""
    return lambda v: v[:, :, list(frames)] if v.shape[2] == len(frames) else v


VIDEOS: tuple[tuple[str, str, TensorEdit, tuple[str, ...]], ...] = (
    ("channel-order", "BGR", lambda v: v.flip(1), ()),
    ("channel-order", "GBR", lambda v: v.roll(1, 1), ()),
    ("channel-order", "RBG", lambda v: v[:, [0, 2, 1]], ()),
    ("input-scaling", "0 to 255", lambda v: v * 255, ()),
    ("input-scaling", "-1 to 1", lambda v: v * 2 - 1, ()),
    ("input-scaling", "-0.5 to 0.5", lambda v: v - 0.5, ()),
    ("input-scaling", "ImageNet", lambda v: (v - _MEAN.to(v)) / _STD.to(v), ()),
    ("input-scaling", "only the mean", lambda v: v - _MEAN.to(v), ()),
    ("input-scaling", "divided twice", lambda v: v / 255, ()),
    ("input-scaling", "/ 256", lambda v: v * 255 / 256, ()),
    ("input-layout", "height and width", lambda v: v.transpose(3, 4), ()),
    ("input-layout", "TensorFlow's bytes", lambda v: v.permute(0, 2, 3, 4, 1).reshape(v.shape), ()),
    (
        "input-layout",
        "frames read as channels",
        lambda v: v.transpose(1, 2).reshape(v.shape),
        ("frame-order",),
    ),
    ("input-layout", "mirrored", lambda v: v.flip(4), (UNKNOWN,)),
    ("input-layout", "upside down", lambda v: v.flip(3), (UNKNOWN,)),
    ("precision", "float16", lambda v: v.half().to(v), ()),
    ("precision", "bfloat16", lambda v: v.bfloat16().to(v), ()),
    ("precision", "bytes", lambda v: (v * 255).round() / 255, (UNKNOWN,)),
    ("frame-order", "reversed", lambda v: v.flip(2), ()),
    ("frame-order", "neighbours exchanged", _order(1, 0, 2), ()),
    ("frame-order", "neighbours exchanged", _order(1, 0, 3, 2, 5, 4), ()),
    ("frame-order", "shuffled", _order(3, 0, 5, 2, 1, 4), ()),
    ("frame-order", "one frame repeated", _order(0, 1, 1), ()),
    ("frame-order", "one frame repeated", _order(0, 1, 2, 2, 4, 5), ()),
    ("frame-order", "one frame dropped", lambda v: v[:, :, :-1] if v.shape[2] > 2 else v, ()),
    ("frame-order", "the first frame dropped", lambda v: v[:, :, 1:] if v.shape[2] > 2 else v, ()),
    ("frame-order", "every other frame", lambda v: v[:, :, ::2] if v.shape[2] > 2 else v, ()),
    (
        "frame-order",
        "half of them twice",
        lambda v: v[:, :, [i // 2 * 2 for i in range(v.shape[2])]],
        (),
    ),
    ("unknown", "grey", lambda v: v.mean(1, True).expand(v.shape), (UNKNOWN,)),
    ("unknown", "gamma", lambda v: v.clamp(min=0) ** 2.2, (UNKNOWN,)),
    ("unknown", "shifted by a pixel", lambda v: v.roll(1, 4), (UNKNOWN,)),
    ("unknown", "noise", lambda v: v + 0.05 * random_like(v), (UNKNOWN,)),
    ("unknown", "blurred", lambda v: F.avg_pool3d(v, (1, 3, 3), 1, (0, 1, 1)), (UNKNOWN,)),
)
