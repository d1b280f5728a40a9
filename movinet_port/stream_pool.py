"""Many videos at once through one stream network: cameras that come and go.

One step over eight videos costs less than eight steps over one. A `StreamPool` holds the states
of all its videos as one batch, so that a step over all of them copies nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from movinet_port.errors import StateError
from movinet_port.fast.network import InferenceNetwork
from movinet_port.fast.state import StateLayout, StreamState
from movinet_port.model import MoViNet
from movinet_port.streams import State, check_finite

# The states of the pool's videos, or of some; the batch is the first axis of every tensor.
Rows = list[Tensor]


class StreamPool:
    """Streams that share a network. Each gets the logits that it would get alone.

    Args:
        model: a stream network in evaluation mode, readable or optimised.
        height, width: of every stream's frames, in pixels.
        slots: None, or the size of the batch that the network is always given, for a network
            that takes no other (compiled for a fixed batch). Slots without a stream, and streams
            without a clip in a step, are computed and thrown away.
        finite_only: refuse clips with a NaN or an infinity, which would stay in their stream's
            state for good. None of the step's clips counts then.

    Raises:
        StateError: the network is not causal.

    Example::

        pool = StreamPool(model, 172, 172)
        pool.join("door")
        pool.join("yard")
        logits = pool.step({"door": frame, "yard": other})["door"]
        pool.drop("yard")
    """

    def __init__(
        self,
        model: MoViNet | InferenceNetwork,
        height: int,
        width: int,
        slots: int | None = None,
        finite_only: bool = False,
    ) -> None:
        if slots is not None and (type(slots) is not int or slots < 1):
            raise StateError(f"slots is {slots!r}, expected a number of streams, or None")
        self.model = model
        self.size = (height, width)
        self.slots = slots
        self.finite_only = finite_only
        made = _Readable if isinstance(model, MoViNet) else _Optimised
        self._states: _Readable | _Optimised = made(model, height, width)  # type: ignore[arg-type]
        self._streams: list[Hashable | None] = [None] * (slots or 0)
        self._rows: Rows = self._states.new(len(self._streams))

    @property
    def streams(self) -> tuple[Hashable, ...]:
        """The names of the streams in the pool."""
        return tuple(name for name in self._streams if name is not None)

    def __len__(self) -> int:
        """Return how many streams there are."""
        return len(self.streams)

    def __contains__(self, stream: Hashable) -> bool:
        """Return whether a stream is in the pool."""
        return stream is not None and stream in self._streams

    def join(self, stream: Hashable) -> None:
        """Start a stream, before its first frame.

        Raises:
            StateError: the name is taken, or is None, or all slots are.
        """
        if stream is None or stream in self._streams:
            reason = "is no name" if stream is None else "is in the pool already"
            raise StateError(f"stream {stream!r} {reason}; choose another name, or drop it first")
        fresh = self._states.new(1)
        if self.slots is None:
            self._streams.append(stream)
            self._rows = [torch.cat(pair) for pair in zip(self._rows, fresh, strict=True)]
            return
        if None not in self._streams:
            raise StateError(
                f"all {self.slots} slots of the pool are taken; drop a stream, or make a pool "
                f"with more slots"
            )
        row = self._streams.index(None)
        self._streams[row] = stream
        self._rows = _put(self._rows, [row], fresh)

    def drop(self, stream: Hashable) -> None:
        """End a stream, and forget it.

        Raises:
            StateError: there is no such stream.
        """
        row = self._row(stream)
        if self.slots is not None:
            self._streams[row] = None
            return
        del self._streams[row]
        self._rows = _take(self._rows, [i for i in range(len(self._streams) + 1) if i != row])

    @torch.no_grad()
    def step(self, clips: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
        """Give some of the streams, or all, their next frames.

        Args:
            clips: stream -> (3, frames, height, width), RGB in [0, 1]; the same number of
                frames for all. A stream without a clip stays where it is.

        Returns:
            stream -> (classes,) logits of its video so far.

        Raises:
            StateError: a stream is not in the pool, clips differ in shape, or one is refused.
        """
        if not clips:
            return {}
        rows = [self._row(stream) for stream in clips]
        self._check(clips)
        if self.slots is not None:
            first = next(iter(clips.values()))
            batch = first.new_zeros(self.slots, *first.shape)
            batch[rows] = torch.stack(list(clips.values()))
            logits, after = self._states.step(batch, self._rows)
            self._rows = (
                after if len(rows) == self.slots else _put(self._rows, rows, _take(after, rows))
            )
            logits = logits[rows]
        elif len(rows) == len(self._streams):
            # All of them: the states are the batch.
            in_order = [clips[stream] for stream in self._streams]
            logits, self._rows = self._states.step(torch.stack(in_order), self._rows)
            logits = logits[rows]
        else:
            batch = torch.stack(list(clips.values()))
            logits, after = self._states.step(batch, _take(self._rows, rows))
            self._rows = _put(self._rows, rows, after)
        return dict(zip(clips, logits.unbind(), strict=True))

    def state(self, stream: Hashable) -> State:
        """Return the state of one stream, as `MoViNet.step` takes it for a batch of one.

        Raises:
            StateError: there is no such stream.
        """
        return self._states.public(_take(self._rows, [self._row(stream)]))

    def _row(self, stream: Hashable) -> int:
        if stream not in self:
            known = ", ".join(map(repr, self.streams)) or "none"
            raise StateError(
                f"stream {stream!r} is not in the pool; join() it first; streams: {known}"
            )
        return self._streams.index(stream)

    def _check(self, clips: Mapping[Any, Tensor]) -> None:
        frames: int | None = None
        for stream, clip in clips.items():
            shape = tuple(clip.shape)
            expected = (3, shape[1] if frames is None and len(shape) == 4 else frames, *self.size)
            if shape != expected or shape[1] == 0:
                raise StateError(
                    f"stream {stream!r}: the clip has shape {shape}, expected (3, "
                    f"{frames or 'frames'}, {self.size[0]}, {self.size[1]}), the same number of "
                    f"frames for every stream of a step"
                )
            frames = shape[1]
            if self.finite_only:
                check_finite(clip, f"stream {stream!r}: the clip")


class _Readable:
    """The readable network's states as lists of tensors."""

    def __init__(self, model: MoViNet, height: int, width: int) -> None:
        self._model = model
        self._size = (height, width)
        self._names = list(model.init_state(1, height, width))

    def new(self, batch: int) -> Rows:
        return list(self._model.init_state(batch, *self._size).values())

    def step(self, batch: Tensor, rows: Rows) -> tuple[Tensor, Rows]:
        logits, state = self._model.step(batch, self.public(rows))
        return logits, [state[name] for name in self._names]

    def public(self, rows: Rows) -> State:
        return dict(zip(self._names, rows, strict=True))


