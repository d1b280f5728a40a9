"""Logits of clips and videos too long to go through the network at once.

A stream network reads the video piece by piece and carries its state: memory does not depend on
the video's length. A base network is not made for that. Its temporal convolutions look at frames
on both sides, and each squeeze-excitation pools over the whole clip before it gates the first
frame, so no frame can pass a layer before all of them have reached it. Here the clip goes through
the network layer by layer, and through each layer piece by piece:

1. Expansion and depthwise convolution of a piece; the frames that the next piece's temporal
   kernel looks back at are carried over, and the output waits for those it looks ahead at. The
   sum for the squeeze-excitation's pool grows with each piece.
2. When the last piece has passed, the gate is known, and the pieces are gated, projected, added
   to the residual, and go on to the next layer.

Between 1 and 2 something must be kept of the whole clip, or made again: see `predict_clip`.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from movinet_port.errors import MovinetPortError, StateError
from movinet_port.layers import (
    Bottleneck,
    Conv,
    SqueezeExcitation,
    StreamConvBlock,
    at_least_float32,
    same_padding,
)
from movinet_port.model import MoViNet, _check_video

Frames = Tensor | Iterable[Tensor]


@torch.no_grad()
def predict_clip(
    model: MoViNet,
    frames: Frames,
    chunk: int = 8,
    *,
    recompute: bool = False,
    spill: str | os.PathLike[str] | None = None,
) -> Tensor:
    """Return the logits that ``model(frames)`` would return, in memory for `chunk` frames.

    The logits differ from those of a single call by the rounding of sums in another order.

    A stream network needs memory for `chunk` frames and its state, whatever the video's length.
    What it remembers between calls (`MoViNet.forward`) is neither used nor changed.

    A base network never holds the widest activations, an expansion's, for more than `chunk`
    frames and a temporal kernel's reach. What it does hold of the whole clip, for one or two
    layers at a time, is up to the caller:

    * by default the depthwise convolution's output (expanded width, output resolution) and the
      residual; every layer is computed once;
    * with `recompute` the layer's input only; expansion and depthwise convolution are
      computed twice, once to pool and once to gate;
    * with `spill` nothing: it is written to a temporary file, whose size is the above.

    Args:
        model: in evaluation mode, on any device.
        frames: (batch, 3, frames, height, width), RGB in [0, 1]; or an iterable of consecutive
            pieces of that shape, of one or more frames each, which is read once and never held
            as a whole. Pieces are moved to the network's device and dtype one by one.
        chunk: how many frames are computed at a time.
        recompute: whether a base network trades time for memory.
        spill: an existing folder for the temporary file. Base networks only.

    Returns:
        (batch, classes) logits.

    Raises:
        MovinetPortError: the network is in training mode, `chunk` is not positive, or the file
            cannot be written.
        StateError: there are no frames, or a piece has another shape than the one before.
    """
    if model.training:
        raise MovinetPortError(
            "predict_clip: the network is in training mode, where batch normalisation depends on "
            "how the clip is cut; call model.eval() first"
        )
    if type(chunk) is not int or chunk < 1:
        raise MovinetPortError(f"predict_clip: chunk is {chunk!r}, expected a number of frames")
    weight = model.stem.conv.weight
    pieces = _rechunk((piece.to(weight) for piece in _checked(frames)), chunk)
    if model.spec.causal:
        return _stream(model, pieces)
    return _base(model, pieces, chunk, recompute, spill)


def _stream(model: MoViNet, pieces: Iterator[Tensor]) -> Tensor:
    logits, state = None, None
    for piece in pieces:
        if state is None:
            state = model.init_state(piece.shape[0], piece.shape[3], piece.shape[4])
        logits, state = model.step(piece, state)
    assert logits is not None  # _checked refuses a video without frames
    return logits


def _base(
    model: MoViNet,
    pieces: Iterator[Tensor],
    chunk: int,
    recompute: bool,
    spill: str | os.PathLike[str] | None,
) -> Tensor:
    def queue() -> _Queue:
        return _MemoryQueue() if spill is None else _DiskQueue(spill)

    through = _twice if recompute else _once
    x = _convolve(model.stem, pieces)
    for name in model.layer_names:
        layer = model.get_submodule(name)
        assert isinstance(layer, Bottleneck)
        x = through(layer, _rechunk(x, chunk), chunk, queue)
    pool = _Pool()
    for piece in _rechunk(x, chunk):
        pool.add(model.head(piece))
    logits: Tensor = model.classifier(pool.mean())
    return logits


# A layer ----------------------------------------------------------------------------------------


def _once(
    layer: Bottleneck, pieces: Iterator[Tensor], chunk: int, queue: Callable[[], _Queue]
) -> Iterator[Tensor]:
    """Yield the layer's output; keep its depthwise output and its residual."""
    residuals, wides, pool = queue(), queue(), _Pool()
    attention = layer.squeeze_excitation
    barrier = attention is not None and attention.temporal_pool is not None
    for wide in _wide(layer, pieces, residuals):
        if barrier:
            pool.add(wide)
            wides.append(wide)
        else:
            yield _narrow(layer, wide, pool, residuals)
    while wides.frames:
        yield _narrow(layer, wides.take(min(chunk, wides.frames)), pool, residuals)


