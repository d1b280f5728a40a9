"""One run of the optimised network: its clip, its state, its memory, and the tap that watches."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from movinet_port.fast.state import StreamState

# Called with the canonical name of an activation and its value in the readable network's shape;
# returns the value to go on with.
Tap: TypeAlias = Callable[[str, Tensor], Tensor]

# The most that is kept of each piece of memory from one clip to the next.
WORKSPACE_BYTES = 64 << 20


class Workspace:
    """Memory to compute a clip in, kept for the next one.

    The system clears fresh memory page by page when it is first touched, which takes as long as a
    convolution does.
    """

    def __init__(self) -> None:
        _keep_heap()
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor, shape: Sequence[int]) -> Tensor:
        """Return memory that is not cleared.

        Args:
            name: what it is for. The next taker of this name gets the same memory.
            like: a tensor of the same type.
            shape: of what is returned.
        """
        size = math.prod(shape)
        if size * like.element_size() > WORKSPACE_BYTES:
            return like.new_empty(shape)
        kept = self._kept.get(name)
        if kept is None or kept.numel() < size or kept.dtype != like.dtype:
            kept = self._kept[name] = like.new_empty(size)
        return kept[:size].view(*shape)


@functools.cache
def _keep_heap() -> None:
    """Have malloc keep what is given back to it, for results that cannot be given memory.

    glibc keeps twice the largest block that it was ever given back, of those up to 32 MiB.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


class Run:
    """One run of the network: what all layers need to know of it, and what they leave behind.

    Args:
        batch, frames: of the clip.
        state: of a stream, or None for a base network.
        dtype: in which sums over a video are kept.
        tap: see `Tap`, or None.
        workspace: where to compute; by default in fresh memory.
        turned: whether frames are turned by 180 degrees between layers.

    Attributes:
        new_frames, new_pools: of the state after the clip, filled by the layers.
        waves: layer -> positional encoding, (frames * batch, channels).
        part, part_now: of a stream, one over the number of frames so far: (frames, batch, 1) after
            each frame, (batch, 1) after the last.
    """

    def __init__(
        self,
        batch: int,
        frames: int,
        state: StreamState | None,
        dtype: torch.dtype,
        tap: Tap | None = None,
        workspace: Workspace | None = None,
        turned: bool = False,
    ) -> None:
        self.workspace = workspace or Workspace()
        self.turned = turned
        self.batch = batch
        self.frames = frames
        self.state = state
        self.dtype = dtype
        self.tap = tap
        self.new_frames: dict[str, tuple[Tensor, ...]] = {}
        self.new_pools: dict[str, Tensor] = {}
        self.waves: dict[str, Tensor] = {}
        if state is not None:
            seen = state.count
            if frames == 1:
                seen = (seen + 1)[None, :, None]
            else:
                steps = torch.arange(1, frames + 1, device=seen.device)
                seen = (seen[None, :] + steps[:, None])[:, :, None]
            self.part = seen.to(dtype).reciprocal()
            self.part_now = self.part[-1]

    def show(self, name: str, x: Tensor, offset: Tensor | None = None) -> Tensor:
        """Return an activation, or what the tap has in its place.

        Args:
            name: of the activation.
            x: (frames * batch, height, width, channels).
            offset: (channels,), what its true value has more.
        """
        if self.tap is None:
            return x
        value = x if offset is None else x + offset
        if self.turned:
            value = value.flip(1, 2)
        apart = value.unflatten(0, (-1, self.batch)).permute(1, 4, 0, 2, 3)
        replaced = self.tap(name, apart)
        if replaced is apart:
            return x
        x = replaced.permute(2, 0, 3, 4, 1).flatten(0, 1).contiguous()
        if self.turned:
            x = x.flip(1, 2)
        return x if offset is None else x - offset

    def show_vector(self, name: str, x: Tensor) -> Tensor:
        """Do the same with (frames * batch, channels), or (batch, channels)."""
        if self.tap is None:
            return x
        return self.show(name, x[:, None, None, :])[:, 0, 0, :]
