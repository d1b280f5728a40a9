"""What every reader gets out of a file: named arrays, and whatever else the file says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from converters.dialects import OBJECT_PATH, Dialect

# The largest network's weights take 130 MB; what claims to be far larger is damaged.
MOST_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Variable:
    """One variable of a source.

    Attributes:
        path: its name in the file, spelt as the file's `Dialect` says: the object path from the
            root, such as ``layer_with_weights-0/layer_with_weights-1/_expansion/_conv/kernel``; the
            path of a dataset; or a state dict's key.
        full_name: TensorFlow's name for it, where the path is another; may be empty.
        shape: in the file's layout.
        dtype: numpy name.
        node: number of the object in the source's object graph; -1 if there is no such graph.
        read: reads the values; raises `ConversionError` if the file is damaged.
    """

    path: str
    full_name: str
    shape: tuple[int, ...]
    dtype: str
    node: int
    read: Callable[[], NDArray[Any]] = dataclasses.field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.path} ({self.full_name})" if self.full_name else self.path


@dataclasses.dataclass(frozen=True)
class SourceVariables:
    """A file's variables, and how they are spelt.

    Attributes:
        variables: all of them, whether they are the network's or not.
        dialect: how their paths are spelt.
        layers: what a path starts with -> bottleneck layer, where neither path nor full name say.
        stated: field of `ModelSpec` -> (value, where the file says so).
        facts: what else the file says of itself, for people and the provenance.
        labels: the classes' names, if the file has them.
        size: (height, width) of the frames that the file takes, if it takes one size only.
    """

    variables: Sequence[Variable]
    dialect: Dialect = OBJECT_PATH
    layers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stated: Mapping[str, tuple[Any, str]] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] = ()
    size: tuple[int, ...] = ()
