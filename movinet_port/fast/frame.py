"""One new frame of one video at level "eager": all but the arithmetic is done ahead.

Arithmetic is less than half the time of a frame of A0. The rest is what PyTorch does around each of
some 300 operations: finding memory, making views, Python. In a stream, frame after frame of one
size, that is the same every time, so the operations of the first frame are recorded.

This is for where there is no compiled library: see `movinet_port.fast.extension`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from movinet_port.fast.layers import (
    Gate,
    Layer,
    Pointwise,
    StreamConv,
    activate,
    average_pool,
    in_place,
    pack,
    rows_for_onednn,
)
from movinet_port.fast.replay import TensorFunction, record
from movinet_port.fast.state import StateLayout, StreamState

if TYPE_CHECKING:
    from movinet_port.fast.network import FastMoViNet

# A smaller matrix stays in a core's cache.
_SMALL = 40_000

# The rows of so large a matrix are added up in pieces, which threads share.
_LARGE = 500_000
_PIECES = 8
# What `torch.embedding_bag` calls a sum.
_SUM = 0


class VectorProduct:
    """The product of a matrix with one vector, its bias, and the activation behind it.

    What fits in a core's cache is MKL's. Larger matrices come from memory, where an embedding bag,
    the weighted sum of a matrix's rows, takes a half to a third of the time: it fetches ahead and
    shares the rows among threads.

    Args:
        pointwise: what is done with every row; its weight is copied.
        unit: (in,) what one is worth in each place of the vector, by default one.
        out: (1, out) where the result is written, by default anywhere.

    Attributes:
        vector: (1, in), to be filled before each call.
    """

    def __init__(
        self, pointwise: Pointwise, unit: Tensor | None = None, out: Tensor | None = None
    ) -> None:
        assert pointwise.constant is not None
        weight = pointwise.weight if unit is None else pointwise.weight / unit
        self._activation = pointwise.activation
        self._anywhere = out is None
        self._out = weight.new_empty(1, len(weight)) if out is None else out
        self._flat = self._out[0]
        self._bias = pointwise.constant
        self._matrix = None
        if weight.numel() < _SMALL:
            self._matrix = weight.t().contiguous().t()
            self.vector = weight.new_empty(1, weight.shape[1])
            self._column = self.vector[0]
            return
        self._rows = torch.cat([weight.t(), self._bias[None]])
        count = len(self._rows)
        self._pieces = _PIECES if self._rows.numel() >= _LARGE else 1
        starts = [count * i // self._pieces for i in range(self._pieces)]
        self._which = torch.arange(count, device=weight.device)
        self._starts = torch.tensor(starts, device=weight.device)
        # The last is the bias's.
        self._weights = weight.new_ones(count)
        self.vector = self._weights[None, :-1]

    def __call__(self) -> Tensor:
        """Return (1, out), which the next call may write over."""
        y, activation = self._out, self._activation
        if self._matrix is not None:
            torch.addmv(self._bias, self._matrix, self._column, out=self._flat)
        else:
            bags: Tensor = torch.embedding_bag(
                self._rows, self._which, self._starts, False, _SUM, False, self._weights
            )[0]
            if self._pieces > 1:
                torch.sum(bags, 0, True, out=y)
            elif activation is not None:
                return activate(activation, bags, y)
            else:
                y = bags if self._anywhere else y.copy_(bags)
        return y if activation is None else in_place(activation)(y)


class _Run:
    """What all layers need to know of one frame, and what they leave behind."""

    def __init__(self, state: StreamState, part: Tensor, waves: Mapping[str, Tensor]) -> None:
        self.state = state
        self.part = part
        self.waves = waves
        self.new_frames: dict[str, tuple[Tensor, ...]] = {}
        self.new_pools: dict[str, Tensor] = {}

    def average(self, layer: str, sums: Tensor, part: float, out: Tensor) -> None:
        """Write the average over the video so far, (1, channels).

        Args:
            layer: or "head".
            sums: over the frame.
            part: what one pixel is of the frame.
            out: where to.
        """
        total = torch.add(self.state.pools[layer], sums, alpha=part)
        self.new_pools[layer] = total
        torch.mul(total, self.part, out=out)


class _Product:
    """A 1 x 1 convolution of the pixels of one frame.

    Args:
        pointwise: the convolution and the activation behind it.
        pixels: of the frame.
        memory: for the result, if it is not new.

    Attributes:
        out: (pixels, out channels) in that memory.
    """

    def __init__(self, pointwise: Pointwise, pixels: int, memory: Tensor) -> None:
        channels = len(pointwise.weight)
        self._at_once = None
        if pixels >= rows_for_onednn(pointwise.weight):
            self._at_once = pointwise.forward
        assert pointwise.constant is not None
        assert pointwise.activation is not None
        self._weight, self._bias = pointwise.matrix, pointwise.constant
        self._activation = in_place(pointwise.activation)
        self.out = memory[: pixels * channels].view(pixels, channels)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (pixels, out channels) of (pixels, in channels)."""
        if self._at_once is not None:
            return self._at_once(x)
        torch.addmm(self._bias, x, self._weight, out=self.out)
        return self._activation(self.out)


