"""C++ of movinet-port's own, compiled when it was installed, where there was a compiler.

`setup.py` says how. Level "eager" calls it for clips (`clip.cpp`) and for single frames of streams
(`frame.cpp`). PyTorch's operations compute the same where there is no such library: on other
processors than x86 with AVX2, on other systems than Linux, or without a compiler.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from movinet_port.layers import same_padding

if TYPE_CHECKING:
    from movinet_port.fast.layers import Gate, Layer, Pointwise, StreamConv
    from movinet_port.fast.run import Run, Workspace

# The C++'s numbers of activations. It has those of the published networks.
_NONE = 0
_ACTIVATIONS = {None: _NONE, "hard_swish": 1, "swish": 4}
# What it has room for.
HIGHEST_KERNEL = 8
MOST_TAPS = 7

# What one core's cache should hold of a tile: it has as much again, or more, for all else.
_TILE_BYTES = 256 << 10
# What an activation takes, in multiplications and additions.
_ACTIVATION_WORK = 16
# Numbers in a line of the cache.
_LINE = 16
# For how many frame sizes a layer's arguments are kept.
_SIZES = 16

GEOMETRY = (
    *("height", "width", "out_height", "out_width"),
    *("kernel_height", "kernel_width", "stride_height", "stride_width", "top", "left"),
)


class _Geometry(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in GEOMETRY)


def _members(numbers: str, pointers: str) -> list[tuple[str, Any]]:
    return [
        ("geometry", _Geometry),
        *((name, ctypes.c_int64) for name in numbers.split()),
        *((name, ctypes.c_void_p) for name in pointers.split()),
    ]


_Held = ctypes.c_void_p * (MOST_TAPS - 1)


class _StemArguments(ctypes.Structure):
    _fields_ = _members(
        "frames frame_step channel_step row_step pixel_step out_frame_step out_step channels "
        "filters activation",
        "x cells bias out",
    )


class _ClipArguments(ctypes.Structure):
    _fields_ = (
        *_members(
            "frames batch inputs channels taps before mixes strips segments blocks room threads "
            "activation",
            "x expansion expansion_bias cells bias mix mix_bias out sums scratch",
        ),
        ("held", _Held),
        ("kept", _Held),
    )


class _PixelsArguments(ctypes.Structure):
    _fields_ = _members(
        "start_row frames batch cells depth columns by_frame threads activation",
        "x matrix gates start out scratch",
    )[1:]


class _PoolArguments(ctypes.Structure):
    _fields_ = _members("frames channels threads", "x out")


class _FrameArguments(ctypes.Structure):
    _fields_ = (
        *_members("inputs channels outputs frames squeezed hidden spatial whole", ""),
        ("limit", ctypes.c_double),
        *_members(
            "",
            "x residual expansion expansion_bias cells bias taps temporal_bias reduce reduce_bias "
            "expand expand_bias projection pool part wave mixed total out",
        )[1:],
        ("held", _Held),
    )


class _VectorArguments(ctypes.Structure):
    _fields_ = _members("rows columns", "matrix x bias out")[1:]


_FUNCTIONS: dict[str, type[ctypes.Structure]] = {
    "stem": _StemArguments,
    "clip": _ClipArguments,
    "pixels": _PixelsArguments,
    "pool": _PoolArguments,
    "frame": _FrameArguments,
    "vector": _VectorArguments,
}


class Library:
    """The compiled library for one kind of CPU.

    Args:
        path: of the file.

    Attributes:
        lanes: float32 numbers in a vector.
        stem, clip, pixels, pool, frame, vector: the C++'s functions.

    Raises:
        OSError: it cannot be loaded, or belongs to another version of movinet-port.
    """

    stem: Any
    clip: Any
    pixels: Any
    pool: Any
    frame: Any
    vector: Any

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        try:
            library.movinet_port_size.restype = ctypes.c_int64
            size = library.movinet_port_size()
            for name, arguments in _FUNCTIONS.items():
                function = getattr(library, f"movinet_port_{name}")
                function.restype, function.argtypes = None, [ctypes.POINTER(arguments)]
                setattr(self, name, function)
        except AttributeError:
            size = 0
        if size != sum(map(ctypes.sizeof, _FUNCTIONS.values())):
            raise OSError(f"{path} belongs to another version of movinet-port")
        self.lanes = int(library.movinet_port_lanes())


@functools.cache
def libraries() -> tuple[Library, ...]:
    """Return the libraries that this CPU can use, the one with the widest vectors first."""
    kinds = ("AVX512", "AVX2")
    capability = torch.backends.cpu.get_cpu_capability()
    found = []
    for kind in kinds[kinds.index(capability) :] if capability in kinds else ():
        file = importlib.util.find_spec(f"{__package__}._{kind.lower()}")
        if file is not None and file.origin is not None:
            with contextlib.suppress(OSError):
                found.append(Library(file.origin))
    return tuple(found)


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


def geometry(conv: StreamConv, height: int, width: int) -> dict[str, int]:
    """Return the numbers of a convolution over space of frames of this size."""
    (top, _), (left, _) = conv.pads(height, width)
    numbers = (height, width, *conv.out_size(height, width), *conv.kernel, *conv.stride, top, left)
    return dict(zip(GEOMETRY, numbers, strict=True))


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
        and max(conv.kernel) <= HIGHEST_KERNEL
        and conv.taps <= MOST_TAPS
    )


def fits_stem(conv: StreamConv, lanes: int) -> bool:
    """Return whether `Stem` of frame.cpp computes a convolution, its activation aside."""
    return (
        conv.groups == conv.taps == 1
        and not conv.splits
        and conv.spatial_out % (lanes // 2) == 0
        and max(conv.kernel) <= HIGHEST_KERNEL
    )


# How clips are cut ------------------------------------------------------------------------------


class Cut(NamedTuple):
    """Into how many parts rows, frames and channels are cut; see `Clip` in clip.cpp."""

    strips: int
    segments: int
    blocks: int


@functools.lru_cache(maxsize=1024)
def cut_for(
    frames: int,
    batch: int,
    inputs: int,
    channels: int,
    taps: int,
    mixes: int,
    space: tuple[int, ...],
    lanes: int,
    threads: int,
) -> tuple[Cut, int]:
    """Return the cut of a clip that should take the least time, and what its tiles take.

    Args:
        frames, batch, inputs, channels, taps, mixes: see `Clip` in clip.cpp.
        space: the values of `GEOMETRY`.
        lanes: numbers in a vector.
        threads: that share the tiles.
    """
    at = _Geometry(*space)
    # Of two vectors of channels each.
    panels = -(-channels // (2 * lanes))
    columns = (at.out_width - 1) * at.stride_width + at.kernel_width

    def sizes(cut: Cut) -> tuple[int, int, int, int]:
        """Return rows of the output and of the input, panels, and numbers that each holds."""
        rows_out = -(-at.out_height // cut.strips)
        rows = (rows_out - 1) * at.stride_height + at.kernel_height
        expanded = taps * (rows if taps > 1 else at.kernel_height) * columns * 2 * lanes
        mixed = mixes * rows_out * at.out_width * 2 * lanes
        held = -(-expanded // _LINE) * _LINE + -(-mixed // _LINE) * _LINE
        return rows_out, rows, -(-panels // cut.blocks), held

    def cost(cut: Cut) -> float:
        rows_out, rows, wide, held = sizes(cut)
        frames_out = -(-frames // cut.segments)
        # Frames that a segment has in common with those beside it.
        more = taps - 1 + max(0, mixes - 1) if cut.segments > 1 else 0
        # Of a vector's channels.
        expanded = (frames_out + more) * rows * at.width
        convolved = frames_out * rows_out * at.out_width
        seen = taps * at.kernel_height * at.kernel_width + _ACTIVATION_WORK
        if mixes:
            seen += mixes + _ACTIVATION_WORK
        work = expanded * (inputs + _ACTIVATION_WORK) + convolved * seen
        # What does not stay in the cache is read from a slower one each time that it is seen.
        work *= 1 + 0.5 * max(0.0, 1 - _TILE_BYTES / (4 * held * wide))
        # Of the last tile to be done, half is on average what the other threads wait for.
        all_tiles = cut.strips * cut.segments * batch * -(-channels // lanes)
        return work * (all_tiles / threads + 0.5 * 2 * wide)

    parts = (1, 2, 3, 4, 6, 8, 12, 16)
    cuts = itertools.product(
        [n for n in parts if n <= at.out_height],
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


def _set(arguments: ctypes.Structure, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        setattr(arguments, name, tensor.data_ptr())


class StemKernel:
    """Convolves frames of a video, as they lie in memory.

    Args:
        library: the C++.
        conv: one that it `fits`.
    """

    def __init__(self, library: Library, conv: StreamConv) -> None:
        assert conv.constant is not None
        self._library = library
        self._conv = conv
        kernel = conv.kernels[0]
        # Frames are convolved the way up that they come, and turned while they are written.
        kernel = kernel.flip(2, 3) if conv.turned else kernel
        self._tensors = {
            "cells": kernel.permute(1, 2, 3, 0).contiguous(),
            "bias": conv.constant.contiguous(),
        }

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
        conv = self._conv
        numbers = geometry(conv, *x.shape[1:3])
        if conv.turned:
            (_, numbers["top"]), (_, numbers["left"]) = conv.pads(*x.shape[1:3])
        shape = len(x), numbers["out_height"], numbers["out_width"], conv.spatial_out
        out = workspace.take("stem", x, shape)
        a = _StemArguments(geometry=_Geometry(**numbers), frames=len(x), channels=x.shape[3])
        a.filters = a.out_step = conv.spatial_out
        a.out_frame_step = out.stride(0)
        a.frame_step, a.row_step, a.pixel_step, a.channel_step = x.stride()
        a.activation = _ACTIVATIONS[conv.activation_name]
        _set(a, {**self._tensors, "x": x, "out": out})
        if conv.turned:
            a.out += (a.out_frame_step - a.out_step) * out.element_size()
            a.out_step = -a.out_step
        self._library.stem(a)
        return out


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
        self._columns, self._depth = weight.shape
        self._activation = _ACTIVATIONS[block.activation_name]
        self._activate = block.activation
        self._bias = weight.new_zeros(len(weight)) if bias is None else bias.contiguous()
        self.matrix = laid_out(weight, library.lanes)

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
        x, bias = x.contiguous(), self._bias
        out = x.new_empty(len(x), self._columns)
        if len(x) == 1:
            # Threads share the columns.
            v = _VectorArguments(rows=self._columns, columns=self._depth)
            _set(v, {"matrix": self.matrix, "x": x, "bias": bias, "out": out})
            self.library.vector(v)
            return out if self._activate is None else self._activate(out)
        self._multiply(x, bias, 0, out, (1, 1, len(x)))
        return out

    def add(self, x: Tensor, gates: Tensor | None, rows: Tensor, run: Run) -> Tensor:
        """Return the products of gated channels, added to `rows`.

        Args:
            x: (frames * batch * pixels, in), contiguous.
            gates: (frames * batch, in) or (batch, in), or None for none.
            rows: (frames * batch * pixels, out), contiguous.
            run: the pass.
        """
        shape = run.frames, run.batch, len(x) // (run.frames * run.batch)
        # Not in the place of `rows`: the last vector of columns may overlap the one before.
        out = torch.empty_like(rows)
        self._multiply(x, rows, rows.shape[1], out, shape, gates, run.workspace)
        return out

    def _multiply(
        self,
        x: Tensor,
        start: Tensor,
        start_row: int,
        out: Tensor,
        shape: tuple[int, int, int],
        gates: Tensor | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        a = _PixelsArguments(start_row=start_row, depth=self._depth, columns=self._columns)
        a.frames, a.batch, a.cells = shape
        a.threads = torch.get_num_threads()
        a.activation = self._activation
        tensors = {"x": x, "matrix": self.matrix, "start": start, "out": out}
        if gates is not None:
            assert workspace is not None
            tensors["gates"] = gates.contiguous()
            a.by_frame = len(gates) > a.batch
            tensors["scratch"] = workspace.take("scratch", x, (a.threads, self.matrix.numel()))
        _set(a, tensors)
        self.library.pixels(a)


def _matrix(library: Library, block: Pointwise) -> Tensor:
    """Return a block's matrix as a library wants it; not a second time if it is there."""
    product = block.keep(MatrixKernel, lambda: kernel(MatrixKernel, block))
    if product is not None and product.library.lanes == library.lanes:
        return product.matrix
    return laid_out(block.weight, library.lanes)


