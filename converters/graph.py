"""The graph of a SavedModel's classifying signature, and small questions to it.

What a node computes of a few known values is computed by the interpreter's operations
(`Evaluator`), so that an activation is recognised by what it does and not by how it was written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from converters.containers import saved_model
from converters.containers.saved_model import SavedModel
from converters.errors import ConversionError
from converters.interpreter.graph import Graph, Value, flatten
from converters.interpreter.run import Interpreter

Array = NDArray[Any]

# The signature that classifies: of a stream export, and of a base export.
SIGNATURES = ("call", "serving_default")

# Computed value by value, wherever it stands; a reshape changes no value. No MoViNet has some of
# these: they are here so that another network's activation is not taken for none.
ELEMENTWISE = frozenset(
    ("Add", "AddV2", "Elu", "Erf", "Exp", "Identity", "IdentityN", "LeakyRelu", "Maximum")
)
ELEMENTWISE |= {"Minimum", "Mul", "Neg", "Pow", "RealDiv", "Relu", "Relu6", "Reshape", "Selu"}
ELEMENTWISE |= {"Sigmoid", "Softplus", "Softsign", "Square", "Sub", "Tanh"}


def load_graph(folder: Path) -> Graph:
    """Read the graph of a SavedModel's classifying signature.

    Args:
        folder: the SavedModel, with ``saved_model.pb`` in it.

    Raises:
        ConversionError: the file is damaged, or has no such signature.
    """
    saved = saved_model.read(folder)
    return flatten(saved, classifying_signature(saved))


def classifying_signature(saved: SavedModel) -> str:
    """Return the key of the signature that classifies.

    Raises:
        ConversionError: there is none.
    """
    for key in SIGNATURES:
        if key in saved.signatures:
            return key
    found = [key for key in saved.signatures if not key.startswith("__")]
    raise ConversionError(
        f"{saved.file}: no signature named {' or '.join(SIGNATURES)}, "
        f"found {', '.join(found) or 'none'}: not a MoViNet as its authors export it"
    )


class Evaluator:
    """Computes values of a graph from known ones and from constants, in float64.

    A reshape hands on what it gets: the known values have a shape of their own.
    """

    def __init__(self, graph: Graph) -> None:
        flat = Graph()
        for node in graph.nodes.values():
            if node.op == "Reshape":
                attr = {"T": node.attr["T"]} if "T" in node.attr else {}
                node = dataclasses.replace(node, op="Identity", inputs=node.inputs[:1], attr=attr)
            flat.nodes[node.name] = dataclasses.replace(node, controls=())
        variables: dict[int, Array] = {}
        self._run = Interpreter(flat, variables.__getitem__, dtype=torch.float64)

    def __call__(self, value: Value, known: Mapping[str, Array]) -> Array:
        """Compute `value`, given what some nodes give.

        Raises:
            ConversionError: it takes an operation that is not known, or a variable.
        """
        given = {(name, 0): torch.from_numpy(np.asarray(x)) for name, x in known.items()}
        (found,) = (x for _, x in self._run.stream({}, [value], given))
        return np.asarray(found.numpy())