class _Conv:
    """A convolution over space. Its output is new memory, because a state may keep it."""

    def __init__(self, conv: StreamConv, height: int, width: int) -> None:
        kernels, _, padding = conv.layout(height, width)
        self._kernel, self._bias = kernels[0], conv.constant
        # An activation on the way costs oneDNN more than one afterwards, in a cache.
        self._how: tuple[Any, ...] = (padding, conv.stride, (1, 1), conv.groups, "none", [], "")
        self._activation = in_place(conv.activation)

    def __call__(self, planes: Tensor) -> Tensor:
        """Return (1, height, width, channels) of (1, channels, height, width)."""
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            planes, self._kernel, self._bias, *self._how
        )
        return self._activation(y.permute(0, 2, 3, 1).contiguous())


class _Stem(_Conv):
    """The first convolution, of a frame with its channels apart."""

    def __init__(self, conv: StreamConv, height: int, width: int) -> None:
        super().__init__(conv, height, width)
        # Put together and padded first: it is oneDNN's slowest convolution otherwise, and one side
        # is padded more than the other, which takes a larger kernel elsewhere.
        vertical, horizontal = conv.pads(height, width)
        padded = height + sum(vertical), width + sum(horizontal)
        weight = conv.kernels[0]
        self._kernel = pack(weight, conv.stride, conv.groups)
        self._how = ((0, 0), *self._how[1:])
        self._padded = weight.new_zeros(1, *padded, weight.shape[1]).permute(0, 3, 1, 2)
        self._frame = self._padded[
            :,
            :,
            vertical[0] : vertical[0] + height,
            horizontal[0] : horizontal[0] + width,
        ]

    def __call__(self, frame: Tensor) -> Tensor:
        """Return (1, height, width, channels) of (1, 3, height, width)."""
        self._frame.copy_(frame)
        return super().__call__(self._padded)


class _Gate:
    """A squeeze-excitation up to its gate."""

    def __init__(self, gate: Gate, pixels: int, channels: int) -> None:
        self._layer = gate.layer
        # Means over space stay sums: the product is told what they are worth.
        weight = gate.reduce.weight
        self._unit = weight.new_ones(1, weight.shape[1])
        if gate.spatial:
            self._unit[:, -channels:] = pixels
        self._part = 1 / pixels
        self._expand = VectorProduct(gate.expand)
        self._reduce = VectorProduct(gate.reduce, self._unit, self._expand.vector)
        self._limit = gate.limit
        self._encoded = gate.scale is not None
        self._average = self._reduce.vector[:, :channels] if gate.whole else None
        self._sums = weight.new_empty(1, channels)
        if gate.spatial:
            self._sums = self._reduce.vector[:, -channels:]

    def __call__(self, x: Tensor, run: _Run) -> Tensor:
        """Return the gate, (1, channels), of (pixels, channels)."""
        reduce = self._reduce
        torch.sum(x, 0, True, out=self._sums)
        if self._average is not None:
            run.average(self._layer, self._sums, self._part, self._average)
        if self._encoded:
            reduce.vector.addcmul_(run.waves[self._layer], self._unit)
        reduce()
        gate = self._expand()
        return gate.sigmoid_() if self._limit is None else gate.clamp_(0.0, self._limit)


