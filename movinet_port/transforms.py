"""From frames to the network's input, as the authors' evaluation does it.

The reference is ``preprocess_ops_3d`` of tf-models-official: the shorter side is scaled to a fixed
length, bilinearly, at half-pixel centres and without antialiasing, and rounded down to bytes; the
centre is cut out; 255 becomes 1.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from movinet_port.errors import MovinetPortError


class TransformError(MovinetPortError, ValueError):
    """Frames, or sizes, that cannot be brought into the network's form."""


@dataclasses.dataclass(frozen=True)
class ClipTransform:
    """Frames to a clip: scale the shorter side, cut out the centre, bytes to [0, 1].

    Attributes:
        size: (height, width) of the clip; one number for a square.
        resize: what the shorter side is scaled to before the cut; None for the longest side of
            `size`, which cuts as little as can be. The authors evaluate a0 at 172 out of 192.
    """

    size: int | tuple[int, int]
    resize: int | None = None

    def __post_init__(self) -> None:
        sizes = (*self.crop, self.shorter_side)
        if any(type(n) is not int or n < 1 for n in sizes):
            raise TransformError(
                f"size {self.size!r}, resize {self.resize!r}: expected whole numbers above 0"
            )

    @property
    def crop(self) -> tuple[int, int]:
        """(height, width) of the clip."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @property
    def shorter_side(self) -> int:
        """What the shorter side of a frame becomes before the cut."""
        return max(self.crop) if self.resize is None else self.resize

    def __call__(self, frames: Tensor) -> Tensor:
        """Return a batch of one clip, or of as many as there are.

        Args:
            frames: RGB, (frames, height, width, 3) or (batch, frames, height, width, 3), uint8.

        Returns:
            RGB in [0, 1], (batch, 3, frames, height, width), float32.

        Raises:
            TransformError: another shape or type.
        """
        if frames.ndim not in (4, 5) or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
            raise TransformError(
                f"frames of shape {tuple(frames.shape)} and type {frames.dtype}: expected uint8 of "
                f"(frames, height, width, 3) or (batch, frames, height, width, 3)"
            )
        if frames.numel() == 0:
            raise TransformError(f"frames of shape {tuple(frames.shape)}: there are none")
        batch = frames if frames.ndim == 5 else frames[None]
        flat = crop_center(resize_smallest(batch.flatten(0, 1), self.shorter_side), self.crop)
        clips = flat.unflatten(0, batch.shape[:2]).permute(0, 4, 1, 2, 3)
        return clips.to(torch.float32, memory_format=torch.contiguous_format) / 255


def resize_smallest(frames: Tensor, length: int) -> Tensor:
    """Scale the shorter side to `length`, keeping the proportions; the longer is rounded down.

    Args:
        frames: (frames, height, width, channels), uint8.
        length: in pixels.

    Returns:
        The same type; the frames themselves if their shorter side is of that length already.
    """
    height, width = frames.shape[1:3]
    size = max(length, height * length // width), max(length, width * length // height)
    return frames if size == (height, width) else resize_bilinear(frames, size)


def resize_bilinear(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale as ``tf.image.resize`` does: half-pixel centres, no antialiasing; round down to bytes.

    ``torch.nn.functional.interpolate`` adds up in another order, which the rounding down to bytes
    turns into differences of 1.

    Args:
        frames: (frames, height, width, channels), uint8.
        size: (height, width).

    Returns:
        (frames, height, width, channels), uint8.
    """
    top, bottom, down = _neighbours(frames.shape[1], size[0], frames.device)
    left, right, across = _neighbours(frames.shape[2], size[1], frames.device)
    across, down = across[:, None], down[:, None, None]
    scaled = frames.new_empty((len(frames), *size, frames.shape[3]))
    # Frame by frame: in float32 all at once would take many times the memory of the result.
    for frame, result in zip(frames, scaled, strict=True):
        above, below = frame[top].to(torch.float32), frame[bottom].to(torch.float32)
        above = _between(above[:, left], above[:, right], across)
        below = _between(below[:, left], below[:, right], across)
        result.copy_(_between(above, below, down))
    return scaled


def _neighbours(
    length: int, new_length: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each new pixel its two neighbours, and how far it is from the first."""
    scale = torch.tensor(length, dtype=torch.float32) / torch.tensor(new_length)
    position = (torch.arange(new_length, dtype=torch.float32) + 0.5) * scale - 0.5
    first = position.floor()
    lower = first.clamp(min=0).long()
    upper = position.ceil().clamp(max=length - 1).long()
    return lower.to(device), upper.to(device), (position - first).to(device)


def _between(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    # This order of operations is the reference's; torch.lerp has another one.
    return first + (second - first) * share


def crop_center(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut out the centre, or pad with black where a side is too short.

    Args:
        frames: (frames, height, width, channels).
        size: (height, width).

    Returns:
        (frames, height, width, channels) of that size.
    """
    for axis, length in zip((1, 2), size, strict=True):
        excess = frames.shape[axis] - length
        if excess > 0:
            frames = frames.narrow(axis, excess // 2, length)
        elif excess < 0:
            shape = list(frames.shape)
            shape[axis] = length
            padded = frames.new_zeros(shape)
            padded.narrow(axis, -excess // 2, frames.shape[axis]).copy_(frames)
            frames = padded
    return frames


def clip_starts(seconds: float, clip_seconds: float, clips: int = 1) -> list[float]:
    """Return where the clips begin that the authors evaluate on.

    Args:
        seconds: how long the video is.
        clip_seconds: how long a clip is.
        clips: one is cut from the middle; more are spread evenly from the beginning to the end.

    Returns:
        Seconds; all 0 for a video that is no longer than a clip.
    """
    room = max(0.0, seconds - clip_seconds)
    if clips == 1:
        return [room / 2]
    return [room * number / (clips - 1) for number in range(clips)]


def repeated(clip: Tensor, frames: int) -> Tensor:
    """Fill up a clip by starting over, as the authors' evaluation does with short videos.

    Args:
        clip: (batch, 3, frames, height, width).
        frames: how many there shall be.
    """
    missing = math.ceil(frames / clip.shape[2])
    return clip.repeat(1, 1, missing, 1, 1)[:, :, :frames] if missing > 1 else clip[:, :, :frames]
