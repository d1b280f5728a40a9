"""What one side of a comparison computes for one chunk of a video."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class ChunkValues:
    """What a reference computes for one chunk.

    Attributes:
        activations: tap -> value; `movinet_port.wiring.INPUT` is the chunk itself.
        states: stream state -> value after the chunk.
    """

    activations: Mapping[str, Array]
    states: Mapping[str, Array] = dataclasses.field(default_factory=dict)
