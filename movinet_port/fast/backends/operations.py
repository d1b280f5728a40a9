"""PyTorch's operations: any type and device, and the only ones that can be watched from inside.

Other backends take single stages of what is here, or whole layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from movinet_port.fast.choice import (
    CLASSIFIER,
    CONVOLVE,
    LAYER,
    NARROW,
    POOL,
    PRODUCT,
    SPACE,
    STEM,
    Case,
    Compute,
    Row,
    choose,
    unprepared,
)
from movinet_port.fast.layers import Gate, Layer, Pointwise, StreamConv
from movinet_port.fast.run import Run
from movinet_port.layers import same_padding
from movinet_port.stages import bottleneck

# For each tap of a kernel the frames that it reads, and the first frame that it reads them for.
Windows: TypeAlias = Sequence[tuple[Tensor, int]]
Wide: TypeAlias = tuple[Tensor, Tensor | None]


def _product(block: Pointwise, case: Case, x: Tensor) -> Tensor:
    constant, matrix = block.constant, block.matrix
    y = torch.mm(x, matrix) if constant is None else torch.addmm(constant, x, matrix)
    return y if block.activation is None else block.activation(y)


# Convolutions -----------------------------------------------------------------------------------


class Convolution:
    """A convolution over space of frames of one size.

    Args:
        conv: the convolution.
        case: of its input.
    """

    def __init__(self, conv: StreamConv, case: Case) -> None:
        self.conv = conv
        self.out_size = conv.out_size(case.height, case.width)
        vertical, horizontal = conv.pads(case.height, case.width)
        self.padding = max(vertical), max(horizontal)
        self.grown = conv.grown(case.height, case.width)
        self.kernels = self.lay_out()

    def lay_out(self) -> Sequence[Tensor]:
        """Return the kernels as they are computed with."""
        left, top = self.grown
        conv = self.conv
        return conv.keep(
            ("grown", self.grown), lambda: [F.pad(k, (left, 0, top, 0)) for k in conv.kernels]
        )

    def first(self, x: Tensor, tap: int) -> Tensor:
        """Return the frames `x` convolved with the kernel of a tap, and the bias."""
        conv = self.conv
        y = F.conv2d(
            x.permute(0, 3, 1, 2),
            *(self.kernels[tap], conv.constant, conv.stride, self.padding, 1, conv.groups),
        )
        return y.permute(0, 2, 3, 1).contiguous()

    def add(self, y: Tensor, x: Tensor, tap: int) -> None:
        """Add to `y` the frames `x`, convolved with the kernel of a tap."""
        conv = self.conv
        sums = y.permute(0, 3, 1, 2)
        sums += F.conv2d(
            x.permute(0, 3, 1, 2),
            *(self.kernels[tap], None, conv.stride, self.padding, 1, conv.groups),
        )


def over_space(conv: StreamConv, case: Case, convolution: Convolution | None = None) -> Compute:
    """Return what computes the activation of what all taps add up to.

    Args:
        conv: the convolution.
        case: of its input.
        convolution: computes one tap; by default with PyTorch's operations.
    """
    one = convolution or Convolution(conv, case)

    def compute(windows: Windows, run: Run) -> Tensor:
        full = _full(windows, run)
        y = one.first(windows[full][0], full)
        for tap, (x, first) in enumerate(windows):
            if tap != full and x.shape[0]:
                one.add(y[first : first + x.shape[0]], x, tap)
        return conv.activation(y)

    return compute


def _full(windows: Windows, run: Run) -> int:
    """Return a tap that reads something for every frame."""
    rows = run.frames * run.batch
    return next(tap for tap, (x, _) in enumerate(windows) if x.shape[0] == rows)


def over_frames(conv: StreamConv, windows: Windows, run: Run) -> Tensor:
    """Return the activation of a split-off convolution over frames."""
    full = _full(windows, run)
    x = windows[full][0]
    taps = conv.temporal_taps
    if conv.depthwise:
        assert conv.temporal_constant is not None
        y = torch.addcmul(conv.temporal_constant, x, taps[full])
    else:
        y = F.linear(x, taps[full], conv.temporal_constant)
    for tap, (x, first) in enumerate(windows):
        rows = x.shape[0]
        if tap == full or not rows:
            continue
        part = y if rows == y.shape[0] else y[first : first + rows]
        if conv.depthwise:
            part.addcmul_(x, taps[tap])
        else:
            part += F.linear(x, taps[tap])
    return conv.activation(y)


def _windows(conv: StreamConv, x: Tensor, run: Run) -> Windows:
    """Return what each tap over time reads; the frames for the next clip go to `run`.

    Frames outside the video are in no window, because they add nothing.
    """
    batch, taps = run.batch, conv.taps
    if taps == 1:
        return [(x, 0)]
    if conv.causal:
        assert run.state is not None
        before = run.state.frames[conv.key]
        if run.frames == 1:
            sequence = (*before, x)
            run.new_frames[conv.key] = sequence[1:]
            return [(frame, 0) for frame in sequence]
        joined = torch.cat([*before, x])
        # Copies, because a view would keep the whole clip alive until the next one.
        last = joined[-(taps - 1) * batch :].clone()
        run.new_frames[conv.key] = last.split(batch)
        return [(joined[tap * batch : (tap + run.frames) * batch], 0) for tap in range(taps)]
    ahead, _ = same_padding(run.frames, taps, 1)
    windows = []
    for tap in range(taps):
        shift = tap - ahead
        start, stop = max(0, -shift), min(run.frames, run.frames - shift)
        part = x[(start + shift) * batch : max(stop + shift, start + shift) * batch]
        windows.append((part, start * batch))
    return windows


def over_time(conv: StreamConv, x: Tensor, run: Run) -> Tensor:
    """Return the activations of a split-off convolution over the frames of a clip."""
    y = over_frames(conv, _windows(conv, x, run), run)
    return run.show(f"{conv.name}.temporal_activation", y)


def convolution(conv: StreamConv, case: Case) -> Compute:
    """Return what computes a convolution over the space and the frames of a clip."""
    space = choose(SPACE, conv, case)

    def compute(x: Tensor, run: Run) -> Tensor:
        windows = [(x, 0)] if conv.splits else _windows(conv, x, run)
        x = run.show(f"{conv.name}.activation", space(windows, run))
        return over_time(conv, x, run) if conv.splits else x

    return compute


def frames_of(video: Tensor) -> Tensor:
    """Return (frames * batch, height, width, channels): a view for one frame, and for one video."""
    return video.permute(2, 0, 3, 4, 1).flatten(0, 1)


def _stem(conv: StreamConv, case: Case) -> Compute:
    convolve = convolution(conv, case)

    def compute(video: Tensor, run: Run) -> Tensor:
        x = frames_of(video)
        return convolve(x.flip(1, 2) if conv.turned else x, run)

    return compute


# Bottlenecks ------------------------------------------------------------------------------------


def expansion(layer: Layer, case: Case) -> Compute:
    """Return what expands a clip."""
    expand = choose(PRODUCT, layer.expansion, case)
    return lambda x: expand(x.reshape(-1, x.shape[3])).view(*x.shape[:3], -1)


def _convolve(layer: Layer, case: Case) -> Compute:
    expand, depthwise = expansion(layer, case), convolution(layer.depthwise, case)

    def compute(x: Tensor, run: Run) -> Wide:
        hidden = run.show(f"{layer.name}.expansion.activation", expand(x))
        return depthwise(hidden, run), None

    return compute


def expanded_bytes(layer: Layer, case: Case) -> int:
    """Return what one frame takes when it is expanded."""
    return case.height * case.width * layer.depthwise.spatial_out * case.dtype.itemsize


def _pool(layer: Layer, case: Case) -> Compute:
    """Return what averages 3 x 3 pixels with stride 2, SAME; cells of the padding do not count.

    Or pads one cell on every side, and counts it, as `AveragePool` does when it is told to.
    """
    if layer.pool_counts_padding:
        return lambda x: _pool_with_padding(layer, x)
    turned = layer.depthwise.turned
    # At even sizes SAME pads one side only: the end, where the pool's ceil mode goes over the edge,
    # or of turned frames the start.
    at_edge = (1, 1) if turned else (case.height % 2, case.width % 2)

    def compute(x: Tensor) -> Tensor:
        y = F.avg_pool2d(
            *(x.permute(0, 3, 1, 2), 3, 2, at_edge), ceil_mode=not turned, count_include_pad=False
        )
        return y.permute(0, 2, 3, 1).contiguous()

    return compute


def _pool_with_padding(layer: Layer, x: Tensor) -> Tensor:
    y = F.avg_pool2d(x.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)
    # What the layer before has not added (`FoldedLayer.offset`) is in no padded cell: a window at
    # the edge lacks less of it than the projection's bias makes up for.
    seen = F.avg_pool2d(x.new_ones(1, 1, x.shape[1], x.shape[2]), 3, 2, 1)[0, 0, :, :, None]
    # In a package rows are filled up to whole vectors.
    offset = F.pad(layer.offset_before, (0, x.shape[3] - len(layer.offset_before)))
    return (y + (seen - 1) * offset.to(y.dtype)).contiguous()


def residual(layer: Layer, case: Case) -> Compute:
    """Return what computes the rows that the projection is added to.

    They may be written over: they are the input's, or they are new.
    """
    if layer.skip is None:
        return lambda x, run: x.reshape(-1, x.shape[3])
    pooled = choose(POOL, layer, case) if layer.pools else None
    size = layer.depthwise.out_size(case.height, case.width)
    multiply = choose(PRODUCT, layer.skip, case.of_size(*size))

    def compute(x: Tensor, run: Run) -> Tensor:
        if pooled is not None:
            x = run.show(f"{layer.name}.skip.pool", pooled(x), layer.offset_before)
        rows: Tensor = multiply(x.reshape(-1, x.shape[3]))
        return rows

    return compute


def excite(gate: Gate, case: Case) -> Compute:
    """Return what computes the gates of what is pooled.

    Args:
        gate: the squeeze-excitation.
        case: of what is pooled: one pixel for each gate.
    """
    reduce, expand = choose(PRODUCT, gate.reduce, case), choose(PRODUCT, gate.expand, case)

    def compute(pooled: Tensor, run: Run) -> Tensor:
        hidden = run.show_vector(f"{gate.name}.reduce.activation", reduce(pooled))
        gates = expand(hidden)
        gates = gates.sigmoid_() if gate.limit is None else gates.clamp_(0.0, gate.limit)
        return run.show_vector(f"{gate.name}.expand.activation", gates)

    return compute


def squeeze_excitation(gate: Gate, case: Case) -> Compute:
    """Return what computes the gates of a wide clip.

    It returns (frames * batch, channels), or (batch, channels) for all frames. Its arguments are
    the clip's rows, their means over space, (frames * batch, channels), if they are known, and the
    run.
    """
    frames = case.frames * case.batch
    each = gate.spatial or gate.causal
    excited = excite(gate, case._replace(frames=case.frames if each else 1, height=1, width=1))

    def compute(rows: Tensor, means: Tensor | None, run: Run) -> Tensor:
        if means is None:
            means = rows.view(frames, -1, rows.shape[1]).mean(1, dtype=run.dtype)
        narrow = rows.dtype != run.dtype
        if gate.spatial and (narrow or run.tap is not None):
            spatial = run.show_vector(f"{gate.name}.spatial_pool", means.to(rows.dtype))
            means = spatial.to(run.dtype)
        value = means
        if gate.whole:
            value = _pooled_over_time(gate, means, run)
            if narrow or run.tap is not None:
                value = run.show_vector(f"{gate.name}.temporal_pool", value.to(rows.dtype))
                value = value.to(run.dtype)
            if gate.spatial:
                if value.shape[0] != frames:
                    value = value.repeat(run.frames, 1)
                value = torch.cat((value, means), 1)
        value = value.to(rows.dtype)
        if gate.scale is not None:
            value = value + run.waves[gate.layer]
            value = run.show_vector(f"{gate.name}.positional_encoding", value)
        return excited(value, run)

    return compute


def _pooled_over_time(gate: Gate, means: Tensor, run: Run) -> Tensor:
    if not gate.causal:
        return means if run.frames == 1 else means.unflatten(0, (-1, run.batch)).mean(0)
    assert run.state is not None
    before = run.state.pools[gate.layer]
    if run.frames == 1:
        total = run.new_pools[gate.layer] = before + means
        return total * run.part_now
    totals = means.unflatten(0, (-1, run.batch)).cumsum(0) + before
    run.new_pools[gate.layer] = totals[-1].clone()
    return (totals * run.part).flatten(0, 1)


def gated(layer: Layer, wide: Tensor, gates: Tensor | None, case: Case) -> tuple[Tensor, Tensor]:
    """Return rows and a projection's weight whose product is gated; `wide` is written over.

    Args:
        layer: the bottleneck.
        wide: (frames * batch * pixels, channels).
        gates: (frames * batch, channels) or (batch, channels); or None for none.
        case: of `wide`.
    """
    weight = layer.project.weight
    if gates is None:
        return wide, weight
    if gates.shape[0] == 1:
        # One gate for all there is: the matrix is smaller than the activations.
        return wide, weight * gates
    return multiplied(wide, gates, case), weight


def multiplied(wide: Tensor, gates: Tensor, case: Case) -> Tensor:
    """Return rows multiplied by the gates of their frames, in their place."""
    # (frames or 1, batch, pixels, channels)
    wide.view(-1, gates.shape[0], case.height * case.width, wide.shape[1]).mul_(gates[:, None, :])
    return wide


def _narrow(
    layer: Layer, case: Case, wide: Tensor, gates: Tensor | None, rows: Tensor, run: Run
) -> Tensor:
    wide, weight = gated(layer, wide, gates, case)
    return rows.addmm_(wide, weight.t())


class Staged:
    """A bottleneck stage by stage, each with the backend that takes it.

    It is called with the input less its own offset, which is overwritten, and the run; it returns
    the output less the layer's offset.

    Args:
        layer: the bottleneck.
        case: of its input.
    """

    def __init__(self, layer: Layer, case: Case) -> None:
        self._layer = layer
        out = case.of_size(*layer.depthwise.out_size(case.height, case.width))
        self._residual = residual(layer, case)
        self._wide = choose(CONVOLVE, layer, case)
        self._gates = None if layer.gate is None else squeeze_excitation(layer.gate, out)
        self._narrowed = choose(NARROW, layer, out)
        self._frames = out.frames * out.batch, out.height, out.width, -1

    def __call__(self, x: Tensor, run: Run) -> Tensor:
        """Compute the layer."""
        y = bottleneck(self, run, x).view(self._frames)
        return run.show(self._layer.name, y, self._layer.offset)

    def residual(self, run: Run, x: Tensor) -> Tensor:
        """Return the rows that the projection is added to."""
        return self._residual(x, run)

    def convolve(self, run: Run, x: Tensor) -> Wide:
        """Return the wide rows, and their means over space if they are known."""
        wide, means = self._wide(x, run)
        return wide.view(-1, wide.shape[3]), means

    def gate(self, run: Run, wide: Wide) -> Wide:
        """Return the wide rows and their gates."""
        rows, means = wide
        return rows, None if self._gates is None else self._gates(rows, means, run)

    def narrow(self, run: Run, gated: Wide, residual: Tensor) -> Tensor:
        """Return the output's rows."""
        y: Tensor = self._narrowed(*gated, residual, run)
        return y


def _always(part: object, case: Case) -> bool:
    return True


ROWS = (
    Row(STEM, "operations", _always, _stem),
    Row(LAYER, "operations", _always, Staged),
    Row(CONVOLVE, "operations", _always, _convolve),
    Row(SPACE, "operations", _always, over_space),
    Row(NARROW, "operations", _always, unprepared(_narrow)),
    Row(POOL, "operations", _always, _pool),
    Row(PRODUCT, "operations", _always, unprepared(_product)),
    Row(CLASSIFIER, "operations", _always, lambda block, case: choose(PRODUCT, block, case)),
)
