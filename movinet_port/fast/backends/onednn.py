"""oneDNN's fused operations, which PyTorch has for Inductor: float32 on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from movinet_port.fast.backends import operations
from movinet_port.fast.backends.operations import (
    Wide,
    expanded_bytes,
    expansion,
    gated,
    over_space,
    over_time,
)
from movinet_port.fast.choice import (
    CONVOLVE,
    NARROW,
    PRODUCT,
    SPACE,
    Case,
    Compute,
    Row,
    unprepared,
)
from movinet_port.fast.layers import Layer, Pointwise, StreamConv
from movinet_port.fast.run import Run

# From so many multiplications and additions on, its matrix product is faster than MKL's, which
# costs less per call.
HEAVY = 6_000_000
# And so it is for weights that come from memory and not from a cache.
MANY_WEIGHTS = 120_000
# The most that a piece of a clip's expanded frames takes.
CACHED_BYTES = 8 << 20

# What it calls the activations that cost it less, together with a matrix product, than PyTorch
# afterwards.
_FUSED = {"hard_swish": "hardswish", "relu": "relu"}

_THERE = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_convolution_pointwise_"
)
# Whether it has a depthwise convolution over frames and space. Elsewhere it would copy every
# window, to multiply matrices.
HAS_VOLUMES = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _takes(part: Any, case: Case) -> bool:
    """Return whether it computes with such tensors."""
    return _THERE and case.dtype == torch.float32 and case.device == "cpu" and not case.traced


def _takes_product(block: Pointwise, case: Case) -> bool:
    weights = block.weight.numel()
    rows = 1 if weights >= MANY_WEIGHTS else math.ceil(HEAVY / (2 * weights))
    return _takes(block, case) and case.rows >= rows


def _product(block: Pointwise, case: Case) -> Compute:
    """Return what computes a 1 x 1 convolution."""
    fused = _FUSED.get(block.activation_name or "", "none")
    weight = block.keep(
        _product, lambda: torch.ops.mkldnn._reorder_linear_weight(block.weight, case.rows)
    )
    activation = block.activation if fused == "none" else None

    def compute(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, block.constant, fused, [], "")
        return y if activation is None else activation(y)

    return compute


def _takes_narrow(layer: Layer, case: Case) -> bool:
    return _takes_product(layer.project, case)


def _narrow(
    layer: Layer, case: Case, wide: Tensor, gates: Tensor | None, rows: Tensor, run: Run
) -> Tensor:
    wide, weight = gated(layer, wide, gates, case)
    y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(wide, rows, weight, None, "add")
    return y


# Convolutions -----------------------------------------------------------------------------------


def _pack(kernel: Tensor, stride: tuple[int, ...], groups: int) -> Tensor:
    """Return the kernel as oneDNN wants it, for inputs of any size though one is named."""
    axes = len(stride)
    padding = [size // 2 for size in kernel.shape[2:]]
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        kernel, padding, stride, [1] * axes, groups, [1, kernel.shape[1] * groups, *[32] * axes]
    )
    return packed


def _convolve(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    padding: tuple[int, ...],
    stride: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Convolve (batch, channels, *space) with a packed kernel."""
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, kernel, bias, padding, stride, (1,) * len(stride), groups, "none", [], ""
    )
    return y


class _Convolution(operations.Convolution):
    def lay_out(self) -> Sequence[Tensor]:
        conv, grown = self.conv, super().lay_out()
        return conv.keep(
            ("packed", self.grown), lambda: [_pack(k, conv.stride, conv.groups) for k in grown]
        )

    def first(self, x: Tensor, tap: int) -> Tensor:
        conv = self.conv
        planes, kernel = x.permute(0, 3, 1, 2), self.kernels[tap]
        y = _convolve(planes, kernel, conv.constant, self.padding, conv.stride, conv.groups)
        return y.permute(0, 2, 3, 1).contiguous()

    def add(self, y: Tensor, x: Tensor, tap: int) -> None:
        conv = self.conv
        torch.ops.mkldnn._convolution_pointwise_(
            *(y.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), self.kernels[tap], None),
            *(self.padding, conv.stride, (1, 1), conv.groups, "add", 1.0, None, [], None),
        )


def _over_space(conv: StreamConv, case: Case) -> Compute:
    return over_space(conv, case, _Convolution(conv, case))


def _takes_pieces(layer: Layer, case: Case) -> bool:
    conv = layer.depthwise
    clip = _takes(layer, case) and HAS_VOLUMES and case.frames > 1 and not case.watched
    return clip and (conv.splits or (conv.taps % 2 == 1 and not (conv.causal and conv.taps > 1)))


def _in_pieces(layer: Layer, case: Case) -> Compute:
    """Return what expands and convolves so many frames at a time that they stay in a cache."""
    conv, batch, frames = layer.depthwise, case.batch, case.frames
    pieces = math.ceil(frames * batch * expanded_bytes(layer, case) / CACHED_BYTES)
    size, around = math.ceil(frames / pieces), 0 if conv.splits else conv.taps // 2
    stride, one = (1, *conv.stride), operations.Convolution(conv, case)
    kernel = conv.keep(
        ("volume", one.grown), lambda: _pack(torch.stack([*one.kernels], 2), stride, conv.groups)
    )

    def convolved(x: Tensor, first: int, last: int, padding: int) -> Tensor:
        """Expand some frames and convolve them over space and frames, black ones around them."""
        expand = expansion(layer, case._replace(frames=last - first))
        planes = expand(x[first * batch : last * batch]).unflatten(0, (-1, batch))
        y = _convolve(
            planes.permute(1, 4, 0, 2, 3),
            *(kernel, conv.constant, (padding, *one.padding), stride, conv.groups),
        )
        return y.permute(2, 0, 3, 4, 1)

    def whole(x: Tensor, run: Run) -> Wide:
        y = conv.activation(convolved(x, 0, frames, around).flatten(0, 1).contiguous())
        return y, None if conv.splits else y.flatten(1, 2).mean(1, dtype=run.dtype)

    def piecewise(x: Tensor, run: Run) -> Wide:
        out_size = conv.out_size(case.height, case.width)
        y = run.workspace.take("mixed", x, (frames, batch, *out_size, conv.spatial_out))
        means = []
        unfinished: Tensor | None = None
        finished = 0
        for first in range(0, frames, size):
            last = min(first + size, frames)
            # What the piece adds to every frame that sees one of its frames.
            part = convolved(x, first, last, 2 * around)
            start = first - around
            if unfinished is not None:
                part[: 2 * around] += unfinished
            complete = frames if last == frames else max(finished, last - around)
            if complete > finished:
                done = y[finished:complete]
                conv.activation(done.copy_(part[finished - start : complete - start]))
                if not conv.splits:
                    means.append(done.flatten(2, 3).mean(2, dtype=run.dtype).flatten(0, 1))
                finished = complete
            if around and last < frames:
                # The next piece brings the bias along.
                assert conv.constant is not None
                unfinished = part[last - first :] - conv.constant
        return y.flatten(0, 1), torch.cat(means) if means else None

    compute = whole if pieces == 1 else piecewise
    if not conv.splits:
        return compute
    return lambda x, run: (over_time(conv, compute(x, run)[0], run), None)


ROWS = (
    Row(CONVOLVE, "onednn", _takes_pieces, _in_pieces),
    Row(SPACE, "onednn", _takes, _over_space),
    Row(NARROW, "onednn", _takes_narrow, unprepared(_narrow)),
    Row(PRODUCT, "onednn", _takes_product, _product),
)
