"""A TF Lite file as a reference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from converters.convert import fill
from converters.dialects import state_name
from converters.locate import locate_variables
from converters.recognise import recognise
from converters.tflite.network import LiteNetwork
from converters.tflite.schema import read_lite_model
from converters.tflite.verify import LiteStream
from movinet_port.spec import ModelSpec
from movinet_port.streams import state_shapes
from movinet_port.wiring import INPUT, wiring
from parity.chunk_values import Array, ChunkValues
from parity.errors import ComparisonError
from parity.references.reference import channels_last, tap_value


class TfliteReference:
    """The operations of a TF Lite file, computed in float64.

    Quantised weights are the real numbers that they stand for, and nothing is rounded to 8 bits on
    the way. Activations that the converter folded away are no taps.

    Args:
        path: the file.
        name: for the report; by default the path.

    Attributes:
        spec: of the network, as `converters` reads it.
        taps: tap -> number of the file's tensor.
        size: (height, width) of the frames that the file takes.

    Raises:
        ConversionError: the file is damaged or no MoViNet.
    """

    def __init__(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        network = LiteNetwork(read_lite_model(Path(path)))
        found = network.variables()
        located = locate_variables(found)
        self.spec: ModelSpec = recognise(located, network, {}, stated=found.stated).spec
        self.parameters: Mapping[str, Tensor] = fill(self.spec, located)
        places = network.taps()
        self.taps = {tap: places[tap] for tap in wiring(self.spec) if tap in places}
        # By name, because not every tap of a MoViNet is in the file.
        self.table: Mapping[str, str] | None = {tap: tap for tap in self.taps}
        self._stream = LiteStream(network.model, network.constants_by_role())
        _, self._frames, *size, _ = self._stream.clip_shape
        self.size = size[0], size[1]
        self._states = state_shapes(self.spec, *self.size) if self.spec.causal else {}
        self.description: Mapping[str, Any] = {
            "kind": "tflite",
            "name": name or str(path),
            "network": f"{self.spec.name} {self.spec.mode}",
            "taps": len(self.taps),
            "stored as": network.quantised_as(),
        }

    def run(self, chunks: Sequence[Array]) -> list[ChunkValues]:
        """Return the activations for a video.

        Args:
            chunks: each (1, 3, frames, height, width), RGB in [0, 1], of the file's size.

        Raises:
            ComparisonError: the file takes clips of another shape.
        """
        self._stream.reset()
        return [self._chunk(chunk) for chunk in chunks]

    def _chunk(self, chunk: Array) -> ChunkValues:
        batch, _, frames, *size = chunk.shape
        if batch != 1 or tuple(size) != self.size or frames % self._frames:
            height, width = self.size
            raise ComparisonError(
                f"the clip is {batch} x {frames} frames of {size[0]} x {size[1]}; the file takes "
                f"one video of {height} x {width}, {self._frames} frames at a time: "
                f"--batch 1 --size {height}x{width}"
            )
        parts: dict[str, list[Array]] = {tap: [] for tap in self.taps}
        clip = torch.from_numpy(channels_last(chunk)).double()
        for piece in clip.split(self._frames, 1):
            values = self._stream.watch(piece, list(self.taps.values()))
            before: dict[str, Array] = {INPUT: np.moveaxis(piece.numpy(), -1, 1)}
            for tap, index in self.taps.items():
                before[tap] = tap_value(tap, values[index].numpy(), before, 1)
                parts[tap].append(before[tap])
        activations = {tap: _joined(tap, values) for tap, values in parts.items()}
        states = {}
        for argument, value in self._stream.states.items():
            name = state_name(argument)
            if name in self._states:
                array = value.numpy()
                wide = np.moveaxis(array, -1, 1) if array.ndim == 5 else array.astype(np.int64)
                states[name] = wide.astype(np.float32) if array.ndim == 5 else wide
        return ChunkValues({INPUT: chunk, **activations}, states)


def _joined(tap: str, values: list[Array]) -> Array:
    """Return the frames of several calls one after the other; behind the head's pool the last."""
    over_time = not tap.startswith("classifier")
    joined: Array = np.concatenate(values, 2) if over_time else values[-1]
    return joined.astype(np.float32)