class _Step:
    """A bottleneck for one frame of one size.

    Args:
        layer: the bottleneck.
        height, width: of the frame.
        expanded: memory for what is expanded; all layers write it over.
        mixed: the same, for what is convolved over frames.
    """

    def __init__(
        self, layer: Layer, height: int, width: int, expanded: Tensor, mixed: Tensor
    ) -> None:
        self._name = layer.name
        conv, expansion, project = layer.depthwise, layer.expansion, layer.project
        channels = len(expansion.weight)
        out_height, out_width = conv.out_size(height, width)
        pixels, out_pixels = height * width, out_height * out_width
        self._shape = 1, height, width, channels
        self._activation = in_place(conv.activation)

        self._expand = _Product(expansion, pixels, expanded)
        self._planes = self._expand.out.view(self._shape).permute(0, 3, 1, 2)
        self._conv = _Conv(conv, height, width)
        self._over_time = None
        if conv.splits:
            assert conv.temporal_constant is not None
            self._over_time = conv.temporal_constant, conv.temporal_taps[-1]
        self._past_taps = conv.temporal_taps[:-1]
        self._mixed = mixed[: out_pixels * channels].view(out_pixels, channels)
        self._mixed_frame = self._mixed.view(1, out_height, out_width, channels)

        self._gate = None if layer.gate is None else _Gate(layer.gate, out_pixels, channels)
        self._weight = project.weight
        # The gate goes to what is smaller.
        self._scales_weight = self._gate is not None and project.weight.shape[0] < out_pixels
        self._scaled = torch.empty_like(self._weight) if self._scales_weight else self._weight
        self._project = self._scaled.t()
        self._adds = out_pixels >= rows_for_onednn(project.weight)

        self._pools = layer.pools
        self._skip = None if layer.skip is None else layer.skip.matrix
        self._residual = project.weight.new_empty(out_pixels, project.weight.shape[0])

    def __call__(self, x: Tensor, run: _Run) -> Tensor:
        """Return (pixels, channels) of the same; `x` may be written over."""
        rows = x
        expanded = self._expand(x)
        planes = self._planes
        if expanded is not self._expand.out:
            planes = expanded.view(self._shape).permute(0, 3, 1, 2)
        frame = self._conv(planes)
        if self._over_time is not None:
            constant, now = self._over_time
            mixed, sums = self._mixed, self._mixed_frame
            torch.addcmul(constant, frame, now, out=sums)
            if self._past_taps:
                past = run.state.frames[self._name]
                for before, tap in zip(past, self._past_taps, strict=True):
                    sums.addcmul_(before, tap)
                run.new_frames[self._name] = (*past[1:], frame)
            self._activation(mixed)
        else:
            mixed = frame.view(self._mixed.shape)
        if self._skip is not None:
            if self._pools:
                x = average_pool(x.view(*self._shape[:3], -1)).view(-1, x.shape[1])
            rows = torch.mm(x, self._skip, out=self._residual)
        if self._gate is not None:
            gate = self._gate(mixed, run)
            if self._scales_weight:
                torch.mul(self._weight, gate, out=self._scaled)
            else:
                mixed.mul_(gate)
        if self._adds:
            y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
                mixed, rows, self._scaled, None, "add"
            )
            return y
        return rows.addmm_(mixed, self._project)


class FramePlan:
    """A network made ready for single frames of one size.

    It computes in memory of its own, so it serves one caller at a time. What it returns is new.

    Args:
        network: causal, float32 on the CPU, whose frames meet in depthwise convolutions only.
        height, width: of the frame.
    """

    def __init__(self, network: FastMoViNet, height: int, width: int) -> None:
        self._stem = _Stem(network.stem, height, width)
        height, width = network.stem.out_size(height, width)
        sizes = []
        expanded = mixed = 0
        for layer in network.bottlenecks:
            sizes.append((height, width))
            channels = len(layer.expansion.weight)
            expanded = max(expanded, height * width * channels)
            height, width = layer.depthwise.out_size(height, width)
            mixed = max(mixed, height * width * channels)
        expanded = max(expanded, height * width * len(network.head.weight))
        memory = network.weight.new_empty(expanded), network.weight.new_empty(mixed)
        self._steps = [
            _Step(layer, *size, *memory)
            for layer, size in zip(network.bottlenecks, sizes, strict=True)
        ]
        pixels = height * width
        self._head = _Product(network.head, pixels, memory[0])
        self._part = 1 / pixels
        self._output = VectorProduct(network.output)
        self._hidden = VectorProduct(network.hidden, out=self._output.vector)
        # Known from the first frame on: the order of a state's tensors, the way from one frame to
        # the next, and the operations.
        self._layout: StateLayout | None = None
        self._move_on: Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
        self._compute: TensorFunction

    def run(
        self, video: Tensor, state: StreamState, waves: Mapping[str, Tensor]
    ) -> tuple[Tensor, StreamState]:
        """Return logits and the state after the frame, as `InferenceNetwork.run` does.

        Args:
            video: (1, 3, 1, height, width), float32.
            state: before the frame.
            waves: layer -> its positional encoding, see `FastMoViNet.waves`.
        """
        count = state.count + 1
        part = count.to(video.dtype).reciprocal()
        before = state.flat()
        inputs = (video, part, *waves.values(), *before)
        if self._layout is None:
            self._layout = layout = StateLayout.of(state)
            self._move_on = layout.advance(1)
            names = list(waves)

            def compute(video: Tensor, part: Tensor, *rest: Tensor) -> list[Tensor]:
                waves = dict(zip(names, rest, strict=False))
                return self._step(video, _Run(layout.unflatten(rest[len(names) :]), part, waves))

            found, self._compute = record(compute, inputs)
        else:
            found = self._compute(*inputs)
        logits, *new = found
        return logits, self._layout.lazily(self._move_on([*before, *new, count]))

    def _step(self, video: Tensor, run: _Run) -> list[Tensor]:
        """Return logits, the new frames, and the pools."""
        x = self._stem(video[:, :, 0])
        x = x.view(-1, x.shape[3])
        for step in self._steps:
            x = step(x, run)
        sums = self._head(x).sum(0, True)
        run.average("head", sums, self._part, self._hidden.vector)
        self._hidden()
        frames = [run.new_frames[name][-1] for name in run.state.frames]
        pools = [run.new_pools[name] for name in run.state.pools]
        return [self._output().clone(), *frames, *pools]
