"""The state of a stream in the optimised network's own form.

`movinet_port.MoViNet.init_state` describes the public form: one tensor per buffer. The optimised
network holds the frames of a stream buffer apart, so that a new frame moves them on by moving
references, and it holds pixels with their channels together. Only this module turns one form into
the other.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from movinet_port.layers import at_least_float32
from movinet_port.streams import FRAME_COUNT, POOL_BUFFER, STREAM_BUFFER, State


@dataclasses.dataclass(frozen=True)
class StreamState:
    """A stream's state in the optimised network's own form. Never changed in place.

    Attributes:
        frames: layer -> the frames before the next one, oldest first, each
            (batch, height, width, channels).
        pools: layer, or "head" -> sum of the spatial means so far, (batch, channels), float32 or
            wider.
        count: (batch,) int64, how many frames there were.
    """

    frames: dict[str, tuple[Tensor, ...]]
    pools: dict[str, Tensor]
    count: Tensor

    @classmethod
    def of(cls, state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> StreamState:
        """Return a public state, of either network, in the optimised networks' form.

        Args:
            state: as `MoViNet.init_state` describes it.
            dtype: of the frames, and in which sums are kept if that is float32 or wider; by default
                what they are.
        """
        frames: dict[str, tuple[Tensor, ...]] = {}
        pools: dict[str, Tensor] = {}
        for key, value in state.items():
            name, _, kind = key.rpartition(".")
            if kind == STREAM_BUFFER:
                frames[name] = value.to(dtype).permute(2, 0, 3, 4, 1).contiguous().unbind(0)
            elif kind == POOL_BUFFER:
                pool = value[:, :, 0, 0, 0]
                pools[name] = pool if dtype is None else pool.to(at_least_float32(dtype))
        return cls(frames, pools, state[FRAME_COUNT])

    def public(self) -> State:
        """Return the state under the names and shapes that `MoViNet.init_state` gives.

        All tensors are new. The stream buffers are laid out with their channels together, which
        `of` takes back without copying.
        """
        state: State = {}
        for name, frames in self.frames.items():
            buffer = torch.stack(frames)  # (frames, batch, height, width, channels)
            state[f"{name}.{STREAM_BUFFER}"] = buffer.permute(1, 4, 0, 2, 3)
        for name, pool in self.pools.items():
            state[f"{name}.{POOL_BUFFER}"] = pool[:, :, None, None, None].clone()
        state[FRAME_COUNT] = self.count.clone()
        return state

    def apply(self, fn: Callable[[Tensor], Tensor]) -> StreamState:
        """Return the state after ``.to()`` or the like; sums stay float32 or wider."""
        pools = {}
        for name, pool in self.pools.items():
            moved = fn(pool)
            pools[name] = pool.to(moved.device, at_least_float32(moved.dtype))
        frames = {name: tuple(map(fn, held)) for name, held in self.frames.items()}
        return StreamState(frames, pools, fn(self.count))

    def flat(self) -> list[Tensor]:
        """Return all tensors in one order: frames, pools, count."""
        frames = [frame for held in self.frames.values() for frame in held]
        return [*frames, *self.pools.values(), self.count]


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """The order of a state's tensors in `StreamState.flat`.

    Attributes:
        frames: layer -> how many frames it holds.
        pools: layers with a pool, and "head".
    """

    frames: tuple[tuple[str, int], ...]
    pools: tuple[str, ...]

    @classmethod
    def of(cls, state: StreamState) -> StateLayout:
        """Return the layout of a state."""
        return cls(
            tuple((name, len(frames)) for name, frames in state.frames.items()),
            tuple(state.pools),
        )

    def unflatten(self, flat: Sequence[Tensor]) -> StreamState:
        """Return the state whose `StreamState.flat` is `flat`, its parts found."""
        rest = iter(flat)
        frames = {name: tuple(next(rest) for _ in range(n)) for name, n in self.frames}
        pools = {name: next(rest) for name in self.pools}
        return StreamState(frames, pools, next(rest))

    def lazily(self, flat: Sequence[Tensor]) -> StreamState:
        """Return the same; its parts are found when they are asked for."""
        return _FlatState(self, flat)

    def advance(self, new: int) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
        """Return a function that takes a state's tensors from one clip to the next.

        It makes, of `StreamState.flat` before the clip and then what is new after it (the newest
        frames of each layer, oldest first, the pools, the count), `StreamState.flat` after it.

        Args:
            new: frames in the clip; a layer with fewer has only so many new ones.
        """
        frames = sum(count for _, count in self.frames)
        first, next_new = 0, frames + len(self.pools) + 1
        order: list[int] = []
        for _, count in self.frames:
            fresh = min(new, count)
            order += range(first + fresh, first + count)
            order += range(next_new, next_new + fresh)
            first += count
            next_new += fresh
        order += range(next_new, next_new + len(self.pools) + 1)
        if len(order) == 1:
            return lambda tensors: (tensors[order[0]],)
        return operator.itemgetter(*order)


class _FlatState(StreamState):
    """A state as its tensors in order, taken apart when its parts are asked for."""

    def __init__(self, layout: StateLayout, tensors: Sequence[Tensor]) -> None:
        object.__setattr__(self, "_layout", layout)
        object.__setattr__(self, "_tensors", list(tensors))

    _layout: StateLayout
    _tensors: list[Tensor]

    @functools.cached_property
    def _parts(self) -> StreamState:
        return self._layout.unflatten(self._tensors)

    @property
    def frames(self) -> dict[str, tuple[Tensor, ...]]:
        return self._parts.frames

    @property
    def pools(self) -> dict[str, Tensor]:
        return self._parts.pools

    @property
    def count(self) -> Tensor:
        return self._tensors[-1]

    def flat(self) -> list[Tensor]:
        return self._tensors
