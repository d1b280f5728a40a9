"""What runs a flat graph: one row an engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

from converters.errors import ConversionError
from converters.interpreter.graph import Graph, Value
from converters.interpreter.run import Interpreter
from converters.interpreter.tensorflow_engine import TensorFlowEngine

Array: TypeAlias = NDArray[Any]


class Engine(Protocol):
    """Runs a graph; `Interpreter` says what its methods do."""

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return the signature's results, given its arguments."""
        ...

    def stream(
        self, inputs: Mapping[str, Tensor], fetches: Sequence[Value]
    ) -> Iterator[tuple[Value, Tensor]]:
        """Yield each value of `fetches` once."""
        ...


@dataclasses.dataclass(frozen=True)
class Kind:
    """A row of the table.

    Attributes:
        make: graph, value of a captured object by its number, options -> engine.
        exact: whether it computes in float64, too: `make` has the options of `Interpreter`.
    """

    make: Callable[..., Engine]
    exact: bool


DEFAULT = "pytorch"
ENGINES = {
    DEFAULT: Kind(Interpreter, exact=True),
    "tensorflow": Kind(TensorFlowEngine, exact=False),
}


def make_engine(
    name: str, graph: Graph, captured: Callable[[int], Array], *, exact: bool = False
) -> Engine:
    """Return an engine for a graph.

    Args:
        name: a key of `ENGINES`.
        graph: of a signature.
        captured: number of a captured object -> its value, see `SavedModel.value`.
        exact: compute in float64, with constants as the decimals that were meant.

    Raises:
        ConversionError: there is no such engine, it has no float64, or it cannot run the graph.
        TensorFlowMissingError: the engine is TensorFlow, which is not installed.
    """
    if name not in ENGINES:
        raise ConversionError(f"engine is {name!r}, expected one of {', '.join(ENGINES)}")
    if not exact:
        return ENGINES[name].make(graph, captured)
    if not ENGINES[name].exact:
        raise ConversionError(f"engine {name} computes in float32 alone")
    return ENGINES[name].make(graph, captured, dtype=torch.float64, decimals=True)
