"""Which backend computes a stage of the optimised network.

The network asks `choose` once for each part and `Case`, and keeps the answer. The rows that it
chooses from are in `movinet_port.fast.backends`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch

# The stages, and what computes them; `run` is a `movinet_port.fast.run.Run`. Between stages a clip
# is (frames * batch, height, width, channels), and rows are its pixels: (pixels, channels).
STEM = "stem"  # a StreamConv: (video, run) -> clip
LAYER = "layer"  # a Layer: (clip, run) -> clip
CONVOLVE = "convolve"  # a Layer: (clip, run) -> its wide clip, and its means over space or None
SPACE = "space"  # a StreamConv: (windows, run) -> clip, where each tap of the kernel has a window
NARROW = "narrow"  # a Layer: (wide rows, gates or None, residual rows, run) -> rows
POOL = "pool"  # a Layer: (clip) -> clip of a strided skip
PRODUCT = "product"  # a Pointwise: (rows) -> rows
CLASSIFIER = "classifier"  # a Pointwise: (one row for each video) -> rows

# For how many cases a part of the network keeps what was chosen.
_CASES = 64


class Case(NamedTuple):
    """What a part of the network is given to compute.

    Attributes:
        batch, frames, height, width: of its input.
        dtype: of all tensors.
        device: the kind of device that they are on, such as "cpu".
        stream: whether it is part of a stream, with a state.
        traced: whether a compiler looks on.
        watched: whether every activation is shown, see `movinet_port.fast.run.Tap`.
        package: what computes parts of a package, `movinet_port.fast.packaged.Kernels`, or None.
    """

    batch: int
    frames: int
    height: int
    width: int
    dtype: torch.dtype
    device: str
    stream: bool = False
    traced: bool = False
    watched: bool = False
    package: Any = None

    @property
    def rows(self) -> int:
        """How many pixels there are."""
        return self.batch * self.frames * self.height * self.width

    @property
    def alone(self) -> bool:
        """Whether it is one frame of one stream."""
        return self.stream and self.batch == self.frames == 1

    def of_size(self, height: int, width: int) -> Case:
        """Return the case of frames of another size."""
        return self._replace(height=height, width=width)


# What computes a stage, with the arguments that are listed above.
Compute: TypeAlias = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """A way to compute a stage.

    Attributes:
        stage: one of the above.
        backend: its name; the file in `movinet_port.fast.backends` that is called so has it.
        takes: whether it computes a part of the network in a case.
        make: returns the function that computes the part in that case.
    """

    stage: str
    backend: str
    takes: Callable[[Any, Case], bool]
    make: Callable[[Any, Case], Compute]


def unprepared(compute: Compute) -> Callable[[Any, Case], Compute]:
    """Return the `make` of a function of part and case and the stage's own arguments."""
    return lambda part, case: functools.partial(compute, part, case)


# The first row that takes a part computes it. `movinet_port.fast.backends` has the rows.
TABLE: list[Row] = []


def choose(stage: str, part: Any, case: Case) -> Compute:
    """Return what computes a stage of a part of the network.

    Args:
        stage: one of the above.
        part: a module of `movinet_port.fast.layers`, which keeps the answer.
        case: what it is given.
    """
    chosen: dict[tuple[str, Case], Compute] = part.chosen
    found = chosen.get((stage, case))
    if found is None:
        row = next(row for row in TABLE if row.stage == stage and row.takes(part, case))
        if len(chosen) >= _CASES:
            chosen.clear()
        found = chosen[stage, case] = row.make(part, case)
    return found