class ClipKernel:
    """Expands and convolves the clips of one bottleneck.

    Args:
        library: the C++.
        layer: one that it `fits`.
    """

    def __init__(self, library: Library, layer: Layer) -> None:
        conv, expansion = layer.depthwise, layer.expansion
        assert expansion.constant is not None
        assert conv.constant is not None
        self._library = library
        self._conv = conv
        # Named here, because the C++ sees addresses only.
        self._tensors = {
            "expansion": _matrix(library, expansion),
            "expansion_bias": expansion.constant.contiguous(),
            "cells": torch.stack(conv.cells),
            "bias": conv.constant.contiguous(),
        }
        arguments = _ClipArguments(taps=1 if conv.splits else conv.taps)
        if conv.splits:
            assert conv.temporal_matrix is not None
            assert conv.temporal_constant is not None
            self._tensors["mix"] = conv.temporal_matrix.contiguous()
            self._tensors["mix_bias"] = conv.temporal_constant.contiguous()
            arguments.mixes = conv.taps
        _set(arguments, self._tensors)
        arguments.channels, arguments.inputs = expansion.weight.shape
        arguments.activation = _ACTIVATIONS[conv.activation_name]
        self._arguments = bytes(arguments)

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
            and max(conv.kernel) <= HIGHEST_KERNEL
            and max(conv.stride) <= 2
            and conv.taps <= MOST_TAPS
        )

    def __call__(self, x: Tensor, run: Run) -> tuple[Tensor, Tensor]:
        """Return the activations, and their means over space, (frames * batch, channels).

        The frames for the next clip go to `run`.

        Args:
            x: (frames * batch, height, width, channels), contiguous, before the expansion.
            run: the pass.
        """
        conv = self._conv
        numbers = geometry(conv, *x.shape[1:3])
        a = _ClipArguments.from_buffer_copy(self._arguments)
        a.geometry = _Geometry(**numbers)
        a.frames, a.batch = run.frames, run.batch
        a.before, _ = same_padding(run.frames, a.taps, 1)
        a.threads = torch.get_num_threads()
        (a.strips, a.segments, a.blocks), a.room = cut_for(
            *(a.frames, a.batch, a.inputs, a.channels, a.taps, a.mixes),
            *(tuple(numbers.values()), self._library.lanes, a.threads),
        )
        shape = numbers["out_height"], numbers["out_width"], a.channels
        out = run.workspace.take("mixed", x, (len(x), *shape))
        sums = run.workspace.take("sums", x, (a.strips, len(x), a.channels))
        scratch = run.workspace.take("scratch", x, (a.threads, a.room))
        _set(a, {"x": x, "out": out, "sums": sums, "scratch": scratch})
        if conv.splits:
            assert run.state is not None
            held = [frame.contiguous() for frame in run.state.frames[conv.key]]
            kept = [x.new_empty(run.batch, *shape) for _ in range(min(run.frames, len(held)))]
            a.held[: len(held)] = [frame.data_ptr() for frame in held]
            # The C++ names them by how long before the end of the clip they are.
            a.kept[len(held) - len(kept) : len(held)] = [frame.data_ptr() for frame in kept]
            run.new_frames[conv.key] = (*held, *kept)[-len(held) :]
        self._library.clip(a)
        return out, sums[0]


