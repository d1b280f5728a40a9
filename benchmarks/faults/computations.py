"""Faults of what the layers compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.faults.fault import UNKNOWN, Forward
from movinet_port.layers import Conv, same_padding

# Convolutions that compute something else.


def padded_by(pads: Callable[[Conv, Tensor], list[int]], mode: str = "constant") -> Forward:
    """Pad by another rule."""

    def forward(conv: Conv, right: Any, x: Tensor) -> Tensor:
        x = F.pad(x, pads(conv, x), mode=mode)
        return F.conv3d(x, conv.weight, conv.bias, conv.stride, groups=conv.groups)

    return forward


def _time(conv: Conv) -> list[int]:
    t = conv.kernel_size[0]
    return [0, 0] if conv.causal else list(same_padding(10**6, t, 1))


def symmetric(conv: Conv, x: Tensor) -> list[int]:
    """k // 2 cells on every side."""
    _, h, w = conv.kernel_size
    return [w // 2, w // 2, h // 2, h // 2, *_time(conv)]


def _more_before(conv: Conv, x: Tensor) -> list[int]:
    pads = conv.padding_for(x)
    return [pads[1], pads[0], pads[3], pads[2], *pads[4:]]


def _all_after(conv: Conv, x: Tensor) -> list[int]:
    pads = conv.padding_for(x)
    return [0, pads[0] + pads[1], 0, pads[2] + pads[3], *pads[4:]]


def _legacy(conv: Conv, x: Tensor) -> list[int]:
    _, h, w = conv.kernel_size
    return [(w - 1) // 2, w - 1 - (w - 1) // 2, (h - 1) // 2, h - 1 - (h - 1) // 2, *_time(conv)]


def _same(conv: Conv, x: Tensor) -> list[int]:
    _, h, w = conv.kernel_size
    _, sh, sw = conv.stride
    return [*same_padding(x.shape[4], w, sw), *same_padding(x.shape[3], h, sh), *_time(conv)]


def past_only(conv: Conv, x: Tensor) -> list[int]:
    """Frames of the past only."""
    return [*conv.padding_for(x)[:4], conv.kernel_size[0] - 1, 0]


def _as_it_is(conv: Conv, x: Tensor) -> list[int]:
    return conv.padding_for(x)


def _padded_with_grey(conv: Conv, right: Any, x: Tensor) -> Tensor:
    x = F.pad(x, conv.padding_for(x), value=0.5)
    return F.conv3d(x, conv.weight, conv.bias, conv.stride, groups=conv.groups)


def set_legacy(conv: Any) -> None:
    """Take the other generation's padding."""
    conv.legacy = not conv.legacy


def declare_symmetric(conv: Any) -> None:
    """Pad k // 2 cells by a rule of its own."""
    conv.padding_for = lambda x: symmetric(conv, x)


def past_repeated(conv: Conv, right: Any, x: Tensor) -> Tensor:
    """Repeat the first and last frame instead of padding time with black."""
    pads = conv.padding_for(x)
    x = F.pad(F.pad(x, [0, 0, 0, 0, *pads[4:]], mode="replicate"), [*pads[:4], 0, 0])
    return F.conv3d(x, conv.weight, conv.bias, conv.stride, groups=conv.groups)


def dilated(conv: Conv, right: Any, x: Tensor) -> Tensor:
    """Convolve with a dilation of 2."""
    _, h, w = conv.kernel_size
    pads = conv.padding_for(x)
    wide = [pads[0] + w // 2, pads[1] + w // 2, pads[2] + h // 2, pads[3] + h // 2, *pads[4:]]
    return F.conv3d(F.pad(x, wide), conv.weight, conv.bias, conv.stride, 0, (1, 2, 2), conv.groups)


PADDINGS: tuple[tuple[str, Forward], ...] = (
    ("k // 2 on both sides", padded_by(symmetric)),
    ("the larger half before", padded_by(_more_before)),
    ("all after", padded_by(_all_after)),
    ("legacy", padded_by(_legacy)),
    ("SAME", padded_by(_same)),
    ("reflected", padded_by(_as_it_is, "reflect")),
    ("repeated", padded_by(_as_it_is, "replicate")),
    ("around the other side", padded_by(_as_it_is, "circular")),
    ("not with 0", _padded_with_grey),
)

# Activations: whatever stands in the place of the right one.
FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "swish": lambda x: x * torch.sigmoid(x),
    "hard_swish": lambda x: x * F.relu6(x + 3) / 6,
    "hard_swish of 0.16667": lambda x: x * F.relu6(x + 3) * 0.16667,
    "relu": torch.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "leaky relu": lambda x: F.leaky_relu(x, 0.1),
    "mish": F.mish,
    "x sigmoid(1.702 x)": lambda x: x * torch.sigmoid(1.702 * x),
    "sigmoid": torch.sigmoid,
    "none": lambda x: x + 0,
    "twice": lambda x: F.silu(F.silu(x)),
}
GATES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "clip(0.2 x + 0.5)": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "relu6(x + 3) / 6": lambda x: F.relu6(x + 3) / 6,
    "relu6(x + 3) * 0.16667": lambda x: F.relu6(x + 3) * 0.16667,
    "none": lambda x: x + 0,
    "tanh": torch.tanh,
    "over channels": lambda x: torch.softmax(x, dim=1),
    "ones": torch.ones_like,
    "(tanh + 1) / 2": lambda x: (torch.tanh(x) + 1) / 2,
}

# Pools.


def window_pool(**settings: Any) -> Forward:
    """Return PyTorch's own average pool in the place of TensorFlow's."""

    def forward(pool: Any, right: Any, x: Tensor) -> Tensor:
        pads = [*same_padding(x.shape[4], 3, 2), *same_padding(x.shape[3], 3, 2)]
        if settings.get("same"):
            x = F.pad(x, pads)
        rest = {k: v for k, v in settings.items() if k != "same"}
        planes = x.flatten(1, 2)
        return F.avg_pool2d(planes, 3, 2, **rest).unflatten(1, (x.shape[1], x.shape[2]))

    return forward


def _max_pool(pool: Any, right: Any, x: Tensor) -> Tensor:
    pads = [*same_padding(x.shape[4], 3, 2), *same_padding(x.shape[3], 3, 2)]
    return F.max_pool3d(F.pad(x, pads, value=-1e9), (1, 3, 3), (1, 2, 2))


SKIP_POOLS: tuple[tuple[str, str, Forward, tuple[str, ...]], ...] = (
    ("pool-divisor", "counts padding", window_pool(same=True), ()),
    ("pool-divisor", "sums", window_pool(same=True, divisor_override=1), (UNKNOWN, "skip-path")),
    ("padding", "padding=1, counted", window_pool(padding=1), ("pool-divisor",)),
    ("padding", "padding=1", window_pool(padding=1, count_include_pad=False), ("pool-divisor",)),
    (
        "skip-path",
        "every other pixel",
        lambda pool, right, x: x[..., ::2, ::2] + 0,
        (UNKNOWN, "padding"),
    ),
    ("unknown", "maximum", _max_pool, ("skip-path", UNKNOWN)),
)

# What a bottleneck does with its parts.


def bottleneck_forward(combine: Callable[..., Tensor]) -> Forward:
    """Combine a layer's branches otherwise."""

    def forward(layer: Any, right: Any, x: Tensor, stream: Any, pool: Any, count: Tensor) -> Any:
        skip = x if layer.skip is None else layer.skip(x)
        branch, stream = layer.depthwise(layer.expansion(x), stream)
        if layer.squeeze_excitation is not None:
            branch, pool = layer.squeeze_excitation(branch, pool, count)
        return combine(layer, layer.rezero(layer.projection(branch)), skip), stream, pool

    return forward


SUMS: tuple[tuple[str, str, Callable[..., Tensor], tuple[str, ...]], ...] = (
    ("skip-path", "left out", lambda m, branch, skip: branch + 0 * skip, ()),
    ("skip-path", "twice", lambda m, branch, skip: branch + 2 * skip, ()),
    ("skip-path", "subtracted", lambda m, branch, skip: branch - skip, ()),
    ("skip-path", "halved", lambda m, branch, skip: (branch + skip) / 2, (UNKNOWN,)),
    ("skip-path", "branch left out", lambda m, branch, skip: skip + 0 * branch, ("rezero",)),
    ("rezero", "on the skip too", lambda m, b, s: b + m.rezero.scale * s, ("skip-path",)),
    ("rezero", "on the sum", lambda m, b, s: m.rezero.scale * (b + s), ("skip-path", UNKNOWN)),
    ("rezero", "twice", lambda m, b, s: m.rezero.scale * b + s, ("skip-path", UNKNOWN)),
    ("unknown", "relu after the sum", lambda m, b, s: torch.relu(b + s), ("activation", UNKNOWN)),
    ("unknown", "multiplied", lambda m, b, s: b * s, ("skip-path", UNKNOWN)),
    ("unknown", "clipped", lambda m, b, s: (b + s).clamp(-1, 1), (UNKNOWN,)),
)

# What a squeeze-excitation does with its parts.


def squeeze_forward(
    pooled: Callable[..., Tensor] | None = None, product: Callable[..., Tensor] | None = None
) -> Forward:
    """Pool and gate otherwise."""

    def forward(se: Any, right: Any, x: Tensor, buffer: Any, count: Tensor) -> Any:
        spatial = se.spatial_pool(x) if se.spatial_pool is not None else None
        time = None
        if se.temporal_pool is not None:
            time, buffer = se.temporal_pool(x if spatial is None else spatial, buffer, count)
        parts = [
            p if spatial is None else p.expand_as(spatial) for p in (time, spatial) if p is not None
        ]
        both = torch.cat(parts, dim=1) if pooled is None else pooled(parts, x)
        if se.positional_encoding is not None:
            both = se.positional_encoding(both, count)
        gate = se.expand(se.reduce(both))
        return (gate * x if product is None else product(gate, x)), buffer

    return forward


SE_POOLED: tuple[tuple[str, Callable[..., Tensor]], ...] = (
    ("means in the other order", lambda parts, x: torch.cat(parts[::-1], dim=1)),
    ("the frame's mean twice", lambda parts, x: torch.cat([parts[1], parts[1]], dim=1)),
    ("the video's mean twice", lambda parts, x: torch.cat([parts[0], parts[0]], dim=1)),
    (
        "the last frame's mean for all",
        lambda parts, x: torch.cat([parts[0][:, :, -1:].expand_as(parts[0]), parts[1]], dim=1),
    ),
    (
        "not tiled, the rest 0",
        lambda parts, x: torch.cat(
            [F.pad(parts[0][:, :, :1], (0, 0, 0, 0, 0, parts[0].shape[2] - 1)), parts[1]], dim=1
        ),
    ),
    ("channels in turn", lambda parts, x: torch.stack(parts, dim=2).flatten(1, 2)),
)
SE_PRODUCTS: tuple[tuple[str, Callable[..., Tensor]], ...] = (
    ("gate left out", lambda gate, x: x + 0 * gate),
    ("gate added", lambda gate, x: x + gate),
    ("x (1 + gate)", lambda gate, x: x * (1 + gate)),
    ("gated twice", lambda gate, x: x * gate * gate),
)


def cumulative(mean: Callable[..., Tensor]) -> Forward:
    """Compute the means wrongly, and carry on the right sum."""

    def forward(pool: Any, right: Any, x: Tensor, buffer: Any, count: Tensor) -> Any:
        out, total = right(x, buffer, count)
        planes = x.mean(dim=(3, 4), keepdim=True)
        before = torch.zeros_like(total) if buffer is None else buffer
        return mean(planes, before, count, x) + 0 * out, total

    return forward


def _steps(x: Tensor) -> Tensor:
    return torch.arange(1, x.shape[2] + 1).view(1, 1, -1, 1, 1).to(x)


def _number(count: Tensor, x: Tensor) -> Tensor:
    return count.view(-1, 1, 1, 1, 1).to(x)


CUMULATIVE: tuple[tuple[str, str, Callable[..., Tensor], tuple[str, ...]], ...] = (
    ("se-pooling", "mean of the clip", lambda p, b, n, x: p.mean(2, True), ()),
    (
        "se-pooling",
        "cumulative in the clip only",
        lambda p, b, n, x: p.cumsum(2) / _steps(p),
        ("stream-state",),
    ),
    ("se-pooling", "frame by frame", lambda p, b, n, x: p, ()),
    (
        "se-pooling",
        "one mean with the whole clip",
        lambda p, b, n, x: (b + p.sum(2, True)) / (_number(n, p) + p.shape[2]),
        (),
    ),
    (
        "se-pooling",
        "the greatest",
        lambda p, b, n, x: x.amax(dim=(3, 4), keepdim=True),
        (UNKNOWN,),
    ),
    (
        "pool-divisor",
        "divided by all frames of the clip",
        lambda p, b, n, x: (b + p.cumsum(2)) / (_number(n, p) + p.shape[2]),
        ("se-pooling",),
    ),
    (
        "pool-divisor",
        "one frame too many",
        lambda p, b, n, x: (b + p.cumsum(2)) / (_number(n, p) + _steps(p) + 1),
        ("se-pooling", "stream-state"),
    ),
    ("pool-divisor", "not divided", lambda p, b, n, x: b + p.cumsum(2), ("se-pooling",)),
    (
        "se-pooling",
        "without the present frame",
        lambda p, b, n, x: (b + p.cumsum(2) - p) / (_number(n, p) + _steps(p)),
        (UNKNOWN,),
    ),
    (
        "se-pooling",
        "a running average of 0.9",
        lambda p, b, n, x: 0.9 * b + 0.1 * p,
        (UNKNOWN,),
    ),
)
CLIP_POOL: tuple[tuple[str, str, Callable[..., Tensor], tuple[str, ...]], ...] = (
    ("se-pooling", "the last frame", lambda x: x[:, :, -1:].mean((3, 4), True), (UNKNOWN,)),
    ("se-pooling", "the first frame", lambda x: x[:, :, :1].mean((3, 4), True), (UNKNOWN,)),
    ("se-pooling", "the greatest", lambda x: x.amax((2, 3, 4), True), (UNKNOWN,)),
    (
        "pool-divisor",
        "one frame too few",
        lambda x: x.mean((2, 3, 4), True) * x.shape[2] / (x.shape[2] - 1),
        ("se-pooling",),
    ),
    ("pool-divisor", "the sum", lambda x: x.sum((2, 3, 4), True), ("se-pooling",)),
    (
        "pool-divisor",
        "frames not counted",
        lambda x: x.mean((3, 4), True).sum(2, True),
        ("se-pooling",),
    ),
)


def _waves(
    rate: Callable[[Tensor, int], Tensor] | None = None,
    order: str = "halves",
    first: Callable[[Tensor], Tensor] = lambda n: n,
    combine: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda x, w, s: x + s * w,
) -> Forward:
    """Return another positional encoding."""

    def forward(module: Any, right: Any, x: Tensor, count: Tensor) -> Tensor:
        channels, frames = x.shape[1:3]
        index = torch.arange(channels)
        power = (
            10_000.0 ** -((2 * (index // 2)).to(x) / channels)
            if rate is None
            else rate(index, channels).to(x)
        )
        position = (first(count)[:, None] + torch.arange(frames)).to(x)
        angle = power[None, :, None] * position[:, None]
        even, odd = angle[:, 0::2], angle[:, 1::2]
        if order == "halves":
            wave = torch.cat([even.sin(), odd.cos()], 1)
        elif order == "in turn":
            wave = torch.stack([even.sin(), odd.cos()], 2).flatten(1, 2)
        elif order == "cosines first":
            wave = torch.cat([even.cos(), odd.sin()], 1)
        else:
            half = channels // 2
            wave = torch.cat([angle[:, :half].sin(), angle[:, half:].cos()], 1)
        return combine(x, wave[..., None, None], module.scale)

    return forward


POSITIONS: tuple[tuple[str, Forward, tuple[str, ...]], ...] = (
    ("interleaved", _waves(order="in turn"), ()),
    ("cosines first", _waves(order="cosines first"), ()),
    ("first channels' rates are sines'", _waves(order="neither"), (UNKNOWN,)),
    ("base of 1,000", _waves(lambda i, c: 1000.0 ** -((2 * (i // 2)) / c)), (UNKNOWN,)),
    ("rates not in twos", _waves(lambda i, c: 10_000.0 ** -(i / c)), (UNKNOWN,)),
    ("frames counted from 1", _waves(first=lambda n: n + 1), ("stream-state",)),
    ("begins anew with each clip", _waves(first=lambda n: 0 * n), ("stream-state",)),
    ("without its scale", _waves(combine=lambda x, w, s: x + w + 0 * s), ()),
    ("multiplied", _waves(combine=lambda x, w, s: x * (1 + s * w)), (UNKNOWN,)),
    ("subtracted", _waves(combine=lambda x, w, s: x - s * w), ()),
    ("left out", lambda m, right, x, n: x + 0 * m.scale, ()),
)
