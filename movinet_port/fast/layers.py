"""What the inference network is made of: each a piece of a readable one, folded.

Between layers a clip is (frames * batch, height, width, channels), contiguous, so that a 1 x 1
convolution is one matrix product and a frame is one piece of memory.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from movinet_port.fast import extension
from movinet_port.fast.extension import ClipKernel, FrameKernel, MatrixKernel, StemKernel
from movinet_port.fast.fold import FoldedConv, FoldedGate, FoldedLayer, Matrix
from movinet_port.fast.run import Run
from movinet_port.layers import legacy_padding, same_padding
from movinet_port.spec import ModelSpec


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

# From so many multiplications and additions on, oneDNN's matrix product is faster than MKL's, which
# costs less per call.
HEAVY = 6_000_000
# And so it is for weights that come from memory and not from a cache.
MANY_WEIGHTS = 120_000
# From so many pixels on, its convolution is faster than PyTorch's average pool.
MANY_POOLED = 7000

# For a compiler: the most that a strip of an expanded frame takes, so that it stays in a core's
# cache while it is padded and convolved. What is larger and cannot be cut up is convolved by
# oneDNN, which needs no padded copy.
STRIP_BYTES = 640 << 10

# The most that a piece of a clip's expanded frames takes.
CACHED_BYTES = 8 << 20

# What the functions of `torch.nn.functional` call. A single frame has 60 activations, so small that
# the functions around them count.
_IN_PLACE: dict[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = {
    hard_swish: torch._C._nn.hardswish_,
    swish: torch._C._nn.silu_,
}
_WRITING: dict[Callable[[Tensor], Tensor], Callable[..., Tensor]] = {
    hard_swish: torch._C._nn.hardswish,
    swish: torch._C._nn.silu,
}


def in_place(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the same activation at less cost per call, not for a compiler."""
    return _IN_PLACE.get(activation, activation)


def activate(activation: Callable[[Tensor], Tensor], x: Tensor, out: Tensor) -> Tensor:
    """Write an activation of `x` to `out`, and return it."""
    write = _WRITING.get(activation)
    return activation(out.copy_(x)) if write is None else write(x, out=out)


# What oneDNN calls the activations that cost it less, together with a matrix product, than PyTorch
# afterwards.
_FUSED = {"hard_swish": "hardswish", "relu": "relu"}


# Without VNNI two products of 8-bit numbers are added up in 16 bits, which they may exceed: then
# activations are quantised to 7 bits.
_SATURATES = not getattr(torch.cpu, "_is_vnni_supported", lambda: False)()

# Attributes that `FoldedModule.prepare` makes.
_DERIVED = (
    *("packed", "laid_out", "layouts", "volumes", "unpadded", "matrices", "steps"),
    *("product", "stem_kernel", "clip_kernel", "frame_kernel"),
)


