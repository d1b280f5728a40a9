"""The computation of a SavedModel's signature, read from ``saved_model.pb`` without running it.

`load_graph` parses the file, follows the function calls of one signature and gives a flat graph:
nodes joined by what flows between them. On it, small questions can be answered exactly: which
convolution uses this variable, with which strides, what is done to its output. Elementwise and
shape arithmetic is evaluated with numpy (`Graph.evaluate`), so that an activation is recognised
by what it computes and not by how it was written.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.errors import ConversionError
from converters.tensorflow import import_tensorflow
from converters.wire import SavedModelFile

Array = NDArray[Any]

# A value: (name of the node that makes it, number of the output).
Value = tuple[str, int]

_CALLS = frozenset({"StatefulPartitionedCall", "PartitionedCall"})

# Nodes that hand on their input; looked through when following what flows.
PASS_THROUGH = frozenset({"Identity", "IdentityN", "Reshape", "ReadVariableOp", "StopGradient"})


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation of the flat graph; `name` starts with the calls that led to it."""

    name: str
    op: str
    inputs: tuple[Value, ...]
    attr: Mapping[str, Any] = dataclasses.field(repr=False, compare=False)


class Graph:
    """A flat graph of one signature.

    Attributes:
        nodes: by name, in an order in which inputs come before what uses them.
        variables: object number (in the SavedModel's object graph) of each variable -> the value
            of its resource.
        inputs: signature's argument -> value.
        input_shapes: signature's argument -> shape, -1 for a free axis.
        outputs: signature's result -> value.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.variables: dict[int, Value] = {}
        self.inputs: dict[str, Value] = {}
        self.input_shapes: dict[str, tuple[int, ...]] = {}
        self.outputs: dict[str, Value] = {}
        self._consumers: dict[str, list[Node]] | None = None

    def consumers(self, name: str) -> list[Node]:
        """Return the nodes that use what node `name` makes."""
        if self._consumers is None:
            self._consumers = {}
            for node in self.nodes.values():
                for source in dict.fromkeys(source for source, _ in node.inputs):
                    self._consumers.setdefault(source, []).append(node)
        return self._consumers.get(name, [])

    def users(self, name: str) -> Iterator[tuple[Node, int]]:
        """Yield (node, input number) of what uses node `name`, looking through `PASS_THROUGH`."""
        for node in self.consumers(name):
            for position, (source, _) in enumerate(node.inputs):
                if source != name:
                    continue
                if node.op in PASS_THROUGH:
                    if position == 0 or node.op == "IdentityN":
                        yield from self.users(node.name)
                else:
                    yield node, position

    def source(self, value: Value) -> Node:
        """Return the node that makes `value`, looking through `PASS_THROUGH`."""
        node = self.nodes[value[0]]
        while node.op in PASS_THROUGH:
            node = self.nodes[node.inputs[value[1] if node.op == "IdentityN" else 0][0]]
        return node

    def evaluate(self, value: Value, known: Mapping[str, Array]) -> Array:
        """Compute `value` from `known` values of nodes and from constants.

        Raises:
            ConversionError: the computation needs an operation other than the elementwise and
                shape ones, or an input that is not known.
        """
        memo: dict[str, Array] = dict(known)
        stack = [value[0]]
        while stack:
            name = stack[-1]
            if name in memo:
                stack.pop()
                continue
            node = self.nodes[name]
            inputs = node.inputs[:1] if node.op == "Reshape" else node.inputs
            missing = [source for source, _ in inputs if source not in memo]
            if missing:
                stack += missing
                continue
            if node.op not in OPERATIONS:
                raise ConversionError(f"graph node {name}: operation {node.op} is not understood")
            try:
                with np.errstate(all="ignore"):
                    memo[name] = OPERATIONS[node.op](node, *(memo[source] for source, _ in inputs))
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                raise ConversionError(
                    f"graph node {name}: {node.op} cannot be computed ({error}); "
                    f"the file is damaged, get it again"
                ) from error
            stack.pop()
        return memo[value[0]]


def _strided_slice(node: Node, x: Array, begin: Array, end: Array, strides: Array) -> Array:
    masks = {
        name: node.attr[name].i if name in node.attr else 0
        for name in ("begin_mask", "end_mask", "shrink_axis_mask", "new_axis_mask", "ellipsis_mask")
    }
    if masks["new_axis_mask"] or masks["ellipsis_mask"]:
        raise ConversionError(f"graph node {node.name}: a slice with new axes is not understood")
    index: list[int | slice] = []
    for axis in range(len(begin)):
        if masks["shrink_axis_mask"] >> axis & 1:
            index.append(int(begin[axis]))
            continue
        index.append(
            slice(
                None if masks["begin_mask"] >> axis & 1 else int(begin[axis]),
                None if masks["end_mask"] >> axis & 1 else int(end[axis]),
                int(strides[axis]),
            )
        )
    return np.asarray(x[tuple(index)])


def _const(node: Node) -> Array:
    return np.asarray(import_tensorflow().make_ndarray(node.attr["value"].tensor))


def _pack(node: Node, *values: Array) -> Array:
    return np.stack(values, axis=node.attr["axis"].i if "axis" in node.attr else 0)


def _first(node: Node, x: Array, *_: Array) -> Array:
    return x


def _sigmoid(node: Node, x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _leaky_relu(node: Node, x: Array) -> Array:
    slope = node.attr["alpha"].f if "alpha" in node.attr else 0.2
    return np.where(x > 0, x, slope * x)


def _plain(function: Callable[..., Any]) -> Callable[..., Array]:
    return lambda node, *inputs: np.asarray(function(*inputs))


# Computed value by value, wherever it stands; a reshape changes no value. No MoViNet has some of
# these: they are here so that another network's activation is not taken for none.
ELEMENTWISE: dict[str, Callable[..., Array]] = {
    "Add": _plain(np.add),
    "AddV2": _plain(np.add),
    "Elu": _plain(lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0)))),
    "Erf": _plain(np.vectorize(math.erf, otypes=[float])),
    "Exp": _plain(np.exp),
    "Identity": _first,
    "IdentityN": _first,
    "LeakyRelu": _leaky_relu,
    "Maximum": _plain(np.maximum),
    "Minimum": _plain(np.minimum),
    "Mul": _plain(np.multiply),
    "Neg": _plain(np.negative),
    "Pow": _plain(np.power),
    "RealDiv": _plain(np.divide),
    "Relu": _plain(lambda x: np.maximum(x, 0)),
    "Relu6": _plain(lambda x: np.clip(x, 0, 6)),
    "Reshape": _first,
    "Selu": _plain(
        lambda x: 1.0507010 * np.where(x > 0, x, 1.6732632 * np.expm1(np.minimum(x, 0)))
    ),
    "Sigmoid": _sigmoid,
    "Softplus": _plain(lambda x: np.logaddexp(x, 0)),
    "Softsign": _plain(lambda x: x / (1 + np.abs(x))),
    "Square": _plain(np.square),
    "Sub": _plain(np.subtract),
    "Tanh": _plain(np.tanh),
}

OPERATIONS: dict[str, Callable[..., Array]] = {
    **ELEMENTWISE,
    "Cast": _first,
    "ConcatV2": lambda node, *inputs: np.concatenate(inputs[:-1], axis=int(inputs[-1])),
    "Const": _const,
    "FloorDiv": _plain(np.floor_divide),
    "FloorMod": _plain(np.mod),
    "Pack": _pack,
    "Prod": _plain(lambda x, axis: np.prod(x, axis=tuple(np.atleast_1d(axis)))),
    "Shape": _plain(np.shape),
    "StridedSlice": _strided_slice,
}


def argument_name(key: str) -> str:
    """Return the function argument that TensorFlow makes of a signature's input `key`."""
    return "".join(c if c.isalnum() else "_" for c in key)