class FrameKernel:
    """Computes one new frame of one video in one bottleneck.

    Args:
        library: the C++.
        layer: one that it `fits`.
    """

    def __init__(self, library: Library, layer: Layer) -> None:
        conv, gate = layer.depthwise, layer.gate
        assert layer.expansion.constant is not None
        assert conv.constant is not None
        self._library = library
        self._name = layer.name
        self._conv = conv
        self._tensors = {
            "expansion": _matrix(library, layer.expansion),
            "expansion_bias": layer.expansion.constant.contiguous(),
            "cells": conv.cells[0],
            "bias": conv.constant.contiguous(),
            "projection": laid_out(layer.project.weight, library.lanes),
        }
        a = _FrameArguments(outputs=len(layer.project.weight))
        a.channels, a.inputs = layer.expansion.weight.shape
        if conv.splits:
            assert conv.temporal_matrix is not None
            assert conv.temporal_constant is not None
            self._tensors["taps"] = conv.temporal_matrix.contiguous()
            self._tensors["temporal_bias"] = conv.temporal_constant.contiguous()
            a.frames = conv.taps - 1
        self._pools = self._encodes = False
        if gate is not None:
            self._tensors.update(gate_tensors(gate, library.lanes))
            a.hidden, a.squeezed = gate.reduce.weight.shape
            a.spatial, a.whole = gate.spatial, gate.whole
            a.limit = -1.0 if gate.limit is None else gate.limit
            self._pools, self._encodes = gate.whole, gate.scale is not None
        _set(a, self._tensors)
        self._arguments = bytes(a)
        self._sizes: dict[tuple[int, ...], bytes] = {}

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

    def _for_size(self, size: tuple[int, ...]) -> bytes:
        known = self._sizes.get(size)
        if known is None:
            if len(self._sizes) >= _SIZES:
                self._sizes.clear()
            a = _FrameArguments.from_buffer_copy(self._arguments)
            a.geometry = _Geometry(**geometry(self._conv, *size))
            known = self._sizes[size] = bytes(a)
        return known

    def __call__(self, x: Tensor, residual: Tensor, run: Run) -> Tensor:
        """Return what the layer hands on, as `movinet_port.fast.backends.operations.Staged` does.

        Args:
            x: (1, height, width, channels), contiguous.
            residual: (pixels, out channels), contiguous.
            run: the pass, of one frame of one video.
        """
        a = _FrameArguments.from_buffer_copy(self._for_size(tuple(x.shape[1:3])))
        state = run.state
        assert state is not None
        height, width = a.geometry.out_height, a.geometry.out_width
        out = x.new_empty(1, height, width, a.outputs)
        a.x, a.residual, a.out = x.data_ptr(), residual.data_ptr(), out.data_ptr()
        if a.frames:
            held = [frame.contiguous() for frame in state.frames[self._conv.key]]
            mixed = x.new_empty(1, height, width, a.channels)
            a.mixed = mixed.data_ptr()
            for number, frame in enumerate(held):
                a.held[number] = frame.data_ptr()
            run.new_frames[self._conv.key] = (*held, mixed)[1:]
        if self._pools:
            pool = state.pools[self._name].contiguous()
            total = run.new_pools[self._name] = torch.empty_like(pool)
            a.pool, a.total, a.part = pool.data_ptr(), total.data_ptr(), run.part_now.data_ptr()
        if self._encodes:
            a.wave = run.waves[self._name].data_ptr()
        self._library.frame(a)
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
    space = _Geometry(height, width, *out_size, 3, 3, 2, 2, top, left)
    a = _PoolArguments(space, frames, channels, torch.get_num_threads())
    a.x, a.out = x.data_ptr(), out.data_ptr()
    library.pool(a)
    return out
