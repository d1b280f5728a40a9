"""C++ of movinet-port's own, compiled when it was installed, where there was a compiler.

`setup.py` says how. Level "eager" calls it for clips (`clip.cpp`) and for single frames of streams
(`frame.cpp`). PyTorch's operations compute the same where there is no such library: on other
processors than x86 with AVX2, on other systems than Linux, or without a compiler.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from movinet_port.fast.library import MEMBERS, Call, Library
from movinet_port.fast.library import libraries as libraries
from movinet_port.layers import same_padding

if TYPE_CHECKING:
    from movinet_port.fast.layers import Gate, Layer, Pointwise, StreamConv
    from movinet_port.fast.run import Run, Workspace

# Those of the published networks, by the library's numbers.
_ACTIVATIONS = {
    None: MEMBERS.activations["kNone"],
    "hard_swish": MEMBERS.activations["kHardSwish"],
    "swish": MEMBERS.activations["kSwish"],
}

# What one core's cache should hold of a tile: it has as much again, or more, for all else.
_TILE_BYTES = 256 << 10
# What an activation takes, in multiplications and additions.
_ACTIVATION_WORK = 16
# Numbers in a line of the cache.
_LINE = 16


def takes(x: Tensor) -> bool:
    """Return whether the C++ can compute with a tensor."""
    return x.dtype == torch.float32 and x.device.type == "cpu"


# Layouts ----------------------------------------------------------------------------------------


def laid_out(weight: Tensor, lanes: int) -> Tensor:
    """Return a matrix (out, in) as the `Product` of frame.cpp wants it: (vectors, in, lanes)."""
    rows = weight.shape[0]
    starts = [min(first, rows - lanes) for first in range(0, rows, lanes)]
    vectors = torch.stack([weight[start : start + lanes] for start in starts])
    return vectors.transpose(1, 2).contiguous()


def set_geometry(structure: Any, conv: StreamConv, height: int, width: int) -> None:
    """Set the numbers of a convolution over space of frames of this size."""
    structure.height, structure.width = height, width
    structure.out_height, structure.out_width = conv.out_size(height, width)
    structure.kernel_height, structure.kernel_width = conv.kernel
    structure.stride_height, structure.stride_width = conv.stride
    (structure.top, _), (structure.left, _) = conv.pads(height, width)


def _matrix(block: Pointwise, lanes: int) -> Tensor:
    """Return a block's matrix as `Product` wants it; not a second time if it is there."""
    if torch.compiler.is_compiling():
        return laid_out(block.weight, lanes)
    product = block.keep(MatrixKernel, lambda: kernel(MatrixKernel, block))
    if product is None or product.library.lanes != lanes:
        return laid_out(block.weight, lanes)
    return product.matrix


def bottleneck_tensors(structure: Any, layer: Layer, lanes: int) -> dict[str, Tensor]:
    """Set the numbers of a `Bottleneck` that no size changes; return its tensors."""
    conv, expansion = layer.depthwise, layer.expansion
    assert expansion.constant is not None
    assert conv.constant is not None
    structure.channels, structure.inputs = expansion.weight.shape
    tensors = {
        "expansion": _matrix(expansion, lanes),
        "expansion_bias": expansion.constant.contiguous(),
        "cells": torch.stack(conv.cells) if len(conv.cells) > 1 else conv.cells[0],
        "bias": conv.constant.contiguous(),
    }
    if conv.splits:
        assert conv.temporal_matrix is not None
        assert conv.temporal_constant is not None
        structure.mixes = conv.taps
        tensors["mix"] = conv.temporal_matrix.contiguous()
        tensors["mix_bias"] = conv.temporal_constant.contiguous()
    return tensors


def layer_tensors(structure: Any, layer: Layer, lanes: int) -> dict[str, Tensor]:
    """Set the numbers of a `Layer` that no size changes; return the tensors that no frame does."""
    tensors = bottleneck_tensors(structure, layer, lanes)
    tensors["projection"] = laid_out(layer.project.weight, lanes)
    structure.outputs = len(layer.project.weight)
    gate = layer.gate
    if gate is not None:
        structure.hidden, structure.squeezed = gate.reduce.weight.shape
        structure.spatial, structure.whole = gate.spatial, gate.whole
        structure.limit = -1.0 if gate.limit is None else gate.limit
        tensors.update(gate_tensors(gate, lanes))
    return tensors