def load_graph(folder: Path) -> Graph:
    """Read the graph of a SavedModel's serving signature.

    The signature is "call" of a stream export, or else "serving_default".

    Args:
        folder: the SavedModel, with ``saved_model.pb`` in it.

    Raises:
        ConversionError: the file is damaged, or has none of these signatures.
    """
    path = folder / "saved_model.pb"
    import_tensorflow()
    from google.protobuf.message import DecodeError

    try:
        return _load(path)
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read: {error.strerror}") from error
    # What a damaged file does to a parser and to whoever follows its references.
    except (LookupError, ValueError, TypeError, AttributeError, DecodeError) as error:
        raise ConversionError(
            f"{path}: not a SavedModel's graph ({type(error).__name__}: {error}); "
            f"the file is damaged, get it again"
        ) from error


# The signature that classifies: of a stream export, and of a base export.
SIGNATURES = ("call", "serving_default")


def _load(path: Path) -> Graph:
    file = SavedModelFile(path)
    nodes = file.object_graph.nodes
    signatures = {
        child.local_name: nodes[child.node_id]
        for top in nodes[0].children
        if top.local_name == "signatures"
        for child in nodes[top.node_id].children
    }
    key = next((key for key in SIGNATURES if key in signatures), None)
    if key is None:
        raise ConversionError(
            f"{path}: no signature named {' or '.join(SIGNATURES)}, found "
            f"{', '.join(signatures) or 'none'}: not a MoViNet as its authors export it"
        )
    name = signatures[key].bare_concrete_function.concrete_function_name
    if name not in file.functions:
        raise ConversionError(f"{path}: signature {key} calls {name!r}, which is not there")
    bound = list(file.object_graph.concrete_functions[name].bound_inputs)
    return _flatten(file.functions, name, bound, file.signatures[key])


