"""What a PyTorch network is compared with: anything that yields named activations.

Activations and states are numpy arrays in PyTorch's layout, (batch, channels, frames, height,
width), one set for each chunk of the video.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from parity.chunk_values import Array, ChunkValues


class Reference(Protocol):
    """A source of named activations.

    Attributes:
        description: plain data: "kind", "name", and whatever else the report should say.
        parameters: the reference's own parameters under the model's names, as far as known.
        table: name of an activation -> path of the module in the PyTorch network; None where the
            reference uses the taps of a MoViNet.
    """

    description: Mapping[str, Any]
    parameters: Mapping[str, Tensor]
    table: Mapping[str, str] | None

    def run(self, chunks: Sequence[Array]) -> Sequence[ChunkValues]:
        """Return the activations for a video given in chunks, from its beginning."""
        ...


def channels_last(x: Array) -> Array:
    """Return (batch, ..., channels) of (batch, channels, ...)."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def channels_first(x: Array, batch: int) -> Array:
    """Return a value of TensorFlow's in PyTorch's layout.

    (batch, frames, height, width, channels), or (batch * frames, height, width, channels) of a
    network whose frames are folded into its batch; one number per video as it is.
    """
    if x.ndim == 4:
        x = x.reshape(batch, -1, *x.shape[1:])
    if x.ndim == 1 and x.shape[0] == 1:
        x = np.repeat(x, batch)
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if x.ndim == 5 else x


_TEMPORAL = ("temporal_conv", "temporal_norm", "temporal_activation")


def tap_value(tap: str, value: Array, before: Mapping[str, Array], batch: int) -> Array:
    """Return a tap's value of TensorFlow's in PyTorch's layout, given those of the taps before."""
    block, _, leaf = tap.rpartition(".")
    if value.ndim == 4 and leaf in _TEMPORAL:
        # (batch, frames, height * width, channels): a 2-D convolution over time.
        spatial = (f"{block}.{name}" for name in ("conv", "norm", "activation"))
        size = next(before[name] for name in spatial if name in before).shape[3:]
        value = value.reshape(*value.shape[:2], *size, value.shape[3])
    return channels_first(value, batch)
