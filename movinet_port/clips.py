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

import itertools
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from movinet_port.errors import MovinetPortError, StateError
from movinet_port.layers import same_padding
from movinet_port.stages import Pieces
from movinet_port.streams import StatefulNetwork, check_video

Frames = Tensor | Iterable[Tensor]


@torch.no_grad()
def predict_clip(
    model: StatefulNetwork,
    frames: Frames,
    chunk: int = 8,
    *,
    recompute: bool = False,
    spill: str | os.PathLike[str] | None = None,
) -> Tensor:
    """Return the logits that ``model(frames)`` would return, in memory for `chunk` frames.

    The logits differ from those of a single call by the rounding of sums in another order; and in
    8-bit networks by scales that depend on the piece.

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
        model: readable or optimised, in evaluation mode, on any device.
        frames: (batch, 3, frames, height, width), RGB in [0, 1]; or an iterable of consecutive
            pieces of that shape, of one or more frames each, which is read once and never held
            as a whole. Pieces are moved to the network's device and dtype one by one.
        chunk: how many frames are computed at a time; what a network compiled for one shape takes.
        recompute: whether a base network trades time for memory.
        spill: an existing folder for the temporary file. Base networks only.

    Returns:
        (batch, classes) logits.

    Raises:
        MovinetPortError: the network is in training mode, or is a base one and compiled, `chunk`
            is not positive, or the file cannot be written.
        StateError: there are no frames, or a piece has another shape than the one before.
    """
    if model.training:
        raise MovinetPortError(
            "predict_clip: the network is in training mode, where batch normalisation depends on "
            "how the clip is cut; call model.eval() first"
        )
    if type(chunk) is not int or chunk < 1:
        raise MovinetPortError(f"predict_clip: chunk is {chunk!r}, expected a number of frames")
    moved = (piece.to(model.device, model.dtype) for piece in _checked(frames))
    pieces = _rechunk(moved, chunk, axis=2)
    if model.spec.causal:
        return _stream(model, pieces)
    first = next(pieces)
    network = model.pieces(first.shape[0])
    return _base(network, itertools.chain([first], pieces), chunk, recompute, spill)


def _stream(model: StatefulNetwork, pieces: Iterator[Tensor]) -> Tensor:
    logits, state = None, None
    for piece in pieces:
        if state is None:
            state = model.init_state(piece.shape[0], piece.shape[3], piece.shape[4])
        logits, state = model.step(piece, state)
    assert logits is not None  # _checked refuses a video without frames
    return logits


def _base(
    network: Pieces,
    pieces: Iterator[Tensor],
    chunk: int,
    recompute: bool,
    spill: str | os.PathLike[str] | None,
) -> Tensor:
    def queue() -> _Queue:
        return _MemoryQueue(network.axis) if spill is None else _DiskQueue(network.axis, spill)

    through = _twice if recompute else _once
    rows = chunk * network.batch
    x = _convolve(network, network.stem, map(network.enter, pieces))
    for layer in network.layers:
        x = through(network, layer, _rechunk(x, rows, network.axis), rows, queue)
    total = _Total()
    for piece in _rechunk(x, rows, network.axis):
        total.add(network, network.head(piece))
    return network.classify(total.mean())


class _Total:
    """A mean over space and over all pieces."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._frames = 0
        self._dtype = torch.float32

    def add(self, network: Pieces, x: Tensor) -> None:
        part = network.frame_sum(x)
        self._sum = part if self._sum is None else self._sum + part
        self._frames += x.shape[network.axis] // network.batch
        self._dtype = x.dtype

    def mean(self) -> Tensor:
        assert self._sum is not None
        return (self._sum / self._frames).to(self._dtype)


# A layer ----------------------------------------------------------------------------------------


def _once(
    network: Pieces, layer: Any, pieces: Iterator[Tensor], rows: int, queue: Callable[[], _Queue]
) -> Iterator[Tensor]:
    """Yield the layer's output; keep its depthwise output and its residual."""
    residuals, wides, total = queue(), queue(), _Total()
    for wide in _wide(network, layer, pieces, residuals):
        if network.pools_clip(layer):
            total.add(network, wide)
            wides.append(wide)
        else:
            yield _narrow(network, layer, wide, total, residuals)
    while wides.rows:
        wide = wides.take(min(rows, wides.rows))
        yield _narrow(network, layer, wide, total, residuals)


def _twice(
    network: Pieces, layer: Any, pieces: Iterator[Tensor], rows: int, queue: Callable[[], _Queue]
) -> Iterator[Tensor]:
    """Yield the layer's output; keep its input."""
    if not network.pools_clip(layer):
        yield from _once(network, layer, pieces, rows, queue)
        return
    inputs, total = queue(), _Total()

    def kept() -> Iterator[Tensor]:
        for piece in pieces:
            inputs.append(piece)
            yield piece

    def again() -> Iterator[Tensor]:
        while inputs.rows:
            yield inputs.take(min(rows, inputs.rows))

    for wide in _wide(network, layer, kept(), None):
        total.add(network, wide)
    # The residuals wait only as long as the temporal kernel looks ahead.
    residuals = _MemoryQueue(network.axis)
    for wide in _wide(network, layer, again(), residuals):
        yield _narrow(network, layer, wide, total, residuals)


