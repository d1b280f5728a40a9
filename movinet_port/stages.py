"""The network in stages, for all that compute it.

`bottleneck` is the order of one layer's stages. Tensors go through them in the readable network
(`movinet_port.layers.Bottleneck`) and in the optimised one (`movinet_port.fast`), names of nodes in
the ONNX export. A clip in pieces (`movinet_port.clips`) takes the stages apart: there a gate waits
for the last piece.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

X = TypeVar("X")
Wide = TypeVar("Wide")
Gated = TypeVar("Gated")


class Stages(Protocol[X, Wide, Gated]):
    """The stages of a bottleneck, with whatever computes them."""

    def residual(self, layer: Any, x: X) -> X:
        """Return what the projection is added to: the input, projected where sizes change."""
        ...

    def convolve(self, layer: Any, x: X) -> Wide:
        """Return the output of the expansion and of the depthwise convolution behind it."""
        ...

    def gate(self, layer: Any, wide: Wide) -> Gated:
        """Return that gated by the squeeze-excitation, if there is one."""
        ...

    def narrow(self, layer: Any, gated: Gated, residual: X) -> X:
        """Return the projection, scaled and added to the residual."""
        ...


def bottleneck(stages: Stages[X, Wide, Gated], layer: Any, x: X) -> X:
    """Return what a layer hands on.

    Args:
        stages: compute it.
        layer: a bottleneck, as they know it.
        x: what the layer before hands on.
    """
    residual = stages.residual(layer, x)
    return stages.narrow(layer, stages.gate(layer, stages.convolve(layer, x)), residual)


class Pieces(Protocol):
    """The stages of a base network over pieces of a clip.

    Between layers a piece is (batch, channels, frames, height, width) in the readable network and
    (frames * batch, height, width, channels) in the optimised one.

    Attributes:
        axis: of the frames.
        batch: how many cells of that axis are one frame.
        stem: a convolution block.
        layers: the bottlenecks.
    """

    axis: int
    batch: int
    stem: Any
    layers: Sequence[Any]

    def enter(self, piece: Tensor) -> Tensor:
        """Return a piece of the video as the stem takes it."""
        ...

    def expand(self, layer: Any, piece: Tensor) -> Tensor:
        """Return the expansion's output."""
        ...

    def residual(self, layer: Any, piece: Tensor) -> Tensor:
        """Return the residual branch's output."""
        ...

    def taps(self, block: Any) -> int:
        """Return how many frames the temporal kernel of a convolution block sees."""
        ...

    def before_time(self, block: Any, piece: Tensor) -> Tensor:
        """Return what of the block comes before its temporal kernel: a split-off spatial part."""
        ...

    def over_time(self, block: Any, window: Tensor) -> Tensor:
        """Return the rest, where the temporal kernel lies inside the window."""
        ...

    def pools_clip(self, layer: Any) -> bool:
        """Return whether the layer's squeeze-excitation pools over the clip."""
        ...

    def frame_sum(self, x: Tensor) -> Tensor:
        """Return the sum over frames of the mean over space."""
        ...

    def finish(self, layer: Any, wide: Tensor, mean: Tensor | None, residual: Tensor) -> Tensor:
        """Return the layer's output: gated, narrowed, added; both tensors may be overwritten.

        Args:
            layer: the bottleneck.
            wide: its depthwise convolution's output.
            mean: of that over the clip, if the layer pools over the clip.
            residual: as `residual` returned it.
        """
        ...

    def head(self, piece: Tensor) -> Tensor:
        """Return the head's output before the pool."""
        ...

    def classify(self, mean: Tensor) -> Tensor:
        """Return logits of the pooled head."""
        ...


class _Readable:
    """The stages of the readable network that remember nothing."""

    def expand(self, layer: Any, x: Tensor) -> Tensor:
        wide: Tensor = layer.expansion(x)
        return wide

    def residual(self, layer: Any, x: Tensor) -> Tensor:
        residual: Tensor = x if layer.skip is None else layer.skip(x)
        return residual

    def narrow(self, layer: Any, gated: Tensor, residual: Tensor) -> Tensor:
        y: Tensor = layer.stochastic_depth(layer.rezero(layer.projection(gated)))
        return y + residual


@dataclasses.dataclass
class ReadableClip(_Readable):
    """The stages of the readable network over a clip, and what a layer takes to the next one.

    Attributes:
        stream_buffer, pool_buffer: before the clip; then after it.
        frame_count: (batch,) frames before the clip.
    """

    stream_buffer: Tensor | None
    pool_buffer: Tensor | None
    frame_count: Tensor

    def convolve(self, layer: Any, x: Tensor) -> Tensor:
        """Return the depthwise convolution's output."""
        wide: Tensor
        wide, self.stream_buffer = layer.depthwise(self.expand(layer, x), self.stream_buffer)
        return wide

    def gate(self, layer: Any, wide: Tensor) -> Tensor:
        """Return that gated."""
        if layer.squeeze_excitation is not None:
            wide, self.pool_buffer = layer.squeeze_excitation(
                wide, self.pool_buffer, self.frame_count
            )
        return wide


class _ReadablePieces(_Readable):
    axis: int = 2
    batch: int = 1

    def __init__(self, model: Any) -> None:
        self._model = model
        self.stem: Any = model.stem
        self.layers: Sequence[Any] = [getattr(model, name) for name in model.layer_names]

    def enter(self, piece: Tensor) -> Tensor:
        return piece

    def taps(self, block: Any) -> int:
        return int(block.stream_conv.kernel_size[0])

    def before_time(self, block: Any, piece: Tensor) -> Tensor:
        x: Tensor = block.before_time(piece)
        return x

    def over_time(self, block: Any, window: Tensor) -> Tensor:
        x: Tensor = block.behind(block.stream_conv.inside(window))
        return x

    def pools_clip(self, layer: Any) -> bool:
        attention = layer.squeeze_excitation
        return attention is not None and attention.temporal_pool is not None

    def frame_sum(self, x: Tensor) -> Tensor:
        total: Tensor = self._model.pool.frame_sum(x)
        return total

    def finish(self, layer: Any, wide: Tensor, mean: Tensor | None, residual: Tensor) -> Tensor:
        attention = layer.squeeze_excitation
        if attention is not None:
            spatial = None if attention.spatial_pool is None else attention.spatial_pool(wide)
            wide = attention.gates(mean, spatial) * wide
        return self.narrow(layer, wide, residual)

    def head(self, piece: Tensor) -> Tensor:
        x: Tensor = self._model.head(piece)
        return x

    def classify(self, mean: Tensor) -> Tensor:
        logits: Tensor = self._model.classifier(mean)
        return logits


def readable_pieces(model: Any) -> Pieces:
    """Return the stages of the readable network, a `MoViNet`, over pieces of a clip."""
    return _ReadablePieces(model)
