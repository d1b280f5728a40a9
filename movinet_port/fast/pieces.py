"""The stages of the optimised network over pieces of a clip: see `movinet_port.stages.Pieces`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from movinet_port.fast.backends import CLASSIFIER, NARROW, PRODUCT, SPACE, Case, choose
from movinet_port.fast.backends.operations import (
    excite,
    expansion,
    frames_of,
    over_frames,
    residual,
)
from movinet_port.fast.layers import Layer, StreamConv
from movinet_port.fast.run import Run, Workspace
from movinet_port.layers import at_least_float32
from movinet_port.stages import Pieces


class _FastPieces:
    axis: int = 0

    def __init__(self, model: Any, batch: int) -> None:
        self._model = model
        self.batch = batch
        self.stem: Any = model.stem
        self.layers: Sequence[Any] = model.bottlenecks
        self._workspace = Workspace()

    def _case(self, x: Tensor) -> Case:
        frames, height, width = len(x) // self.batch, *x.shape[1:3]
        return Case(self.batch, frames, height, width, x.dtype, x.device.type)

    def _run(self, rows: int) -> Run:
        dtype = at_least_float32(self._model.dtype)
        return Run(self.batch, rows // self.batch, None, dtype, workspace=self._workspace)

    def enter(self, piece: Tensor) -> Tensor:
        piece = frames_of(piece)
        return piece.flip(1, 2) if self._model.turned else piece

    def taps(self, block: StreamConv) -> int:
        return block.taps

    def before_time(self, block: StreamConv, piece: Tensor) -> Tensor:
        if not block.splits:
            return piece
        x: Tensor = choose(SPACE, block, self._case(piece))([(piece, 0)], self._run(len(piece)))
        return x

    def over_time(self, block: StreamConv, window: Tensor) -> Tensor:
        rows = len(window) - (block.taps - 1) * self.batch
        windows = [(window[tap * self.batch :][:rows], 0) for tap in range(block.taps)]
        run = self._run(rows)
        if block.splits:
            return over_frames(block, windows, run)
        x: Tensor = choose(SPACE, block, self._case(windows[0][0]))(windows, run)
        return x

    def expand(self, layer: Layer, piece: Tensor) -> Tensor:
        return expansion(layer, self._case(piece))(piece)

    def residual(self, layer: Layer, piece: Tensor) -> Tensor:
        if layer.skip is None:
            return piece
        case = self._case(piece)
        rows = residual(layer, case)(piece, self._run(len(piece)))
        return rows.view(len(piece), *layer.depthwise.out_size(case.height, case.width), -1)

    def pools_clip(self, layer: Layer) -> bool:
        return layer.gate is not None and layer.gate.whole

    def _means(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2).mean(1, dtype=at_least_float32(x.dtype))

    def frame_sum(self, x: Tensor) -> Tensor:
        return self._means(x).unflatten(0, (-1, self.batch)).sum(0)

    def finish(self, layer: Layer, wide: Tensor, mean: Tensor | None, residual: Tensor) -> Tensor:
        case, run, gates = self._case(wide), self._run(len(wide)), None
        if layer.gate is not None:
            parts = [] if mean is None else [mean]
            if layer.gate.spatial:
                means = self._means(wide).to(wide.dtype)
                parts = [*(p.repeat(len(means) // len(p), 1) for p in parts), means]
            pooled = torch.cat(parts, 1)
            one = case._replace(frames=len(pooled) // self.batch, height=1, width=1)
            gates = excite(layer.gate, one)(pooled, run)
        wide_rows, rows = wide.reshape(-1, wide.shape[3]), residual.reshape(-1, residual.shape[3])
        y: Tensor = choose(NARROW, layer, case)(wide_rows, gates, rows, run)
        return y.view(*wide.shape[:3], -1)

    def head(self, piece: Tensor) -> Tensor:
        x: Tensor = choose(PRODUCT, self._model.head, self._case(piece))(
            piece.reshape(-1, piece.shape[3])
        )
        return x.view(*piece.shape[:3], -1)

    def classify(self, mean: Tensor) -> Tensor:
        case = self._case(mean[:, None, None, :])
        hidden = choose(CLASSIFIER, self._model.hidden, case)(mean)
        logits: Tensor = choose(CLASSIFIER, self._model.output, case)(hidden)
        return logits


def fast_pieces(model: Any, batch: int) -> Pieces:
    """Return the stages of a base network, a `FastMoViNet`, over pieces of so many clips."""
    return _FastPieces(model, batch)