def _flatten(functions: Mapping[str, Any], top: str, bound: list[int], signature: Any) -> Graph:
    graph = Graph()
    function = functions[top]
    arguments = [argument.name for argument in function.signature.input_arg]
    for name in arguments:
        graph.nodes[name] = Node(name, "Placeholder", (), {})
    free = len(arguments) - len(bound)
    for number, name in zip(bound, arguments[free:], strict=True):
        graph.variables[number] = (name, 0)
    sanitised = {argument_name(key): key for key in signature.inputs}
    for name in arguments[:free]:
        key = sanitised.get(name, name)
        graph.inputs[key] = (name, 0)
        graph.input_shapes[key] = tuple(d.size for d in signature.inputs[key].tensor_shape.dim)
    results = _inline(graph, functions, top, "", [(name, 0) for name in arguments], depth=0)
    for name, value in zip((r.name for r in function.signature.output_arg), results, strict=True):
        graph.outputs[name] = value
    return graph


_DEEPEST_CALL = 30


def _inline(
    graph: Graph,
    functions: Mapping[str, Any],
    name: str,
    prefix: str,
    arguments: list[Value],
    depth: int,
) -> list[Value]:
    """Add the nodes of function `name` to `graph`; return the values it returns."""
    if name not in functions or depth > _DEEPEST_CALL:
        raise ConversionError(f"saved_model.pb: function {name!r} is missing or calls itself")
    function = functions[name]
    values: dict[str, list[Value]] = {
        argument.name: [value]
        for argument, value in zip(function.signature.input_arg, arguments, strict=True)
    }
    pending = {node.name: node for node in function.node_def}

    def resolve(reference: str) -> Value:
        # "node:output name:number", or the bare name of an argument.
        node, _, rest = reference.partition(":")
        results = values[node]
        return results[min(int(rest.rpartition(":")[2] or 0), len(results) - 1)]

    # Nodes of a function are in no particular order.
    for root in list(pending):
        stack = [root]
        while stack:
            current = stack[-1]
            node = pending.get(current)
            if node is None or current in values:
                stack.pop()
                continue
            wanted = [reference for reference in node.input if not reference.startswith("^")]
            missing = [
                source
                for source in (reference.partition(":")[0] for reference in wanted)
                if source not in values
            ]
            if missing:
                if any(source not in pending or source in stack for source in missing):
                    raise ConversionError(
                        f"saved_model.pb: node {current!r} of {name!r} needs "
                        f"{missing[0]!r}, which is not there; the file is damaged"
                    )
                stack += missing
                continue
            inputs = [resolve(reference) for reference in wanted]
            full = f"{prefix}{current}"
            if node.op in _CALLS:
                called = node.attr["f"].func.name
                values[current] = _inline(graph, functions, called, f"{full}/", inputs, depth + 1)
            else:
                graph.nodes[full] = Node(full, node.op, tuple(inputs), node.attr)
                many = node.op in ("IdentityN", "Split", "Unpack")
                values[current] = [(full, n) for n in range(max(1, len(inputs) if many else 1))]
            stack.pop()
    return [resolve(function.ret[result.name]) for result in function.signature.output_arg]