def _twice(
    layer: Bottleneck, pieces: Iterator[Tensor], chunk: int, queue: Callable[[], _Queue]
) -> Iterator[Tensor]:
    """Yield the layer's output; keep its input."""
    attention = layer.squeeze_excitation
    if attention is None or attention.temporal_pool is None:
        yield from _once(layer, pieces, chunk, queue)
        return
    inputs, pool = queue(), _Pool()

    def kept() -> Iterator[Tensor]:
        for piece in pieces:
            inputs.append(piece)
            yield piece

    def again() -> Iterator[Tensor]:
        while inputs.frames:
            yield inputs.take(min(chunk, inputs.frames))

    for wide in _wide(layer, kept(), None):
        pool.add(wide)
    # The residuals wait only as long as the temporal kernel looks ahead.
    residuals = _MemoryQueue()
    for wide in _wide(layer, again(), residuals):
        yield _narrow(layer, wide, pool, residuals)


def _wide(
    layer: Bottleneck, pieces: Iterator[Tensor], residuals: _Queue | None
) -> Iterator[Tensor]:
    """Yield the depthwise convolution's output, and put the residuals aside."""

    def expanded() -> Iterator[Tensor]:
        for piece in pieces:
            if residuals is not None:
                residuals.append(piece if layer.skip is None else layer.skip(piece))
            yield layer.expansion(piece)

    yield from _convolve(layer.depthwise, expanded())


def _narrow(layer: Bottleneck, wide: Tensor, pool: _Pool, residuals: _Queue) -> Tensor:
    """Return the layer's output, of what came before its squeeze-excitation."""
    residual = residuals.take(wide.shape[2])
    if layer.squeeze_excitation is not None:
        wide = _gate(layer.squeeze_excitation, wide, pool) * wide
    projected: Tensor = layer.rezero(layer.projection(wide))
    return projected + residual


def _gate(attention: SqueezeExcitation, wide: Tensor, pool: _Pool) -> Tensor:
    parts = []
    spatial = attention.spatial_pool(wide) if attention.spatial_pool is not None else None
    if attention.temporal_pool is not None:
        mean = pool.mean()
        parts.append(mean if spatial is None else mean.expand_as(spatial))
    if spatial is not None:
        parts.append(spatial)
    gate: Tensor = attention.expand(attention.reduce(torch.cat(parts, dim=1)))
    return gate