def _wide(
    network: Pieces, layer: Any, pieces: Iterator[Tensor], residuals: _Queue | None
) -> Iterator[Tensor]:
    """Yield the depthwise convolution's output, and put the residuals aside."""

    def expanded() -> Iterator[Tensor]:
        for piece in pieces:
            wide = network.expand(layer, piece)
            if residuals is not None:
                residuals.append(network.residual(layer, piece))
            yield wide

    yield from _convolve(network, layer.depthwise, expanded())


def _narrow(network: Pieces, layer: Any, wide: Tensor, total: _Total, residuals: _Queue) -> Tensor:
    mean = total.mean() if network.pools_clip(layer) else None
    return network.finish(layer, wide, mean, residuals.take(wide.shape[network.axis]))


def _convolve(network: Pieces, block: Any, pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yield what a convolution block makes of a clip that comes in pieces.

    As many frames come out as go in, later by those that the temporal kernel looks ahead.
    """
    axis, taps = network.axis, network.taps(block)
    before, after = same_padding(1, taps, 1)
    window: Tensor | None = None
    for piece in pieces:
        piece = network.before_time(block, piece)
        if window is None:
            window = _join([_black(piece, before * network.batch, axis), piece], axis)
        else:
            window = torch.cat([window, piece], axis)
        rows, reach = window.shape[axis], (before + after) * network.batch
        if rows > reach:
            yield network.over_time(block, window)
            # A copy, because a view would keep the whole window alive.
            window = window.narrow(axis, rows - reach, reach).clone()
    if window is not None and after:
        black = _black(window, after * network.batch, axis)
        yield network.over_time(block, torch.cat([window, black], axis))


def _black(like: Tensor, rows: int, axis: int) -> Tensor:
    return like.new_zeros(*like.shape[:axis], rows, *like.shape[axis + 1 :])


def _join(pieces: list[Tensor], axis: int) -> Tensor:
    pieces = [piece for piece in pieces if piece.shape[axis]]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis)


# Pieces -----------------------------------------------------------------------------------------


class _Queue(Protocol):
    """Rows, frames or parts of them, in the order in which they came; each is taken once."""

    rows: int

    def append(self, piece: Tensor) -> None: ...

    def take(self, rows: int) -> Tensor: ...


class _MemoryQueue:
    """In memory.

    Args:
        axis: of the rows.
    """

    def __init__(self, axis: int) -> None:
        self.rows = 0
        self._axis = axis
        self._pieces: deque[Tensor] = deque()

    def append(self, piece: Tensor) -> None:
        self._pieces.append(piece)
        self.rows += piece.shape[self._axis]

    def take(self, rows: int) -> Tensor:
        """Return the next rows, and forget them; there are as many."""
        self.rows -= rows
        taken = []
        while rows:
            piece = self._pieces.popleft()
            size = piece.shape[self._axis]
            if size > rows:
                # Both are views, and the first is gone soon.
                self._pieces.appendleft(piece.narrow(self._axis, rows, size - rows))
                piece = piece.narrow(self._axis, 0, rows)
            taken.append(piece)
            rows -= piece.shape[self._axis]
        return _join(taken, self._axis)


class _DiskQueue:
    """In a file that is gone with the process.

    Args:
        axis: of the rows.
        folder: where the file is made.
    """

    def __init__(self, axis: int, folder: str | os.PathLike[str]) -> None:
        self.rows = 0
        self._axis = axis
        self._read = self._written = 0
        try:
            self._file: FileIO = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise MovinetPortError(
                f"predict_clip: cannot write to {os.fspath(folder)}: {error.strerror}; "
                f"name an existing folder with spill="
            ) from None

    def append(self, piece: Tensor) -> None:
        # One row after the other, as they will be read.
        rows_first = piece.movedim(self._axis, 0).contiguous()
        self._row = rows_first[:0]
        view = rows_first.cpu().view(-1).view(torch.uint8).numpy().data
        self._file.seek(self._written)
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
        self.rows += piece.shape[self._axis]

    def take(self, rows: int) -> Tensor:
        """Return the next rows; there are as many."""
        shape = (rows, *self._row.shape[1:])
        data = np.empty(int(np.prod(shape)) * self._row.element_size(), np.uint8)
        self._file.seek(self._read)
        view = data.data
        while view:
            count = self._file.readinto(view)
            self._read += count
            view = view[count:]
        self.rows -= rows
        rows_first = torch.from_numpy(data).view(self._row.dtype).view(shape)
        return rows_first.movedim(0, self._axis).contiguous().to(self._row.device)


def _rechunk(pieces: Iterable[Tensor], rows: int, axis: int) -> Iterator[Tensor]:
    """Yield the same frames, `rows` at a time; the last piece may have fewer."""
    queue = _MemoryQueue(axis)
    for piece in pieces:
        queue.append(piece)
        while queue.rows >= rows:
            yield queue.take(rows)
    if queue.rows:
        yield queue.take(queue.rows)


def _checked(frames: Frames) -> Iterator[Tensor]:
    """Yield the pieces; each is a clip, and fits the one before."""
    expected: tuple[int, int, int] | None = None
    for piece in (frames,) if isinstance(frames, Tensor) else frames:
        shape = check_video(piece)
        if expected not in (None, shape):
            raise StateError(
                f"the clip is (batch, height, width) = {shape}, but the video so far was "
                f"{expected}; call predict_clip once for each video"
            )
        expected = shape
        yield piece
    if expected is None:
        raise StateError("the video has no frames, expected at least one")
