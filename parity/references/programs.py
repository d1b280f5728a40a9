"""Other PyTorch networks and any programs as references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from movinet_port.wiring import INPUT
from parity.chunk_values import Array, ChunkValues
from parity.compared_model import ComparedModel
from parity.references.reference import channels_last


class FunctionReference:
    """Any program that gives named activations, with the pairing of names as data.

    Args:
        function: from one chunk to (activations, or activations and states), arrays by name.
        table: name of an activation -> path of the module in the PyTorch network.
        name: for the report.
        channels_last: whether the function takes and gives (batch, ..., channels).
        parameters: of the reference, under the PyTorch network's names and layouts.
    """

    def __init__(
        self,
        function: Callable[[Array], Mapping[str, Any]],
        table: Mapping[str, str],
        name: str = "function",
        *,
        channels_last: bool = False,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.table: Mapping[str, str] | None = dict(table)
        self.parameters: Mapping[str, Tensor] = dict(parameters or {})
        self.description: Mapping[str, Any] = {"kind": "function", "name": name}
        self._function = function
        self._channels_last = channels_last

    def run(self, chunks: Sequence[Array]) -> list[ChunkValues]:
        """Return what the function gives for each chunk."""
        return [self._values(chunk) for chunk in chunks]

    def _values(self, chunk: Array) -> ChunkValues:
        given = channels_last(chunk) if self._channels_last else chunk
        # Copies: TensorFlow's own memory must not be written to.
        found = {name: np.array(value) for name, value in self._function(given).items()}
        if self._channels_last:
            found = {
                name: np.ascontiguousarray(np.moveaxis(value, -1, 1)) if value.ndim > 2 else value
                for name, value in found.items()
            }
        return ChunkValues({INPUT: chunk, **found})


class ModelReference:
    """Another PyTorch network.

    Args:
        model: any module; it is run as it is.
        table: name of an activation -> path of the module in the network under test.
        paths: name of an activation -> path of the module in `model`; by default as in `table`.
        name: for the report.
    """

    def __init__(
        self,
        model: nn.Module,
        table: Mapping[str, str] | None = None,
        paths: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> None:
        self.table = table
        self._model = ComparedModel(model, paths or table)
        self.parameters: Mapping[str, Tensor] = self._model.parameters()
        self.description: Mapping[str, Any] = {
            "kind": "pytorch",
            "name": name or type(model).__name__,
        }

    def run(self, chunks: Sequence[Array]) -> list[ChunkValues]:
        """Return the network's activations."""
        recorded = self._model.run(chunks)
        return [
            ChunkValues(
                {name: value.float().numpy() for name, value in values.activations.items()},
                {name: value.numpy() for name, value in values.states.items()},
            )
            for values in recorded
        ]
