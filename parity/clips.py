"""Videos to compare on: random ones, numpy files, and video files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from movinet_port.video import VideoError, iterate_frames
from parity.errors import ComparisonError

Clip: TypeAlias = NDArray[np.float32]


def random_clip(batch: int, frames: int, size: tuple[int, int], seed: int) -> Clip:
    """Return random RGB in [0, 1], (batch, 3, frames, height, width)."""
    generator = np.random.default_rng(seed)
    return generator.random((batch, 3, frames, *size), dtype=np.float32)


def check_clip(path: str) -> None:
    """Raise `ComparisonError` unless there is such a file."""
    if not Path(path).is_file():
        raise ComparisonError(
            f"--input {path}: no such file; give a .npy, a video file, or 'random'"
        )


def read_clip(path: str, frames: int | None, size: tuple[int, int] | None) -> Clip:
    """Read a clip from a ``.npy`` file or a video file.

    A ``.npy`` holds (batch, 3, frames, height, width), (batch, frames, height, width, 3) or
    (frames, height, width, 3), floating point in [0, 1] or bytes.

    Args:
        path: the file.
        frames: take so many, spread over a video, or the first of a ``.npy``; None for all.
        size: (height, width) to resize to; None for the file's own.

    Returns:
        RGB in [0, 1], (batch, 3, frames, height, width).

    Raises:
        ComparisonError: the file cannot be read or holds something else.
    """
    check_clip(path)
    video = _from_numpy(path) if Path(path).suffix == ".npy" else _from_video(path, frames)
    if frames is not None:
        if video.shape[2] < frames:
            raise ComparisonError(
                f"--input {path}: has {video.shape[2]} frames, --frames asks for {frames}"
            )
        video = video[:, :, :frames]
    if size is not None and video.shape[3:] != size:
        batch, channels, count = video.shape[:3]
        flat = torch.from_numpy(video).transpose(1, 2).flatten(0, 1)
        flat = F.interpolate(flat, size=size, mode="bilinear", antialias=True)
        video = (
            flat.unflatten(0, (batch, count))
            .transpose(1, 2)
            .reshape(batch, channels, count, *size)
            .numpy()
        )
    return np.ascontiguousarray(video, dtype=np.float32)


def _from_numpy(path: str) -> Clip:
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = (str(error).splitlines() or ["damaged"])[0]
        raise ComparisonError(f"--input {path}: no numpy array: {reason}") from error
    if array.ndim == 4:
        array = array[None]
    if array.ndim == 5 and array.shape[1] != 3 and array.shape[-1] == 3:
        array = np.moveaxis(array, -1, 1)
    if array.ndim != 5 or array.shape[1] != 3:
        raise ComparisonError(
            f"--input {path}: has shape {array.shape}, expected (batch, 3, frames, height, width) "
            f"or (batch, frames, height, width, 3)"
        )
    if array.dtype == np.uint8:
        return (array / 255).astype(np.float32)
    if array.dtype.kind != "f":
        raise ComparisonError(
            f"--input {path}: holds {array.dtype}, expected bytes or floating point in [0, 1]"
        )
    return array.astype(np.float32)


def _from_video(path: str, frames: int | None) -> Clip:
    try:
        wanted = None
        if frames is not None:
            # Counted first, so that a long video need not fit into memory.
            count = sum(1 for _ in iterate_frames(path))
            if count > frames:
                wanted = np.linspace(0, count - 1, frames).round().astype(int).tolist()
        images = [
            frame.image.numpy()
            for number, frame in enumerate(iterate_frames(path))
            if wanted is None or number in wanted
        ]
    except VideoError as error:
        raise ComparisonError(f"--input: {error}") from error
    return (np.moveaxis(np.stack(images)[None], -1, 1) / 255).astype(np.float32)
