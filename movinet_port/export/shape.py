"""The sizes that an exported network takes: each axis of a clip is a number or free."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from movinet_port.model import MoViNet
from movinet_port.streams import STREAM_BUFFER

# A number, or the name of a free size; "height/4" is a quarter of it, rounded up.
Axis = int | str

VIDEO = "video"
LOGITS = "logits"
# A state comes out under the name it goes in by, with this behind it.
NEXT = ".next"

# Halved this often at most, this size tells every stride of a network.
_LARGE = 1 << 20


@dataclasses.dataclass(frozen=True)
class ClipShape:
    """Sizes of a clip; None for one that stays free."""

    batch: int | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None

    def axes(self) -> tuple[Axis, ...]:
        """Return the axes of the clip, (batch, 3, frames, height, width), free ones by name."""
        batch, frames, height, width = (
            field.name if (size := getattr(self, field.name)) is None else size
            for field in dataclasses.fields(self)
        )
        return batch, 3, frames, height, width

    def free(self) -> list[str]:
        """Return the names of the free axes."""
        return [axis for axis in self.axes() if isinstance(axis, str)]

    def __str__(self) -> str:
        batch, _, frames, height, width = self.axes()
        return f"({batch}, 3, {frames}, {height}, {width})"


def input_axes(model: MoViNet, shape: ClipShape) -> dict[str, tuple[Axis, ...]]:
    """Return the axes of every input: the clip, then the states of a stream network."""
    batch, _, _, height, width = shape.axes()
    inputs = {VIDEO: shape.axes()}
    if not model.spec.causal:
        return inputs
    large = model.state_shapes(_LARGE, _LARGE)
    for name, (*rest,) in large.items():
        axes: tuple[Axis, ...] = (batch, *rest)
        if name.endswith(STREAM_BUFFER):
            channels, frames, high, wide = rest
            axes = (
                batch,
                channels,
                frames,
                _divided(height, _LARGE // high),
                _divided(width, _LARGE // wide),
            )
        inputs[name] = axes
    return inputs


def _divided(axis: Axis, divisor: int) -> Axis:
    if isinstance(axis, int):
        return -(-axis // divisor)
    return axis if divisor == 1 else f"{axis}/{divisor}"


def probes(shape: ClipShape, causal: bool) -> Iterator[tuple[int, tuple[int, ...], int, int]]:
    """Yield clips to compare on, (batch, frames of each chunk, height, width), each once.

    Odd and even sizes, portrait and landscape, where they are free; chunks of several lengths of
    one video for a stream network.
    """
    seen = set()
    for batch, frames, height, width in _PROBES:
        probe = (
            shape.batch or batch,
            tuple(shape.frames or n for n in frames)[: len(frames) if causal else 1],
            shape.height or height,
            shape.width or width,
        )
        if probe not in seen:
            seen.add(probe)
            yield probe


_PROBES = ((2, (3, 1, 2), 61, 83), (1, (1, 1, 4), 64, 46))
