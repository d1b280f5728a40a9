"""What the layers of the optimised network hold: each a piece of a readable one, folded.

What computes with it is in `movinet_port.fast.backends`. Between layers a clip is
(frames * batch, height, width, channels), contiguous, so that a 1 x 1 convolution is one matrix
product and a frame is one piece of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from movinet_port.fast.fold import FoldedConv, FoldedGate, FoldedLayer, Matrix
from movinet_port.layers import legacy_padding, same_padding
from movinet_port.spec import ModelSpec

T = TypeVar("T")


def hard_swish(x: Tensor) -> Tensor:
    """Apply hard-swish in place."""
    if torch.compiler.is_compiling():
        # A compiler would divide by 6.
        return x * (x * (1 / 6) + 0.5).clamp(0.0, 1.0)
    return F.hardswish(x, inplace=True)


def swish(x: Tensor) -> Tensor:
    """Apply swish in place."""
    return F.silu(x, inplace=True)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": swish,
    "hard_swish": hard_swish,
    "relu": torch.relu_,
    "relu6": lambda x: x.clamp_(0.0, 6.0),
}


class FoldedModule(nn.Module):
    """A piece of the network whose tensors are buffers, and plain attributes to compute with.

    Finding a buffer through `torch.nn.Module` takes as long as a small operation does.

    Attributes:
        chosen: what computes it; see `movinet_port.fast.choice.choose`.
    """

    chosen: dict[Any, Any]

    def store(self, **tensors: Tensor | None) -> None:
        """Keep tensors as buffers."""
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def prepare(self) -> None:
        """Set the plain attributes, after construction and whenever the buffers were replaced."""
        self.chosen = {}
        self._kept: dict[Any, Any] = {}

    def keep(self, key: Any, make: Callable[[], T]) -> T:
        """Return what `make` returned the first time: a backend's own layout of the tensors.

        Args:
            key: what it is.
            make: called once, and again after the tensors were replaced.
        """
        if key not in self._kept:
            self._kept[key] = make()
        found: T = self._kept[key]
        return found

    def __getstate__(self) -> dict[str, Any]:
        # What oneDNN laid out for itself can be neither copied nor pickled.
        return {k: v for k, v in self.__dict__.items() if k not in ("chosen", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.prepare()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FoldedModule:
        super()._apply(fn, recurse)
        self.prepare()
        return self


class Pointwise(FoldedModule):
    """A 1 x 1 convolution, and the activation right behind it.

    Attributes:
        weight: (out, in).
        matrix: the same, transposed.
        constant: (out,) bias, or None.
        activation, activation_name: or None.
        quantized: whether it is computed with 8-bit numbers.
    """

    def __init__(self, matrix: Matrix, activation: str | None = None) -> None:
        super().__init__()
        self.store(weight=matrix.weight.contiguous(), bias=matrix.bias)
        self.activation_name = activation
        self.activation = _ACTIVATIONS[activation] if activation else None
        self.quantized = False
        self.prepare()

    def prepare(self) -> None:
        """Transpose the weight."""
        super().prepare()
        weight = self._buffers["weight"]
        assert weight is not None
        self.weight = weight
        self.matrix = weight.t()
        self.constant = self._buffers["bias"]


class StreamConv(FoldedModule):
    """A convolution over space and, split off or not, over frames, and its activation.

    Attributes:
        name: of the activations that it shows.
        key: of its frames in a stream's state.
        kernels: over space, one for each frame that they look at.
        cells: the same of a depthwise convolution, channels together: (height, width, channels).
        taps: how many frames it looks at.
        splits: whether the convolution over frames is split off.
        depthwise: whether that is depthwise.
        turned: whether its frames are turned by 180 degrees.
    """

    def __init__(self, name: str, key: str, folded: FoldedConv, spec: ModelSpec) -> None:
        super().__init__()
        self.name = name
        self.key = key
        self.stride = folded.stride
        self.groups = folded.groups
        self.kernel = folded.spatial.shape[3:]
        self.turned = folded.turned
        self.causal = spec.causal
        self.legacy = spec.causal_padding == "legacy"
        self.activation_name = spec.activation
        self.activation = _ACTIVATIONS[spec.activation]
        self.splits = folded.temporal is not None
        self.depthwise = folded.temporal is not None and folded.temporal.ndim == 2
        taps = folded.spatial if folded.temporal is None else folded.temporal
        self.taps = len(taps)
        self.store(
            spatial=folded.spatial.contiguous(),
            bias=folded.bias,
            temporal=None if folded.temporal is None else folded.temporal.contiguous(),
            temporal_bias=folded.temporal_bias,
        )
        self.prepare()

    def prepare(self) -> None:
        """Take the taps apart."""
        super().prepare()
        spatial, temporal = self._buffers["spatial"], self._buffers["temporal"]
        assert spatial is not None
        self.kernels = spatial.unbind(0)
        self.cells = [kernel[:, 0].permute(1, 2, 0).contiguous() for kernel in self.kernels]
        self.spatial_out = spatial.shape[1]
        self.constant = self._buffers["bias"]
        self.temporal_matrix = temporal
        self.temporal_taps = () if temporal is None else temporal.unbind(0)
        self.temporal_constant = self._buffers["temporal_bias"]

    @property
    def in_plane(self) -> bool:
        """Whether frames meet in a depthwise convolution of their own, or not at all."""
        return self.depthwise if self.splits else self.taps == 1

    def pads(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the cells before and after the height, and the width, of frames of this size."""
        if self.legacy:
            return legacy_padding(self.kernel[0]), legacy_padding(self.kernel[1])
        top, bottom = same_padding(height, self.kernel[0], self.stride[0])
        left, right = same_padding(width, self.kernel[1], self.stride[1])
        return ((bottom, top), (right, left)) if self.turned else ((top, bottom), (left, right))

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of what frames of this size become."""
        (top, bottom), (left, right) = self.pads(height, width)
        padded = height + top + bottom, width + left + right
        rows, columns = (
            (n - kernel) // stride + 1
            for n, kernel, stride in zip(padded, self.kernel, self.stride, strict=True)
        )
        return rows, columns

    def grown(self, height: int, width: int) -> tuple[int, int]:
        """Return by how many zeros the kernels must grow on the left and on top.

        Where SAME pads one cell more after than before, a zero in front of the kernel and equal
        padding do the same, without a padded copy of the input. Of turned frames it pads more
        before than after, and what equal padding adds no kernel reaches.
        """
        (top, bottom), (left, right) = self.pads(height, width)
        return max(0, right - left), max(0, bottom - top)


class Gate(FoldedModule):
    """A squeeze-excitation up to its gate.

    Attributes:
        name: of the activations that it shows; `layer` is of its pool in a stream's state.
        spatial, whole: whether it pools each frame, and all frames.
        limit: a hard gate is clamped to [0, limit]; None for a sigmoid.
        scale: () of the positional encoding, or None without one.
    """

    def __init__(self, layer: str, folded: FoldedGate, spec: ModelSpec) -> None:
        super().__init__()
        self.layer = layer
        self.name = f"{layer}.squeeze_excitation"
        self.reduce = Pointwise(folded.reduce, spec.activation)
        self.expand = Pointwise(folded.expand)
        self.limit = folded.limit
        self.store(encoding=folded.encoding)
        self.causal = spec.causal
        self.spatial = spec.se_type in ("2d", "2plus3d")
        self.whole = spec.se_type in ("3d", "2plus3d")
        self.prepare()

    def prepare(self) -> None:
        """Reach for the scale."""
        super().prepare()
        self.scale = self._buffers["encoding"]


class Layer(FoldedModule):
    """A bottleneck.

    Attributes:
        skip: the residual branch's matrix, or None for the input itself.
        pools: whether a pool is in front of it.
        pool_counts_padding: whether that pads every side and counts what it pads.
        offset: what the true output has more than the computed one; see `FoldedLayer`.
        offset_before: the same of the layer before.
    """

    def __init__(
        self, name: str, folded: FoldedLayer, offset_before: Tensor, spec: ModelSpec
    ) -> None:
        super().__init__()
        self.name = name
        self.expansion = Pointwise(folded.expansion, spec.activation)
        self.depthwise = StreamConv(f"{name}.depthwise", name, folded.depthwise, spec)
        self.gate = None if folded.gate is None else Gate(name, folded.gate, spec)
        self.project = Pointwise(Matrix(folded.projection))
        self.skip = None if folded.skip is None else Pointwise(Matrix(folded.skip))
        self.pools = self.skip is not None and folded.depthwise.stride != (1, 1)
        self.pool_counts_padding = spec.pool_counts_padding
        self.offset: Tensor
        self.offset_before: Tensor
        self.store(offset=folded.offset, offset_before=offset_before)
        self.prepare()