class FoldedModule(nn.Module):
    """A piece of the network whose tensors are buffers, and plain attributes to compute with.

    Finding a buffer through `torch.nn.Module` takes as long as a small operation does.
    """

    def store(self, **tensors: Tensor | None) -> None:
        """Keep tensors as buffers."""
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def prepare(self) -> None:
        """Set the plain attributes, after construction and whenever the buffers were replaced."""

    def __getstate__(self) -> dict[str, Any]:
        # What oneDNN laid out for itself can be neither copied nor pickled.
        return {name: v for name, v in self.__dict__.items() if name not in _DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.prepare()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FoldedModule:
        super()._apply(fn, recurse)
        self.prepare()
        return self


class Pointwise(FoldedModule):
    """A 1 x 1 convolution, and the activation right behind it."""

    def __init__(self, matrix: Matrix, activation: str | None = None) -> None:
        super().__init__()
        self.store(weight=matrix.weight.contiguous(), bias=matrix.bias)
        self.activation_name = activation
        self.activation = _ACTIVATIONS[activation] if activation else None
        self.fused = _FUSED.get(activation or "", "none")
        self.quantized = False
        self.prepare()

    def prepare(self) -> None:
        """Transpose the weight, or quantise it."""
        weight = self._buffers["weight"]
        assert weight is not None
        self.weight = weight
        self.matrix = weight.t()
        self.laid_out: Tensor | None = None
        self.from_rows = 1 if weight.numel() >= MANY_WEIGHTS else rows_for_onednn(weight)
        self.constant = self._buffers["bias"]
        self.packed = _quantise(weight, self.constant) if self.quantized else None
        self.product = extension.kernel(MatrixKernel, self)

    def forward(self, x: Tensor) -> Tensor:
        """Return a new tensor, (rows, out channels), of (rows, in channels)."""
        if self.packed is not None:
            y = torch.ops.quantized.linear_dynamic(x, self.packed, _SATURATES)
            return y if self.activation is None else self.activation(y)
        if self.product is not None and not torch.compiler.is_compiling():
            return self.product(x)
        if x.shape[0] == 1 and torch.compiler.is_compiling():
            # One vector: a compiler fuses the sum with what is around it.
            y = (x * self.weight).sum(1)[None]
            y = y if self.constant is None else y + self.constant
        elif x.shape[0] >= self.from_rows and fuses(x):
            if self.laid_out is None:
                self.laid_out = torch.ops.mkldnn._reorder_linear_weight(self.weight, x.shape[0])
            linear = torch.ops.mkldnn._linear_pointwise
            y = linear(x, self.laid_out, self.constant, self.fused, [], "")
            if self.fused != "none":
                return y
        elif self.constant is None:
            y = torch.mm(x, self.matrix)
        else:
            y = torch.addmm(self.constant, x, self.matrix)
        return y if self.activation is None else self.activation(y)


def rows_for_onednn(weight: Tensor) -> int:
    """Return from how many rows on a product with this matrix is oneDNN's."""
    return math.ceil(HEAVY / (2 * weight.numel()))


def _quantise(weight: Tensor, bias: Tensor | None) -> Any:
    """Return an 8-bit weight, one scale per output channel, for products of 8-bit numbers."""
    scales = (weight.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny).double()
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    with warnings.catch_warnings():
        # Announced to go; what replaces it has no dynamic product yet.
        warnings.simplefilter("ignore", UserWarning)
        quantised = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(quantised, bias)


# Kernels for each tap, whether oneDNN has laid them out, equal padding of height and width.
_Spatial: TypeAlias = tuple[list[Tensor], bool, tuple[int, int]]


class StreamConv(FoldedModule):
    """A convolution over space and, split off or not, over frames."""

    def __init__(self, name: str, key: str, folded: FoldedConv, spec: ModelSpec) -> None:
        super().__init__()
        self.name = name  # of its taps
        self.key = key  # of its held frames
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
        spatial, temporal = self._buffers["spatial"], self._buffers["temporal"]
        assert spatial is not None
        self.kernels = spatial.unbind(0)
        # Channels together, for a compiler to read many at once: (height, width, channels).
        self.cells = [kernel[:, 0].permute(1, 2, 0).contiguous() for kernel in self.kernels]
        self.spatial_out = spatial.shape[1]
        self.constant = self._buffers["bias"]
        self.temporal_matrix = temporal
        self.temporal_taps = () if temporal is None else temporal.unbind(0)
        self.temporal_constant = self._buffers["temporal_bias"]
        self.layouts: dict[tuple[int, int], _Spatial] = {}
        self.volumes: dict[tuple[int, int], Tensor] = {}
        self.unpadded: Tensor | None = None
        self.stem_kernel = extension.kernel(StemKernel, self)

    def forward(self, x: Tensor, run: Run) -> Tensor:
        """Return the activations of the clip; the frames for the next one go to `run`.

        Args:
            x: (frames * batch, height, width, channels), and so is what is returned.
            run: the pass.
        """
        if not self.splits:
            x = self.over_space(self._windows(x, run), run)
            return x if run.tap is None else run.show(f"{self.name}.activation", x)
        x = self.over_space([(x, 0)], run)
        if run.tap is not None:
            x = run.show(f"{self.name}.activation", x)
        return self.over_time(x, run)

    def of_video(self, x: Tensor, run: Run) -> Tensor:
        """Return what `forward` does, of frames as they come: not turned, channels apart."""
        if self.stem_kernel is not None and extension.takes(x) and not run.traced:
            x = self.stem_kernel(x, run.workspace)
            return x if run.tap is None else run.show(f"{self.name}.activation", x)
        if self.splits or self.groups * self.taps > 1 or len(x) == 1 or not fuses(x):
            return self.forward(x.flip(1, 2) if self.turned else x, run)
        x = self._frame_by_frame(x, run)
        return x if run.tap is None else run.show(f"{self.name}.activation", x)

    def over_time(self, x: Tensor, run: Run) -> Tensor:
        """Return the split-off temporal convolution's activations; all else as in `forward`."""
        x = self.over_frames(self._windows(x, run), run)
        return x if run.tap is None else run.show(f"{self.name}.temporal_activation", x)

    def in_pieces(
        self, x: Tensor, expand: Callable[[Tensor], Tensor], run: Run, size: int
    ) -> tuple[Tensor, Tensor | None]:
        """Expand and convolve a whole clip, so many frames at a time that they stay in a cache.

        Args:
            x: (frames * batch, height, width, channels), before the expansion.
            expand: the expansion of (rows, channels).
            run: the pass.
            size: frames in a piece.

        Returns:
            The activations of the clip, and their means over space, (frames * batch, channels), if
            no convolution over frames is to follow.
        """
        batch, frames = run.batch, run.frames
        around = 0 if self.splits else self.taps // 2

        def expanded(first: int, last: int) -> Tensor:
            piece = x[first * batch : last * batch]
            return expand(piece.view(-1, x.shape[3])).view(*piece.shape[:3], -1)

        if size >= frames:
            mixed = self._over_frames(expanded(0, frames), run, around)
            y = in_place(self.activation)(mixed.flatten(0, 1).contiguous())
            return y, None if self.splits else y.flatten(1, 2).mean(1, dtype=run.dtype)
        clip = (frames, batch, *self.out_size(*x.shape[1:3]), self.spatial_out)
        y = run.workspace.take("mixed", x, clip)
        means = []
        unfinished: Tensor | None = None
        finished = 0
        for first in range(0, frames, size):
            last = min(first + size, frames)
            # What the piece adds to every frame that sees one of its frames.
            part = self._over_frames(expanded(first, last), run, 2 * around)
            start = first - around
            if unfinished is not None:
                part[: 2 * around] += unfinished
            complete = frames if last == frames else max(finished, last - around)
            if complete > finished:
                done = y[finished:complete]
                activate(self.activation, part[finished - start : complete - start], done)
                if not self.splits:
                    means.append(done.flatten(2, 3).mean(2, dtype=run.dtype).flatten(0, 1))
                finished = complete
            if around and last < frames:
                # The next piece brings the bias along.
                assert self.constant is not None
                unfinished = part[last - first :] - self.constant
        return y.flatten(0, 1), torch.cat(means) if means else None

    def _over_frames(self, x: Tensor, run: Run, padding: int) -> Tensor:
        """Convolve over space and frames.

        Args:
            x: (frames * batch, height, width, channels).
            run: the pass.
            padding: frames of nothing before the first and after the last.

        Returns:
            (frames + 2 * padding - taps + 1, batch, height, width, channels).
        """
        kernels, packed, around = self.layout(*x.shape[1:3])
        if packed and HAS_VOLUMES:
            found = torch.ops.mkldnn._convolution_pointwise(
                x.unflatten(0, (-1, run.batch)).permute(1, 4, 0, 2, 3),
                self._volume(*x.shape[1:3]),
                self.constant,
                (padding, *around),
                (1, *self.stride),
                (1, 1, 1),
                self.groups,
                "none",
                [],
                "",
            )
            volume: Tensor = found.permute(2, 0, 3, 4, 1)
            return volume
        assert self.constant is not None
        size = self.out_size(*x.shape[1:3])
        frames = len(x) + (2 * padding - len(kernels) + 1) * run.batch
        y = self.constant.expand(frames, *size, -1).contiguous()
        for tap, kernel in enumerate(kernels):
            # The first frame of `y` that this tap adds to, which may lie before it.
            first = (padding - tap) * run.batch
            seen = x[max(0, -first) : frames - first]
            part = y[max(0, first) : max(0, first) + len(seen)]
            self._accumulate(part, seen, kernel, packed, around)
        return y.unflatten(0, (-1, run.batch))

    def _frame_by_frame(self, x: Tensor, run: Run) -> Tensor:
        """Convolve frames of a video, whose channels are apart, some at a time.

        oneDNN wants channels together. That copy pads too, so the kernel need not grow.
        """
        height, width, channels = x.shape[1:]
        (top, bottom), (left, right) = self.pads(height, width)
        padded = top + height + bottom, left + width + right
        size = max(1, CACHED_BYTES // 2 // (x[0].numel() * x.element_size()))
        piece = x.new_zeros(min(size, len(x)), *padded, channels)
        inside = piece[:, top : top + height, left : left + width]
        if self.unpadded is None:
            self.unpadded = pack(self.kernels[0], self.stride, self.groups)
        y = run.workspace.take("stem", x, (len(x), *self.out_size(height, width), self.spatial_out))
        for seen, out in zip(x.split(size), y.split(size), strict=True):
            inside[: len(seen)].copy_(seen.flip(1, 2) if self.turned else seen)
            found = torch.ops.mkldnn._convolution_pointwise(
                piece[: len(seen)].permute(0, 3, 1, 2),
                self.unpadded,
                self.constant,
                (0, 0),
                self.stride,
                (1, 1),
                self.groups,
                "none",
                [],
                "",
            )
            activate(self.activation, found.permute(0, 2, 3, 1), out)
        return y

    def _windows(self, x: Tensor, run: Run) -> list[tuple[Tensor, int]]:
        """Return for each temporal tap the frames it reads, and the first frame it reads them for.

        Frames outside the video are in no window, because they add nothing.
        """
        batch, taps = run.batch, self.taps
        if taps == 1:
            return [(x, 0)]
        if self.causal:
            assert run.state is not None
            held = run.state.frames[self.key]
            if run.frames == 1:
                sequence = (*held, x)
                run.new_frames[self.key] = sequence[1:]
                return [(frame, 0) for frame in sequence]
            joined = torch.cat([*held, x])
            # Copies, because a view would keep the whole clip alive until the next one.
            last = joined[-(taps - 1) * batch :].clone()
            run.new_frames[self.key] = last.split(batch)
            return [(joined[tap * batch : (tap + run.frames) * batch], 0) for tap in range(taps)]
        before, _ = same_padding(run.frames, taps, 1)
        windows = []
        for tap in range(taps):
            shift = tap - before
            start, stop = max(0, -shift), min(run.frames, run.frames - shift)
            part = x[(start + shift) * batch : max(stop + shift, start + shift) * batch]
            windows.append((part, start * batch))
        return windows

    def _full(self, windows: Sequence[tuple[Tensor, int]], run: Run) -> int:
        """Return a tap that reads something for every frame."""
        rows = run.frames * run.batch
        return next(tap for tap, (x, _) in enumerate(windows) if x.shape[0] == rows)

    def over_space(self, windows: Sequence[tuple[Tensor, int]], run: Run) -> Tensor:
        """Return the activation of what all taps add up to."""
        if run.traced:
            return self._traced(windows)
        full = self._full(windows, run)
        x = windows[full][0]
        kernels, packed, padding = self.layout(*x.shape[1:3])
        stride, groups = self.stride, self.groups
        planes = x.permute(0, 3, 1, 2)
        if packed:
            y = torch.ops.mkldnn._convolution_pointwise(
                planes,
                kernels[full],
                self.constant,
                padding,
                stride,
                (1, 1),
                groups,
                "none",
                [],
                "",
            )
        else:
            y = F.conv2d(planes, kernels[full], self.constant, stride, padding, 1, groups)
        y = y.permute(0, 2, 3, 1).contiguous()
        for tap, (x, first) in enumerate(windows):
            if tap == full or not x.shape[0]:
                continue
            part, kernel = y[first : first + x.shape[0]], kernels[tap]
            self._accumulate(part, x, kernel, packed, padding)
        return self.activation(y)

    def _accumulate(
        self,
        y: Tensor,
        x: Tensor,
        kernel: Tensor,
        packed: bool,
        padding: tuple[int, int],
    ) -> None:
        """Add to `y` the frames `x`, convolved."""
        planes, sums = x.permute(0, 3, 1, 2), y.permute(0, 3, 1, 2)
        if packed:
            torch.ops.mkldnn._convolution_pointwise_(
                sums,
                planes,
                kernel,
                None,
                padding,
                self.stride,
                (1, 1),
                self.groups,
                "add",
                1.0,
                None,
                [],
                None,
            )
        else:
            sums += F.conv2d(planes, kernel, None, self.stride, padding, 1, self.groups)

    def in_strips(self, x: Tensor, expand: Callable[[Tensor], Tensor], run: Run) -> Tensor:
        """Expand and convolve one frame for a compiler, strip by strip.

        Args:
            x: (1, height, width, channels), before the expansion.
            expand: the expansion of (rows, channels).
            run: the pass.

        Returns:
            The activations, as `forward` does.
        """
        height, width = x.shape[1:3]
        (top, _), (left, right) = self.pads(height, width)
        out, _ = self.out_size(height, width)
        count = min(-(-self.expanded_bytes(x) // STRIP_BYTES), out)
        constant = self.constant
        assert constant is not None
        bounds = [out * i // count for i in range(count + 1)]
        strips = []
        for start, stop in itertools.pairwise(bounds):
            # The rows that these rows of the output see, of which some are outside the frame.
            first = start * self.stride[0] - top
            last = (stop - 1) * self.stride[0] - top + self.kernel[0]
            seen = x[:, max(first, 0) : min(last, height)]
            hidden = expand(seen.reshape(-1, x.shape[3])).view(*seen.shape[:3], -1)
            outside = max(-first, 0), max(last - height, 0)
            padded = F.pad(hidden, (0, 0, left, right, *outside))
            strips.append(self.activation(constant + self._slices(padded, 0)))
        y = torch.cat(strips, 1)
        return self.over_time(y, run) if self.splits else y

    def expanded_bytes(self, x: Tensor) -> int:
        """Return what one frame takes when it is expanded, (frames, height, width, channels)."""
        return x.shape[1] * x.shape[2] * self.spatial_out * x.element_size()

    def _traced(self, windows: Sequence[tuple[Tensor, int]]) -> Tensor:
        """Compute `over_space` so that a compiler can fuse it with what is around it."""
        height, width = windows[0][0].shape[1:3]
        (top, bottom), (left, right) = self.pads(height, width)
        kernels, _, padding = self._layout(height, width)
        frames = max(x.shape[0] for x, _ in windows)
        total: Tensor | None = self.constant
        assert total is not None
        for tap, (x, first) in enumerate(windows):
            if not x.shape[0]:
                continue
            if self.groups == 1 or x.numel() * x.element_size() > STRIP_BYTES:
                kernel = kernels[tap].contiguous(memory_format=torch.channels_last)
                planes = x.permute(0, 3, 1, 2)
                part = F.conv2d(planes, kernel, None, self.stride, padding, 1, self.groups)
                part = part.permute(0, 2, 3, 1)
            else:
                part = self._slices(F.pad(x, (0, 0, left, right, top, bottom)), tap)
            if x.shape[0] < frames:
                # Nothing from the frames outside the clip.
                part = F.pad(part, (0, 0, 0, 0, 0, 0, first, frames - first - x.shape[0]))
            total = total + part
        return self.activation(total)

    def _slices(self, padded: Tensor, tap: int) -> Tensor:
        """Return a depthwise convolution, without bias, as a sum of slices of padded frames."""
        total: Tensor | None = None
        for row, column in itertools.product(*map(range, self.kernel)):
            seen = padded[
                :,
                _every(row, padded.shape[1], self.kernel[0], self.stride[0]),
                _every(column, padded.shape[2], self.kernel[1], self.stride[1]),
            ]
            term = seen * self.cells[tap][row, column]
            total = term if total is None else total + term
        assert total is not None
        return total

    def layout(self, height: int, width: int) -> _Spatial:
        """Return how to convolve frames of this size."""
        size = height, width
        layout = self.layouts.get(size)
        if layout is None:
            layout = self.layouts[size] = self._layout(*size)
        return layout

    @property
    def in_plane(self) -> bool:
        """Whether frames meet in a depthwise convolution of their own, or not at all."""
        return self.depthwise if self.splits else self.taps == 1

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of what frames of this size become."""
        (top, bottom), (left, right) = self.pads(height, width)
        padded = height + top + bottom, width + left + right
        rows, columns = (
            (n - kernel) // stride + 1
            for n, kernel, stride in zip(padded, self.kernel, self.stride, strict=True)
        )
        return rows, columns

    def _layout(self, height: int, width: int) -> _Spatial:
        kernels = [self._grown(kernel, height, width) for kernel in self.kernels]
        packs = fuses(kernels[0])
        if packs:
            kernels = [pack(kernel, self.stride, self.groups) for kernel in kernels]
        vertical, horizontal = self.pads(height, width)
        return kernels, packs, (max(vertical), max(horizontal))

    def _volume(self, height: int, width: int) -> Tensor:
        """Return all taps as one kernel, over frames and space, as oneDNN wants it."""
        size = height, width
        volume = self.volumes.get(size)
        if volume is None:
            taps = torch.stack([self._grown(kernel, *size) for kernel in self.kernels], 2)
            volume = self.volumes[size] = pack(taps, (1, *self.stride), self.groups)
        return volume

    def _grown(self, kernel: Tensor, height: int, width: int) -> Tensor:
        # Where SAME pads one cell more after than before, a zero in front of the kernel and equal
        # padding do the same, without a padded copy of the input. Of turned frames it pads more
        # before than after, and what equal padding adds no kernel reaches.
        (top, bottom), (left, right) = self.pads(height, width)
        return F.pad(kernel, (max(0, right - left), 0, max(0, bottom - top), 0))

    def pads(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the cells before and after the height, and the width, of frames of this size."""
        if self.legacy:
            return legacy_padding(self.kernel[0]), legacy_padding(self.kernel[1])
        top, bottom = same_padding(height, self.kernel[0], self.stride[0])
        left, right = same_padding(width, self.kernel[1], self.stride[1])
        return ((bottom, top), (right, left)) if self.turned else ((top, bottom), (left, right))

    def over_frames(self, windows: Sequence[tuple[Tensor, int]], run: Run) -> Tensor:
        """Return the activation of the split-off convolution over frames."""
        full = self._full(windows, run)
        x = windows[full][0]
        taps = self.temporal_taps
        if self.depthwise:
            assert self.temporal_constant is not None
            y = torch.addcmul(self.temporal_constant, x, taps[full])
        else:
            y = F.linear(x, taps[full], self.temporal_constant)
        for tap, (x, first) in enumerate(windows):
            rows = x.shape[0]
            if tap == full or not rows:
                continue
            part = y if rows == y.shape[0] else y[first : first + rows]
            if self.depthwise:
                part.addcmul_(x, taps[tap])
            else:
                part += F.linear(x, taps[tap])
        return self.activation(y)


def fuses(x: Tensor) -> bool:
    """Whether oneDNN's fused operations take this tensor."""
    return (
        _HAS_FUSED
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
    )


_HAS_FUSED = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_convolution_pointwise_"
)


# Whether oneDNN has a depthwise convolution over frames and space. Elsewhere it would copy every
# window, to multiply matrices.
HAS_VOLUMES = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _every(first: int, size: int, kernel: int, stride: int) -> slice:
    """Return the cells of a padded axis that one cell of the kernel sees."""
    return slice(first, first + (size - kernel) // stride * stride + 1, stride)


def pack(kernel: Tensor, stride: tuple[int, ...], groups: int) -> Tensor:
    """Return the kernel as oneDNN wants it, for inputs of any size though one is named."""
    axes = len(stride)
    padding = [size // 2 for size in kernel.shape[2:]]
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        kernel, padding, stride, [1] * axes, groups, [1, kernel.shape[1] * groups, *[32] * axes]
    )
    return packed


class Gate(FoldedModule):
    """A squeeze-excitation up to its gate."""

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
        """Reach for the modules inside."""
        self.scale = self._buffers["encoding"]
        self.matrices = (self.reduce.forward, self.expand.forward)

    def forward(self, x: Tensor, run: Run, means: Tensor | None = None) -> Tensor:
        """Return the gates: (frames * batch, channels), or (batch, channels) for all frames.

        Args:
            x: (frames * batch * height * width, channels).
            run: the pass.
            means: over space, (frames * batch, channels), if they are known.
        """
        frames = run.frames * run.batch
        dtype = run.dtype
        if means is not None:
            pass
        elif frames == 1:
            means = x.mean(0, True, dtype=dtype)
        else:
            means = x.view(frames, -1, x.shape[1]).mean(1, dtype=dtype)
        narrow = x.dtype != dtype
        if self.spatial and (narrow or run.tap is not None):
            spatial = run.show_vector(f"{self.name}.spatial_pool", means.to(x.dtype))
            means = spatial.to(dtype)
        value = means
        if self.whole:
            value = self._over_time(means, run)
            if narrow or run.tap is not None:
                value = run.show_vector(f"{self.name}.temporal_pool", value.to(x.dtype)).to(dtype)
            if self.spatial:
                if value.shape[0] != frames:
                    value = value.repeat(run.frames, 1)
                value = torch.cat((value, means), 1)
        if narrow:
            value = value.to(x.dtype)
        if self.scale is not None:
            value = value + run.waves[self.layer]
            value = run.show_vector(f"{self.name}.positional_encoding", value)
        reduce, expand = self.matrices
        if run.tap is None:
            gate = expand(reduce(value))
        else:
            hidden = run.show_vector(f"{self.name}.reduce.activation", reduce(value))
            gate = expand(hidden)
        gate = gate.sigmoid_() if self.limit is None else gate.clamp_(0.0, self.limit)
        return run.show_vector(f"{self.name}.expand.activation", gate)

    def _over_time(self, means: Tensor, run: Run) -> Tensor:
        if not self.causal:
            return means if run.frames == 1 else means.unflatten(0, (-1, run.batch)).mean(0)
        assert run.state is not None
        before = run.state.pools[self.layer]
        if run.frames == 1:
            total = run.new_pools[self.layer] = before + means
            return total * run.part_now
        totals = means.unflatten(0, (-1, run.batch)).cumsum(0) + before
        run.new_pools[self.layer] = totals[-1].clone()
        return (totals * run.part).flatten(0, 1)


class Layer(FoldedModule):
    """A bottleneck."""

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
        self.pools = folded.depthwise.stride != (1, 1)
        self.offset: Tensor
        self.offset_before: Tensor
        # Nothing is computed with the offsets: they say what the true values are.
        self.store(
            offset=folded.offset,
            offset_before=offset_before,
        )
        self.prepare()

    def prepare(self) -> None:
        """Reach for the modules inside."""
        self.steps = (
            self.expansion.forward,
            self.depthwise.forward,
            None if self.gate is None else self.gate.forward,
        )
        self.clip_kernel = extension.kernel(ClipKernel, self)
        self.frame_kernel = extension.kernel(FrameKernel, self)

    def forward(self, x: Tensor, run: Run) -> Tensor:
        """Return the output less `offset`; `x`, the input less its own, is overwritten.

        Args:
            x: (frames * batch, height, width, channels), and so is what is returned.
            run: the pass.
        """
        if run.kernels is not None and run.kernels.takes(self, x, run):
            return run.kernels.compute(self, x, self._residual(x, run), run)
        unseen = run.tap is None and not run.traced
        if unseen and run.alone and self.frame_kernel is not None:
            return self.frame_kernel(x, self._residual(x, run), run)
        expand, depthwise, gate_of = self.steps
        means: Tensor | None = None
        size = self._piece(x, run)
        if unseen and self.clip_kernel is not None:
            hidden, means = self.clip_kernel(x, run)
        elif size is not None:
            hidden, means = self.depthwise.in_pieces(x, expand, run, size)
            if self.depthwise.splits:
                hidden = self.depthwise.over_time(hidden, run)
        elif self._strips(x, run):
            hidden = self.depthwise.in_strips(x, expand, run)
        else:
            hidden = expand(x.view(-1, x.shape[3])).view(*x.shape[:3], -1)
            if run.tap is not None:
                hidden = run.show(f"{self.name}.expansion.activation", hidden)
            hidden = depthwise(hidden, run)
        shape = hidden.shape
        hidden = hidden.view(-1, shape[3])
        rows = self._residual(x, run)
        weight = self.project.weight
        gate = None if gate_of is None else gate_of(hidden, run, means)
        if self.project.product is not None and not run.traced:
            y = self.project.product.add(hidden, gate, rows, run).view(*shape[:3], -1)
            return y if run.tap is None else run.show(self.name, y, self.offset)
        if gate is not None:
            if run.traced and gate.shape[0] == 1:
                hidden = hidden * gate
            elif gate.shape[0] == 1 and not self.project.quantized:
                # One gate for all there is: the matrix is smaller than the activations.
                weight = weight * gate
            else:
                # (frames or 1, batch, pixels, channels)
                apart = hidden.view(-1, gate.shape[0], shape[1] * shape[2], shape[3])
                apart.mul_(gate[:, None, :])
        if self.project.quantized:
            y = rows.add_(self.project.forward(hidden))
        elif run.traced:
            y = torch.mm(hidden, weight.t()) + rows
        elif rows.shape[0] >= self.project.from_rows and fuses(rows):
            y = torch.ops.mkldnn._linear_pointwise.binary(hidden, rows, weight, None, "add")
        else:
            y = rows.addmm_(hidden, weight.t())
        y = y.view(*shape[:3], -1)
        return y if run.tap is None else run.show(self.name, y, self.offset)

    def _residual(self, x: Tensor, run: Run) -> Tensor:
        """Return what the projection is added to, (frames * batch * pixels, out channels).

        It may be written over: it is `x`, or it is new.
        """
        if self.skip is not None:
            if self.pools:
                x = average_pool(x, run.turned)
                if run.tap is not None:
                    x = run.show(f"{self.name}.skip.pool", x, self.offset_before)
            found: Tensor = self.skip.forward(x.view(-1, x.shape[3]))
            return found
        return x.view(-1, x.shape[3])

    def _strips(self, x: Tensor, run: Run) -> bool:
        """Whether a compiler is given a frame in strips."""
        if not run.traced or x.shape[0] > 1:
            return False
        conv = self.depthwise
        return (conv.splits or conv.taps == 1) and conv.expanded_bytes(x) > STRIP_BYTES

    def _piece(self, x: Tensor, run: Run) -> int | None:
        """Return how many frames of a clip to take at once, or None if not in pieces."""
        if run.frames == 1 or run.tap is not None or run.traced or x.device.type != "cpu":
            return None
        conv = self.depthwise
        if not conv.splits and (conv.taps % 2 == 0 or (conv.causal and conv.taps > 1)):
            return None
        pieces = math.ceil(run.frames * run.batch * conv.expanded_bytes(x) / CACHED_BYTES)
        return math.ceil(run.frames / pieces)


def average_pool(x: Tensor, turned: bool = False) -> Tensor:
    """Average 3 x 3 pixels with stride 2, SAME; cells of the padding are not counted.

    Args:
        x: (frames, height, width, channels), and so is what is returned.
        turned: whether frames are turned by 180 degrees.
    """
    if not torch.compiler.is_compiling():
        (top, bottom), (left, right) = (same_padding(size, 3, 2) for size in x.shape[1:3])
        out_size = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
        pooled = extension.average_pool(x, out_size, *((bottom, right) if turned else (top, left)))
        if pooled is not None:
            return pooled
    if x.shape[:3].numel() >= MANY_POOLED and fuses(x):
        kernel, padding, share = _pooling(*x.shape[1:], turned)
        sums = torch.ops.mkldnn._convolution_pointwise(
            x.permute(0, 3, 1, 2), kernel, None, padding, (2, 2), (1, 1), x.shape[3], "none", [], ""
        )
        means: Tensor = sums.permute(0, 2, 3, 1).contiguous().mul_(share)
        return means
    # At even sizes SAME pads one side only: the end, where the pool's ceil mode goes over the edge,
    # or of turned frames the start.
    at_edge = (1, 1) if turned else (x.shape[1] % 2, x.shape[2] % 2)
    planes = x.permute(0, 3, 1, 2)
    y = F.avg_pool2d(planes, 3, 2, at_edge, ceil_mode=not turned, count_include_pad=False)
    return y.permute(0, 2, 3, 1).contiguous()


@functools.lru_cache(maxsize=64)
def _pooling(
    height: int, width: int, channels: int, turned: bool
) -> tuple[Tensor, tuple[int, int], Tensor]:
    """Return a kernel that sums up what a pool sees, its padding, and one over the cells seen."""
    (top, bottom), (left, right) = same_padding(height, 3, 2), same_padding(width, 3, 2)
    ones = torch.ones(channels, 1, 3, 3)
    if not turned:  # see StreamConv._grown
        ones = F.pad(ones, (right - left, 0, bottom - top, 0))
    cells = F.conv2d(torch.ones(1, 1, height, width), ones[:1], None, 2, (bottom, right))
    share = cells.reciprocal()[0, 0, :, :, None].repeat(1, 1, channels)
    return pack(ones, (2, 2), channels), (bottom, right), share
