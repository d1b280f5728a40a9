"""oneDNN's fused operations, which PyTorch has for Inductor: float32 on the CPU."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from movinet_port.fast.backends import operations
from movinet_port.fast.backends.operations import activate, frames_of, gated
from movinet_port.fast.choice import Case
from movinet_port.fast.layers import Layer, Pointwise, StreamConv
from movinet_port.fast.run import Run
from movinet_port.layers import same_padding

# From so many multiplications and additions on, its matrix product is faster than MKL's, which
# costs less per call.
HEAVY = 6_000_000
# And so it is for weights that come from memory and not from a cache.
MANY_WEIGHTS = 120_000
# From so many pixels on, its convolution is faster than PyTorch's average pool.
MANY_POOLED = 7000

# What it calls the activations that cost it less, together with a matrix product, than PyTorch
# afterwards.
_FUSED = {"hard_swish": "hardswish", "relu": "relu"}

_THERE = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_convolution_pointwise_"
)
# Whether it has a depthwise convolution over frames and space. Elsewhere it would copy every
# window, to multiply matrices.
HAS_VOLUMES = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def takes(part: Any, case: Case) -> bool:
    """Return whether it computes with such tensors."""
    return _THERE and case.dtype == torch.float32 and case.device == "cpu" and not case.traced


def takes_product(block: Pointwise, case: Case) -> bool:
    """Return whether it computes a 1 x 1 convolution."""
    weights = block.weight.numel()
    rows = 1 if weights >= MANY_WEIGHTS else math.ceil(HEAVY / (2 * weights))
    return takes(block, case) and case.rows >= rows


def product(block: Pointwise, case: Case) -> Callable[[Tensor], Tensor]:
    """Return what computes a 1 x 1 convolution."""
    fused = _FUSED.get(block.activation_name or "", "none")
    weight = block.keep(
        product, lambda: torch.ops.mkldnn._reorder_linear_weight(block.weight, case.rows)
    )
    activation = block.activation if fused == "none" else None

    def compute(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, block.constant, fused, [], "")
        return y if activation is None else activation(y)

    return compute


def takes_narrow(layer: Layer, case: Case) -> bool:
    """Return whether it computes a projection."""
    return takes_product(layer.project, case)


def narrow(layer: Layer, case: Case) -> Callable[[Tensor, Tensor | None, Tensor, Run], Tensor]:
    """Return what computes a projection and its sum with the residual."""

    def compute(wide: Tensor, gates: Tensor | None, rows: Tensor, run: Run) -> Tensor:
        wide, weight = gated(layer, wide, gates, case)
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(wide, rows, weight, None, "add")
        return y

    return compute


# Convolutions -----------------------------------------------------------------------------------


def pack(kernel: Tensor, stride: tuple[int, ...], groups: int) -> Tensor:
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


class Convolution(operations.Convolution):
    """The same with packed kernels, and over frames and space at once."""

    def lay_out(self) -> Sequence[Tensor]:
        """Return packed kernels."""
        conv, grown = self.conv, super().lay_out()
        return conv.keep(
            ("packed", self.grown), lambda: [pack(k, conv.stride, conv.groups) for k in grown]
        )

    def first(self, x: Tensor, tap: int) -> Tensor:
        """Return the frames `x` convolved with the kernel of a tap, and the bias."""
        conv = self.conv
        planes, kernel = x.permute(0, 3, 1, 2), self.kernels[tap]
        y = _convolve(planes, kernel, conv.constant, self.padding, conv.stride, conv.groups)
        return y.permute(0, 2, 3, 1).contiguous()

    def add(self, y: Tensor, x: Tensor, tap: int) -> None:
        """Add to `y` the frames `x`, convolved with the kernel of a tap."""
        conv = self.conv
        torch.ops.mkldnn._convolution_pointwise_(
            *(y.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), self.kernels[tap], None),
            *(self.padding, conv.stride, (1, 1), conv.groups, "add", 1.0, None, [], None),
        )

    def over_frames(self, x: Tensor, batch: int, padding: int) -> Tensor:
        """Convolve over space and frames; see `operations.Convolution.over_frames`."""
        if not HAS_VOLUMES:
            return super().over_frames(x, batch, padding)
        conv, stride = self.conv, (1, *self.conv.stride)
        grown = super().lay_out()
        kernel = conv.keep(
            ("volume", self.grown), lambda: pack(torch.stack([*grown], 2), stride, conv.groups)
        )
        planes = x.unflatten(0, (-1, batch)).permute(1, 4, 0, 2, 3)
        around = padding, *self.padding
        y = _convolve(planes, kernel, conv.constant, around, stride, conv.groups)
        return y.permute(2, 0, 3, 4, 1)


def over_space(conv: StreamConv, case: Case) -> Callable[..., Tensor]:
    """Return what computes the activation of what all taps add up to."""
    return operations.over_space(conv, case, Convolution(conv, case))


def takes_pieces(layer: Layer, case: Case) -> bool:
    """Return whether it computes a layer's clips in pieces."""
    return takes(layer, case) and operations.takes_pieces(layer, case)


