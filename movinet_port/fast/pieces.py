"""The stages of the optimised network over pieces of a clip: see `movinet_port.stages.Pieces`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from movinet_port.fast.layers import Layer, StreamConv, average_pool
from movinet_port.fast.run import Run
from movinet_port.layers import at_least_float32


class FastPieces:
    """A piece is (frames * batch, height, width, channels).

    Args:
        model: a base network, a `FastMoViNet`.
        batch: of the clips.
    """

    axis: int = 0

    def __init__(self, model: Any, batch: int) -> None:
        self._model = model
        self.batch = batch
        self.stem: Any = model.stem
        self.layers: Sequence[Any] = model.bottlenecks

    def _run(self, rows: int) -> Run:
        dtype = at_least_float32(self._model.dtype)
        return Run(self.batch, rows // self.batch, None, dtype, None)

    def enter(self, piece: Tensor) -> Tensor:
        """Return frames, turned if the network's are."""
        piece = piece.permute(2, 0, 3, 4, 1).flatten(0, 1)
        return piece.flip(1, 2) if self._model.turned else piece

    def taps(self, block: StreamConv) -> int:
        """Return how many frames a block's temporal kernel sees."""
        return block.taps

    def before_time(self, block: StreamConv, piece: Tensor) -> Tensor:
        """Return the split-off spatial part's output."""
        if not block.splits:
            return piece
        return block.over_space([(piece, 0)], self._run(piece.shape[0]))

    def over_time(self, block: StreamConv, window: Tensor) -> Tensor:
        """Return the rest of the block."""
        rows = window.shape[0] - (block.taps - 1) * self.batch
        windows = [(window[tap * self.batch :][:rows], 0) for tap in range(block.taps)]
        compute = block.over_frames if block.splits else block.over_space
        return compute(windows, self._run(rows))

    def expand(self, layer: Layer, piece: Tensor) -> Tensor:
        """Return the expansion's output."""
        x: Tensor = layer.expansion(piece.reshape(-1, piece.shape[3]))
        return x.view(*piece.shape[:3], -1)

    def residual(self, layer: Layer, piece: Tensor) -> Tensor:
        """Return what the projection is added to."""
        if layer.skip is None:
            return piece
        if layer.pools:
            piece = average_pool(piece, layer.depthwise.turned)
        x: Tensor = layer.skip(piece.reshape(-1, piece.shape[3]))
        return x.view(*piece.shape[:3], -1)

    def pools_clip(self, layer: Layer) -> bool:
        """Return whether the squeeze-excitation pools over the clip."""
        return layer.gate is not None and layer.gate.whole

    def _means(self, x: Tensor) -> Tensor:
        """Return (frames * batch, channels), the means over space."""
        return x.flatten(1, 2).mean(1, dtype=at_least_float32(x.dtype))

    def frame_sum(self, x: Tensor) -> Tensor:
        """Return (batch, channels)."""
        return self._means(x).unflatten(0, (-1, self.batch)).sum(0)

    def finish(self, layer: Layer, wide: Tensor, mean: Tensor | None, residual: Tensor) -> Tensor:
        """Return the layer's output."""
        project = layer.project
        weight = project.weight
        rows = wide.reshape(-1, wide.shape[3])
        gate = layer.gate
        if gate is not None:
            parts = [] if mean is None else [mean]
            if gate.spatial:
                means = self._means(wide).to(wide.dtype)
                parts = [*(p.repeat(len(means) // len(p), 1) for p in parts), means]
            gates: Tensor = gate.expand(gate.reduce(torch.cat(parts, 1)))
            gates = gates.sigmoid_() if gate.limit is None else gates.clamp_(0.0, gate.limit)
            if len(gates) == 1 and not project.quantized:
                weight = weight * gates
            else:
                apart = rows.view(-1, len(gates), wide.shape[1] * wide.shape[2], wide.shape[3])
                apart.mul_(gates[:, None, :])
        y = residual.reshape(-1, residual.shape[3])
        y = y.add_(project(rows)) if project.quantized else y.addmm_(rows, weight.t())
        return y.view(*wide.shape[:3], -1)

    def head(self, piece: Tensor) -> Tensor:
        """Return the head's output."""
        x: Tensor = self._model.head(piece.reshape(-1, piece.shape[3]))
        return x.view(*piece.shape[:3], -1)

    def classify(self, mean: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self._model.output(self._model.hidden(mean))
        return logits