def gate_tensors(gate: Gate, lanes: int) -> dict[str, Tensor]:
    """Return a squeeze-excitation's tensors, its hidden layer in whole vectors."""
    reduce, expand = gate.reduce, gate.expand
    assert reduce.constant is not None
    assert expand.constant is not None
    more = -reduce.weight.shape[0] % lanes
    return {
        "reduce": laid_out(F.pad(reduce.weight, (0, 0, 0, more)), lanes),
        "reduce_bias": F.pad(reduce.constant, (0, more)),
        "expand": laid_out(expand.weight, lanes),
        "expand_bias": expand.constant,
    }


def fits_frame(layer: Layer, lanes: int) -> bool:
    """Return whether `compute_layer` of frame.cpp computes a bottleneck, its activation aside."""
    conv = layer.depthwise
    channels = layer.expansion.weight.shape[0], layer.project.weight.shape[0]
    return (
        conv.in_plane
        and conv.splits == (conv.taps > 1)
        and min(channels) >= lanes
        and max(conv.kernel) <= MEMBERS.highest_kernel
        and conv.taps <= MEMBERS.most_taps
    )


def fits_stem(conv: StreamConv, lanes: int) -> bool:
    """Return whether `Stem` of frame.cpp computes a convolution, its activation aside."""
    return (
        conv.groups == conv.taps == 1
        and not conv.splits
        and conv.spatial_out % (lanes // 2) == 0
        and max(conv.kernel) <= MEMBERS.highest_kernel
    )


# How clips are cut ------------------------------------------------------------------------------


class Cut(NamedTuple):
    """Into how many parts rows, frames and channels are cut; see `Clip` in clip.cpp."""

    strips: int
    segments: int
    blocks: int


def cut_for(clip: Any, lanes: int) -> tuple[Cut, int]:
    """Return the cut of a clip that should take the least time, and what its tiles take.

    Args:
        clip: a `Clip` of `members.h`, without its cut.
        lanes: numbers in a vector.
    """
    frames, taps, mixes, threads = clip.frames, clip.taps, clip.mixes, clip.threads
    out_height, out_width, kernel_height = clip.out_height, clip.out_width, clip.kernel_height
    # Of two vectors of channels each.
    panels = -(-clip.channels // (2 * lanes))
    columns = (out_width - 1) * clip.stride_width + clip.kernel_width

    def sizes(cut: Cut) -> tuple[int, int, int, int]:
        """Return rows of the output and of the input, panels, and numbers that each holds."""
        rows_out = -(-out_height // cut.strips)
        rows = (rows_out - 1) * clip.stride_height + kernel_height
        expanded = taps * (rows if taps > 1 else kernel_height) * columns * 2 * lanes
        mixed = mixes * rows_out * out_width * 2 * lanes
        held = -(-expanded // _LINE) * _LINE + -(-mixed // _LINE) * _LINE
        return rows_out, rows, -(-panels // cut.blocks), held

    def cost(cut: Cut) -> float:
        rows_out, rows, wide, held = sizes(cut)
        frames_out = -(-frames // cut.segments)
        # Frames that a segment has in common with those beside it.
        more = taps - 1 + max(0, mixes - 1) if cut.segments > 1 else 0
        # Of a vector's channels.
        expanded = (frames_out + more) * rows * clip.width
        convolved = frames_out * rows_out * out_width
        seen = taps * kernel_height * clip.kernel_width + _ACTIVATION_WORK
        if mixes:
            seen += mixes + _ACTIVATION_WORK
        work = expanded * (clip.inputs + _ACTIVATION_WORK) + convolved * seen
        # What does not stay in the cache is read from a slower one each time that it is seen.
        work *= 1 + 0.5 * max(0.0, 1 - _TILE_BYTES / (4 * held * wide))
        # Of the last tile to be done, half is on average what the other threads wait for.
        all_tiles = cut.strips * cut.segments * clip.batch * -(-clip.channels // lanes)
        return work * (all_tiles / threads + 0.5 * 2 * wide)

    parts = (1, 2, 3, 4, 6, 8, 12, 16)
    cuts = itertools.product(
        [n for n in parts if n <= out_height],
        [n for n in parts if n <= frames],
        sorted({-(-panels // n) for n in range(1, panels + 1)}),
    )
    best = min(itertools.starmap(Cut, cuts), key=cost)
    _, _, wide, held = sizes(best)
    return best, wide * held


# Kernels ----------------------------------------------------------------------------------------

K = TypeVar("K", bound="_Kernel")


class _Kernel(Protocol):
    """What computes a part of a network."""

    def __init__(self, library: Library, *part: Any) -> None: ...

    @staticmethod
    def fits(library: Library, *part: Any) -> bool:
        """Return whether a library computes a part."""
        ...


def kernel(kind: type[K], *part: Any) -> K | None:
    """Return a kernel for a part of a network by the first library that computes it, or None."""
    found = (kind(library, *part) for library in libraries() if kind.fits(library, *part))
    return next(found, None)


class StemKernel:
    """Convolves frames of a video, as they lie in memory.

    Args:
        library: the C++.
        conv: one that it `fits`.
    """

    def __init__(self, library: Library, conv: StreamConv) -> None:
        assert conv.constant is not None
        self._conv = conv
        kernel = conv.kernels[0]
        # Frames are convolved the way up that they come, and turned while they are written.
        kernel = kernel.flip(2, 3) if conv.turned else kernel
        tensors = {
            "cells": kernel.permute(1, 2, 3, 0).contiguous(),
            "bias": conv.constant.contiguous(),
        }
        structure = MEMBERS.structures["Stem"](activation=_ACTIVATIONS[conv.activation_name])
        structure.filters = conv.spatial_out
        self._call = Call(library, structure, tensors, self._fill)

    @staticmethod
    def fits(library: Library, conv: StreamConv) -> bool:
        """Return whether it computes a convolution."""
        return (
            takes(conv.kernels[0])
            and conv.activation_name in _ACTIVATIONS
            and fits_stem(conv, library.lanes)
        )

    def __call__(self, x: Tensor, workspace: Workspace) -> Tensor:
        """Return (frames, height, width, filters), frames turned where the network's are.

        Args:
            x: (frames, height, width, channels), in any strides, not turned.
            workspace: where to write.
        """
        a = self._call.structure(*x.shape, *x.stride())
        shape = len(x), a.out_height, a.out_width, a.filters
        out = workspace.take("stem", x, shape)
        a.x, a.out = x.data_ptr(), out.data_ptr()
        if self._conv.turned:
            a.out -= (a.out_height * a.out_width - 1) * a.out_step * out.element_size()
        self._call.compute(a)
        return out

    def _fill(
        self, a: Any, frames: int, height: int, width: int, channels: int, *strides: int
    ) -> None:
        conv = self._conv
        set_geometry(a, conv, height, width)
        a.frames, a.channels, a.out_step = frames, channels, a.filters
        a.frame_step, a.row_step, a.pixel_step, a.channel_step = strides
        a.out_frame_step = a.out_height * a.out_width * a.filters
        if conv.turned:
            (_, a.top), (_, a.left) = conv.pads(height, width)
            a.out_step = -a.filters


class MatrixKernel:
    """Multiplies pixels with a matrix.

    Args:
        library: the C++.
        block: a 1 x 1 convolution that it `fits`.

    Attributes:
        library: the C++.
        matrix: (out, in), as the C++ wants it.
    """

    def __init__(self, library: Library, block: Pointwise) -> None:
        weight, bias = block.weight, block.constant
        self.library = library
        self._activate = block.activation
        self._bias = weight.new_zeros(len(weight)) if bias is None else bias.contiguous()
        self.matrix = laid_out(weight, library.lanes)
        matrix = {"matrix": self.matrix}
        outputs, inputs = weight.shape
        vector = MEMBERS.structures["MatrixVector"](rows=outputs, columns=inputs)
        self._vector = Call(library, vector, {**matrix, "bias": self._bias}, lambda _: None)
        pixels = MEMBERS.structures["Pixels"](depth=inputs, columns=outputs)
        pixels.activation = _ACTIVATIONS[block.activation_name]
        self._pixels = Call(library, pixels, matrix, self._fill)

    @staticmethod
    def fits(library: Library, block: Pointwise) -> bool:
        """Return whether it multiplies with a matrix."""
        return (
            takes(block.weight)
            and not block.quantized
            and len(block.weight) >= library.lanes
            and block.activation_name in _ACTIVATIONS
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Return (rows, out), activated, of (rows, in)."""
        x = x.contiguous()
        out = x.new_empty(len(x), len(self._bias))
        if len(x) == 1:
            # Threads share the columns.
            a = self._vector.structure()
            a.x, a.out = x.data_ptr(), out.data_ptr()
            self._vector.compute(a)
            return out if self._activate is None else self._activate(out)
        a = self._pixels.structure(1, 1, len(x), 0, False)
        a.x, a.start, a.out = x.data_ptr(), self._bias.data_ptr(), out.data_ptr()
        self._pixels.compute(a)
        return out

    def add(self, x: Tensor, gates: Tensor | None, rows: Tensor, run: Run) -> Tensor:
        """Return the products of gated channels, added to `rows`.

        Args:
            x: (frames * batch * pixels, in), contiguous.
            gates: (frames * batch, in) or (batch, in), or None for none.
            rows: (frames * batch * pixels, out), contiguous.
            run: the pass.
        """
        cells = len(x) // (run.frames * run.batch)
        by_frame = gates is not None and len(gates) > run.batch
        a = self._pixels.structure(run.frames, run.batch, cells, rows.shape[1], by_frame)
        # Not in the place of `rows`: the last vector of columns may overlap the one before.
        out = torch.empty_like(rows)
        a.x, a.start, a.out = x.data_ptr(), rows.data_ptr(), out.data_ptr()
        if gates is not None:
            gates = gates.contiguous()
            scratch = run.workspace.take("scratch", x, (a.threads, self.matrix.numel()))
            a.gates, a.scratch = gates.data_ptr(), scratch.data_ptr()
        self._pixels.compute(a)
        return out

    @staticmethod
    def _fill(a: Any, frames: int, batch: int, cells: int, start_row: int, by_frame: bool) -> None:
        a.frames, a.batch, a.cells = frames, batch, cells
        a.start_row, a.by_frame = start_row, by_frame


class ClipKernel:
    """Expands and convolves the clips of one bottleneck.

    Args:
        library: the C++.
        layer: one that it `fits`.
    """

    def __init__(self, library: Library, layer: Layer) -> None:
        conv = layer.depthwise
        self._conv = conv
        self._lanes = library.lanes
        structure = MEMBERS.structures["Clip"](taps=1 if conv.splits else conv.taps)
        structure.activation = _ACTIVATIONS[conv.activation_name]
        tensors = bottleneck_tensors(structure, layer, library.lanes)
        self._call = Call(library, structure, tensors, self._fill)

    @staticmethod
    def fits(library: Library, layer: Layer) -> bool:
        """Return whether it computes a layer's clips."""
        conv, expansion = layer.depthwise, layer.expansion
        # Split off is what is causal, and nothing else.
        over_time = conv.depthwise and conv.causal if conv.splits else not conv.causal
        return (
            MatrixKernel.fits(library, expansion)
            and conv.groups == len(expansion.weight)
            and (over_time or conv.taps == 1)
            and max(conv.kernel) <= MEMBERS.highest_kernel
            and max(conv.stride) <= 2
            and conv.taps <= MEMBERS.most_taps
        )

    def __call__(self, x: Tensor, run: Run) -> tuple[Tensor, Tensor]:
        """Return the activations, and their means over space, (frames * batch, channels).

        The frames for the next clip go to `run`.

        Args:
            x: (frames * batch, height, width, channels), contiguous, before the expansion.
            run: the pass.
        """
        conv = self._conv
        a = self._call.structure(run.frames, run.batch, *x.shape[1:3])
        shape = a.out_height, a.out_width, a.channels
        out = run.workspace.take("mixed", x, (len(x), *shape))
        sums = run.workspace.take("sums", x, (a.strips, len(x), a.channels))
        scratch = run.workspace.take("scratch", x, (a.threads, a.room))
        a.x, a.out = x.data_ptr(), out.data_ptr()
        a.sums, a.scratch = sums.data_ptr(), scratch.data_ptr()
        if conv.splits:
            assert run.state is not None
            held = [frame.contiguous() for frame in run.state.frames[conv.key]]
            kept = [x.new_empty(run.batch, *shape) for _ in range(min(run.frames, len(held)))]
            a.held[: len(held)] = [frame.data_ptr() for frame in held]
            # The C++ names them by how long before the end of the clip they are.
            a.kept[len(held) - len(kept) : len(held)] = [frame.data_ptr() for frame in kept]
            run.new_frames[conv.key] = (*held, *kept)[-len(held) :]
        self._call.compute(a)
        return out, sums[0]

    def _fill(self, a: Any, frames: int, batch: int, height: int, width: int) -> None:
        set_geometry(a, self._conv, height, width)
        a.frames, a.batch = frames, batch
        a.before, _ = same_padding(frames, a.taps, 1)
        (a.strips, a.segments, a.blocks), a.room = cut_for(a, self._lanes)


class FrameKernel:
    """Computes one new frame of one video in one bottleneck.

    Args:
        library: the C++.
        layer: one that it `fits`.
    """

    def __init__(self, library: Library, layer: Layer) -> None:
        conv, gate = layer.depthwise, layer.gate
        self._name, self._key = layer.name, conv.key
        self._pools = gate is not None and gate.whole
        self._encodes = gate is not None and gate.scale is not None
        structure = MEMBERS.structures["Layer"]()
        tensors = layer_tensors(structure, layer, library.lanes)
        self._call = Call(
            library, structure, tensors, lambda a, *size: set_geometry(a, conv, *size)
        )

    @staticmethod
    def fits(library: Library, layer: Layer) -> bool:
        """Return whether it computes a layer's single frames."""
        conv = layer.depthwise
        return (
            MatrixKernel.fits(library, layer.expansion)
            and not layer.project.quantized
            and conv.causal
            and conv.activation_name == "hard_swish"
            and fits_frame(layer, library.lanes)
        )

    def __call__(self, x: Tensor, residual: Tensor, run: Run) -> Tensor:
        """Return what the layer hands on, as `movinet_port.fast.backends.operations.Staged` does.

        Args:
            x: (1, height, width, channels), contiguous.
            residual: (pixels, out channels), contiguous.
            run: the pass, of one frame of one video.
        """
        a = self._call.structure(*x.shape[1:3])
        state = run.state
        assert state is not None
        out = x.new_empty(1, a.out_height, a.out_width, a.outputs)
        a.x, a.residual, a.out = x.data_ptr(), residual.data_ptr(), out.data_ptr()
        if a.mixes:
            held = [frame.contiguous() for frame in state.frames[self._key]]
            mixed = x.new_empty(1, a.out_height, a.out_width, a.channels)
            a.mixed = mixed.data_ptr()
            for number, frame in enumerate(held):
                a.held[number] = frame.data_ptr()
            run.new_frames[self._key] = (*held, mixed)[1:]
        if self._pools:
            pool = state.pools[self._name].contiguous()
            total = run.new_pools[self._name] = torch.empty_like(pool)
            a.pool, a.total, a.part = pool.data_ptr(), total.data_ptr(), run.part_now.data_ptr()
        if self._encodes:
            a.wave = run.waves[self._name].data_ptr()
        self._call.compute(a)
        return out


def average_pool(x: Tensor, out_size: tuple[int, int], top: int, left: int) -> Tensor | None:
    """Average 3 x 3 pixels with stride 2; cells outside the frame are not counted.

    Args:
        x: (frames, height, width, channels).
        out_size: height and width of what is returned.
        top, left: cells that the first window has before the frame.

    Returns:
        (frames, *out_size, channels); None if no library computes it.
    """
    frames, height, width, channels = x.shape
    fitting = (library for library in libraries() if channels % (library.lanes // 2) == 0)
    library = next(fitting, None) if takes(x) else None
    if library is None:
        return None
    x = x.contiguous()
    out = x.new_empty(frames, *out_size, channels)
    call = _pool_call(library)
    a = call.structure(frames, channels, height, width, *out_size, top, left)
    a.x, a.out = x.data_ptr(), out.data_ptr()
    call.compute(a)
    return out


@functools.cache
def _pool_call(library: Library) -> Call:
    def fill(a: Any, frames: int, channels: int, *space: int) -> None:
        a.frames, a.channels = frames, channels
        a.height, a.width, a.out_height, a.out_width, a.top, a.left = space
        a.kernel_height = a.kernel_width = 3
        a.stride_height = a.stride_width = 2

    return Call(library, MEMBERS.structures["Pool"](), {}, fill)