def in_pieces(layer: Layer, case: Case) -> Callable[..., operations.Wide]:
    """Return what expands and convolves clips in pieces."""
    return operations.in_pieces(layer, case, Convolution(layer.depthwise, case))


def takes_stem(conv: StreamConv, case: Case) -> bool:
    """Return whether `stem` computes a stem."""
    several = case.frames * case.batch > 1
    return takes(conv, case) and several and not conv.splits and conv.groups * conv.taps == 1


def stem(conv: StreamConv, case: Case) -> Callable[[Tensor, Run], Tensor]:
    """Return what convolves the frames of a video, whose channels are apart, some at a time.

    oneDNN wants channels together. That copy pads too, so the kernel need not grow.
    """
    height, width = case.height, case.width
    (top, bottom), (left, right) = conv.pads(height, width)
    kernel = conv.keep(stem, lambda: pack(conv.kernels[0], conv.stride, conv.groups))

    def compute(video: Tensor, run: Run) -> Tensor:
        x = frames_of(video)
        size = max(1, operations.CACHED_BYTES // 2 // (x[0].numel() * x.element_size()))
        padded = top + height + bottom, left + width + right
        piece = x.new_zeros(min(size, len(x)), *padded, x.shape[3])
        inside = piece[:, top : top + height, left : left + width]
        shape = len(x), *conv.out_size(height, width), conv.spatial_out
        y = run.workspace.take("stem", x, shape)
        for seen, out in zip(x.split(size), y.split(size), strict=True):
            inside[: len(seen)].copy_(seen.flip(1, 2) if conv.turned else seen)
            planes = piece[: len(seen)].permute(0, 3, 1, 2)
            found = _convolve(planes, kernel, conv.constant, (0, 0), conv.stride, conv.groups)
            activate(conv.activation, found.permute(0, 2, 3, 1), out)
        return run.show(f"{conv.name}.activation", y)

    return compute


def takes_pool(layer: Layer, case: Case) -> bool:
    """Return whether it computes a pool."""
    return takes(layer, case) and case.rows >= MANY_POOLED


def pool(layer: Layer, case: Case) -> Callable[[Tensor], Tensor]:
    """Return what averages 3 x 3 pixels with stride 2, as `operations.pool`."""
    assert layer.skip is not None
    channels = layer.skip.weight.shape[1]
    kernel, padding, share = _pooling(case.height, case.width, channels, layer.depthwise.turned)

    def compute(x: Tensor) -> Tensor:
        sums = _convolve(x.permute(0, 3, 1, 2), kernel, None, padding, (2, 2), channels)
        return sums.permute(0, 2, 3, 1).contiguous().mul_(share)

    return compute


@functools.lru_cache(maxsize=64)
def _pooling(
    height: int, width: int, channels: int, turned: bool
) -> tuple[Tensor, tuple[int, int], Tensor]:
    """Return a kernel that sums up what a pool sees, its padding, and one over the cells seen."""
    (top, bottom), (left, right) = same_padding(height, 3, 2), same_padding(width, 3, 2)
    ones = torch.ones(channels, 1, 3, 3)
    if not turned:  # see StreamConv.grown
        ones = F.pad(ones, (right - left, 0, bottom - top, 0))
    cells = F.conv2d(torch.ones(1, 1, height, width), ones[:1], None, 2, (bottom, right))
    share = cells.reciprocal()[0, 0, :, :, None].repeat(1, 1, channels)
    return pack(ones, (2, 2), channels), (bottom, right), share