class _Optimised:
    """The optimised networks' states in their own form, where frames move on without a copy."""

    def __init__(self, model: InferenceNetwork, height: int, width: int) -> None:
        self._model = model
        self._size = (height, width)
        self._layout = StateLayout.of(StreamState.of(model.init_state(1, height, width)))

    def new(self, batch: int) -> Rows:
        return StreamState.of(self._model.init_state(batch, *self._size)).flat()

    def step(self, batch: Tensor, rows: Rows) -> tuple[Tensor, Rows]:
        self._model.check(batch)
        logits, state = self._model.run(batch, self._layout.lazily(rows))
        assert state is not None
        return logits.clone(), state.flat()

    def public(self, rows: Rows) -> State:
        return self._layout.lazily(rows).public()


def _take(rows: Rows, which: Sequence[int]) -> Rows:
    return _each(rows, lambda value, index: value.index_select(0, index), which)


def _put(rows: Rows, which: Sequence[int], new: Rows) -> Rows:
    values = iter(new)
    return _each(rows, lambda value, index: value.index_copy(0, index, next(values)), which)


def _each(rows: Rows, change: Callable[[Tensor, Tensor], Tensor], which: Sequence[int]) -> Rows:
    index = torch.tensor(which, dtype=torch.int64, device=rows[0].device)
    return [change(value, index) for value in rows]