def _convolve(block: StreamConvBlock, pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yield what a convolution block makes of a clip that comes in pieces.

    As many frames come out as go in, later by those that the temporal kernel looks ahead.
    """

    def activate(x: Tensor) -> Tensor:
        norm, activation = (
            (block.temporal_norm, block.temporal_activation)
            if block.splits
            else (block.norm, block.activation)
        )
        x = x if norm is None else norm(x)
        return x if activation is None else activation(x)

    conv = block.stream_conv
    if block.splits:
        pieces = map(super(StreamConvBlock, block).forward, pieces)
    before, after = same_padding(1, conv.kernel_size[0], 1)
    window: Tensor | None = None
    for piece in pieces:
        if before + after == 0:
            yield activate(conv(piece))
            continue
        if window is None:
            window = _black(piece, before)
        window = torch.cat([window, piece], dim=2)
        if window.shape[2] > before + after:
            yield activate(_convolve_inside(conv, window))
            # A copy, because a view would keep the whole window alive.
            window = window[:, :, -(before + after) :].clone()
    if window is not None and after:
        yield activate(_convolve_inside(conv, torch.cat([window, _black(window, after)], dim=2)))


def _convolve_inside(conv: Conv, window: Tensor) -> Tensor:
    """Convolve only where the temporal kernel lies inside the window."""
    pads = [*conv.padding_for(window)[:4], 0, 0]
    return F.conv3d(F.pad(window, pads), conv.weight, conv.bias, conv.stride, groups=conv.groups)


def _black(like: Tensor, frames: int) -> Tensor:
    return like.new_zeros(*like.shape[:2], frames, *like.shape[3:])


class _Pool:
    """Mean over space and over all pieces."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.frames = 0
        self.dtype: torch.dtype | None = None

    def add(self, x: Tensor) -> None:
        total = x.sum(dim=(2, 3, 4), keepdim=True, dtype=at_least_float32(x.dtype))
        total = total / (x.shape[3] * x.shape[4])
        self.total = total if self.total is None else self.total + total
        self.frames += x.shape[2]
        self.dtype = x.dtype

    def mean(self) -> Tensor:
        assert self.total is not None
        return (self.total / self.frames).to(self.dtype)


# Pieces -----------------------------------------------------------------------------------------


class _Queue(Protocol):
    """Frames in the order in which they came; each can be taken once."""

    frames: int

    def append(self, piece: Tensor) -> None: ...

    def take(self, frames: int) -> Tensor: ...


class _MemoryQueue:
    def __init__(self) -> None:
        self.frames = 0
        self._pieces: deque[Tensor] = deque()

    def append(self, piece: Tensor) -> None:
        self._pieces.append(piece)
        self.frames += piece.shape[2]

    def take(self, frames: int) -> Tensor:
        """Return the next frames, and forget them; there are as many."""
        self.frames -= frames
        taken = []
        while frames:
            piece = self._pieces.popleft()
            if piece.shape[2] > frames:
                # Both are views, and the first is gone soon.
                self._pieces.appendleft(piece[:, :, frames:])
                piece = piece[:, :, :frames]
            taken.append(piece)
            frames -= piece.shape[2]
        return taken[0] if len(taken) == 1 else torch.cat(taken, dim=2)


class _DiskQueue:
    """The same in a file that is gone with the process.

    Args:
        folder: where the file is made.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.frames = 0
        self._read = self._written = 0
        try:
            self._file: FileIO = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise MovinetPortError(
                f"predict_clip: cannot write to {os.fspath(folder)}: {error.strerror}; "
                f"name an existing folder with spill="
            ) from None

    def append(self, piece: Tensor) -> None:
        self._like = piece
        # One frame after the other, as they will be read.
        data = piece.movedim(2, 0).contiguous().cpu().view(-1).view(torch.uint8).numpy()
        self._file.seek(self._written)
        view = data.data
        try:
            while view:
                written = self._file.write(view)
                self._written += written
                view = view[written:]
        except OSError as error:
            raise MovinetPortError(
                f"predict_clip: cannot write what the clip needs between two layers: "
                f"{error.strerror}; choose another folder with spill="
            ) from None
        self.frames += piece.shape[2]

    def take(self, frames: int) -> Tensor:
        """Return the next frames; there are as many."""
        like = self._like
        batch, channels, _, height, width = like.shape
        shape = (frames, batch, channels, height, width)
        data = np.empty(int(np.prod(shape)) * like.element_size(), np.uint8)
        self._file.seek(self._read)
        view = data.data
        while view:
            count = self._file.readinto(view)
            self._read += count
            view = view[count:]
        self.frames -= frames
        frames_first = torch.from_numpy(data).view(like.dtype).view(shape)
        return frames_first.movedim(0, 2).contiguous().to(like.device)


def _rechunk(pieces: Iterable[Tensor], chunk: int) -> Iterator[Tensor]:
    """Yield the same frames, `chunk` at a time; the last piece may have fewer."""
    queue = _MemoryQueue()
    for piece in pieces:
        queue.append(piece)
        while queue.frames >= chunk:
            yield queue.take(chunk)
    if queue.frames:
        yield queue.take(queue.frames)


def _checked(frames: Frames) -> Iterator[Tensor]:
    """Yield the pieces; each is a clip, and fits the one before."""
    expected: tuple[int, int, int] | None = None
    for piece in (frames,) if isinstance(frames, Tensor) else frames:
        shape = _check_video(piece)
        if expected not in (None, shape):
            raise StateError(
                f"the clip is (batch, height, width) = {shape}, but the video so far was "
                f"{expected}; call predict_clip once for each video"
            )
        expected = shape
        yield piece
    if expected is None:
        raise StateError("the video has no frames, expected at least one")
