"""The flat graph of a SavedModel's signature: every function call inlined, every output by number.

`flatten` follows the calls without recursion and with counted limits, so that a file made to hurt
ends in one line. What it cannot resolve exactly (a node that is missing, an output that the
operation does not have) is an error that names the node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from converters.containers.saved_model import SavedModel
from converters.errors import ConversionError
from converters.interpreter.operations import OPERATIONS, UnsupportedError

# A value: (name of the node that makes it, number of the output).
Value = tuple[str, int]

# Number of an output of an operation that the table does not have: it is never computed.
UNKNOWN = -1

MOST_NODES = 200_000
DEEPEST_CALL = 30

_CALLS = frozenset({"StatefulPartitionedCall", "PartitionedCall"})

# Nodes that hand on their input; looked through when following what flows.
PASS_THROUGH = frozenset({"Identity", "IdentityN", "Reshape", "ReadVariableOp", "StopGradient"})


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation of the flat graph.

    Attributes:
        name: TensorFlow's, behind the names of the calls that led to it.
        op: operation; "Placeholder" of the signature's arguments and of what it captures; "NoOp"
            of a call, once that is inlined.
        inputs: the values it takes.
        attr: attribute -> ``AttrValue``.
        controls: nodes that TensorFlow runs before this one, though no value of them is taken.
        type: TensorFlow's number of a placeholder's type.
    """

    name: str
    op: str
    inputs: tuple[Value, ...]
    attr: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    controls: tuple[str, ...] = ()
    type: int = 0


class Graph:
    """A flat graph of one signature.

    Attributes:
        nodes: by name, in an order in which inputs come before what uses them.
        captured: object number (in the SavedModel's object graph) of each variable and constant
            that the function captures -> its placeholder.
        inputs: signature's argument -> value.
        input_shapes: signature's argument -> shape, -1 for a free axis.
        outputs: signature's result -> value.
        controls: nodes that TensorFlow runs with the signature, whatever is taken of them.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.captured: dict[int, Value] = {}
        self.inputs: dict[str, Value] = {}
        self.input_shapes: dict[str, tuple[int, ...]] = {}
        self.outputs: dict[str, Value] = {}
        self.controls: tuple[str, ...] = ()
        self._consumers: dict[str, list[Node]] | None = None

    def add(self, node: Node) -> None:
        """Add a node whose inputs are there.

        Raises:
            ConversionError: there is one of this name, or there are too many.
        """
        if node.name in self.nodes:
            raise ConversionError(f"two nodes are named {node.name!r}")
        if len(self.nodes) >= MOST_NODES:
            raise ConversionError(
                f"node {node.name!r}: more than {MOST_NODES} nodes; no network "
                f"that is read here has as many"
            )
        self.nodes[node.name] = node

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
        pending = [name]
        while pending:
            current = pending.pop()
            for node in self.consumers(current):
                for position, (source, _) in enumerate(node.inputs):
                    if source != current:
                        continue
                    if node.op not in PASS_THROUGH:
                        yield node, position
                    elif position == 0 or node.op == "IdentityN":
                        pending.append(node.name)

    def source(self, value: Value) -> Node:
        """Return the node that makes `value`, looking through `PASS_THROUGH`."""
        node = self.nodes[value[0]]
        while node.op in PASS_THROUGH:
            value = node.inputs[value[1] if node.op == "IdentityN" else 0]
            node = self.nodes[value[0]]
        return node


def flatten(saved: SavedModel, key: str) -> Graph:
    """Return the flat graph of a signature.

    Args:
        saved: the SavedModel.
        key: of the signature.

    Raises:
        ConversionError: there is no such signature, or its functions are damaged.
    """
    if key not in saved.signatures:
        raise ConversionError(
            f"{saved.path}: no signature named {key}, found "
            f"{', '.join(sorted(saved.signatures)) or 'none'}"
        )
    signature = saved.signatures[key]
    try:
        call = _call_of(saved, signature)
        name = call.attr["f"].func.name
        function = _function(saved.functions, name)
        bound: tuple[int, ...] = ()
        if name in saved.object_graph.concrete_functions:
            bound = tuple(saved.object_graph.concrete_functions[name].bound_inputs)
        arguments = list(function.signature.input_arg)
        free = len(arguments) - len(bound)
        fed = [reference for reference in call.input if not reference.startswith("^")]
        if free < 0 or len(fed) != len(arguments):
            raise ConversionError(
                f"function {name!r} takes {len(arguments)} values, the signature "
                f"gives {len(fed)}, {len(bound)} of them captured"
            )
        graph = Graph()
        for argument in arguments:
            graph.add(Node(argument.name, "Placeholder", (), type=argument.type))
        for number, argument in zip(bound, arguments[free:], strict=True):
            if number in graph.captured:
                raise ConversionError(f"object {number} is captured twice")
            graph.captured[number] = (argument.name, 0)
        positions = {reference.partition(":")[0]: n for n, reference in enumerate(fed[:free])}
        for argument_key, info in signature.inputs.items():
            position = positions.get(info.name.partition(":")[0])
            if position is None:
                raise ConversionError(
                    f"argument {argument_key!r} of signature {key} reaches nothing"
                )
            graph.inputs[argument_key] = (arguments[position].name, 0)
            graph.input_shapes[argument_key] = tuple(d.size for d in info.tensor_shape.dim)
        results = _Inliner(graph, saved.functions).run(name)
        for result_key, info in signature.outputs.items():
            number = info.name.rpartition(":")[2]
            if not _is_number(number) or int(number) >= len(results):
                raise ConversionError(
                    f"result {result_key!r} is output {number} of {name!r}, which "
                    f"has {len(results)}"
                )
            graph.outputs[result_key] = results[int(number)]
    except ConversionError as error:
        raise ConversionError(
            f"{saved.file}: {error}; the file is damaged, get it again"
        ) from error
    return graph


def _call_of(saved: SavedModel, signature: Any) -> Any:
    """Return the node of the top-level graph that a signature's results come from."""
    callers = {info.name.partition(":")[0] for info in signature.outputs.values()}
    found = [node for node in saved.graph.node if node.name in callers]
    if len(callers) != 1 or len(found) != 1 or found[0].op not in _CALLS:
        raise ConversionError(
            f"the signature's results come from "
            f"{', '.join(sorted(callers)) or 'nowhere'}, expected one call of a function"
        )
    return found[0]


def _function(functions: Mapping[str, Any], name: str) -> Any:
    if name not in functions:
        raise ConversionError(f"function {name!r} is missing or calls itself")
    return functions[name]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


@dataclasses.dataclass(frozen=True)
class _Results:
    """What a node of a function gives: (name, number of tensors) of its outputs, and their values.

    Of an operation the table does not have, `outputs` is None.
    """

    node: str
    outputs: tuple[tuple[str, int], ...] | None
    values: Sequence[Value] | None = None

    def value(self, number: int) -> Value:
        return (self.node, number) if self.values is None else self.values[number]


@dataclasses.dataclass
class _Frame:
    """A function that is being inlined; `stack` holds nodes that wait for their inputs."""

    name: str
    prefix: str
    function: Any
    pending: dict[str, Any]
    results: dict[str, _Results]
    stack: list[str]
    waiting: set[str] = dataclasses.field(default_factory=set)


class _Inliner:
    """Adds the nodes of a function, and of those it calls, to a graph."""

    def __init__(self, graph: Graph, functions: Mapping[str, Any]) -> None:
        self._graph = graph
        self._functions = functions
        self._parsed: dict[str, Any] = {}
        self._frames: list[_Frame] = []

    def run(self, name: str) -> list[Value]:
        """Inline the function on the placeholders of the same names; return its results."""
        self._enter(name, "", None)
        while True:
            frame = self._frames[-1]
            if frame.stack:
                self._advance(frame)
                continue
            returned = [self._returned(frame, r.name) for r in frame.function.signature.output_arg]
            self._frames.pop()
            controls = self._controls(frame)
            if not self._frames:
                self._graph.controls = controls
                return returned
            self._leave(returned, controls)

    def _enter(self, name: str, prefix: str, arguments: Sequence[Value] | None) -> None:
        if len(self._frames) >= DEEPEST_CALL:
            raise ConversionError(f"function {name!r} is missing or calls itself")
        if name not in self._parsed:
            self._parsed[name] = _function(self._functions, name)
        function = self._parsed[name]
        names = [argument.name for argument in function.signature.input_arg]
        if arguments is None:
            arguments = [(argument, 0) for argument in names]
        if len(arguments) != len(names):
            raise ConversionError(
                f"node {prefix.rstrip('/')!r} gives {len(arguments)} values to "
                f"function {name!r}, which takes {len(names)}"
            )
        results = {
            argument: _Results(value[0], ((argument, 1),), [value])
            for argument, value in zip(names, arguments, strict=True)
        }
        pending = {node.name: node for node in function.node_def}
        if len(pending) != len(function.node_def) or pending.keys() & results.keys():
            raise ConversionError(f"function {name!r} has two nodes of one name")
        # Nodes of a function are in no particular order; from the last, so that the first is next.
        stack = list(reversed(pending))
        self._frames.append(_Frame(name, prefix, function, pending, results, stack))

    def _advance(self, frame: _Frame) -> None:
        """Take the node on top of the stack, or first what it needs."""
        current = frame.stack[-1]
        if current in frame.results:
            frame.stack.pop()
            return
        node = frame.pending[current]
        sources = [reference.lstrip("^").partition(":")[0] for reference in node.input]
        missing = [source for source in sources if source not in frame.results]
        if missing:
            frame.waiting.add(current)
            for source in missing:
                if source not in frame.pending or source in frame.waiting:
                    raise ConversionError(
                        f"node {current!r} of {frame.name!r} needs {source!r}, which is not there"
                    )
            frame.stack += dict.fromkeys(missing)
            return
        full = f"{frame.prefix}{current}"
        inputs = [self._resolve(frame, r, full) for r in node.input if not r.startswith("^")]
        if node.op in _CALLS:
            frame.waiting.add(current)
            self._enter(node.attr["f"].func.name, f"{full}/", inputs)
            return
        controls = tuple(
            frame.results[r[1:].partition(":")[0]].node for r in node.input if r.startswith("^")
        )
        self._graph.add(Node(full, node.op, tuple(inputs), node.attr, controls))
        frame.results[current] = _Results(full, self._outputs(full, node))

    def _leave(self, returned: list[Value], controls: Sequence[str]) -> None:
        """Give the results of a call to the function that it stands in."""
        caller = self._frames[-1]
        current = caller.stack[-1]
        full = f"{caller.prefix}{current}"
        before = [value[0] for value in returned]
        before += [
            caller.results[reference[1:].partition(":")[0]].node
            for reference in caller.pending[current].input
            if reference.startswith("^")
        ]
        self._graph.add(Node(full, "NoOp", (), {}, tuple(dict.fromkeys([*before, *controls]))))
        caller.results[current] = _Results(full, (("output", len(returned)),), returned)

    @staticmethod
    def _controls(frame: _Frame) -> tuple[str, ...]:
        """Return the nodes that a function runs, whatever is taken of them."""
        sources = frame.function.control_ret.values()
        missing = [source for source in sources if source not in frame.results]
        if missing:
            raise ConversionError(
                f"function {frame.name!r} needs {missing[0]!r}, which is not there"
            )
        return tuple(frame.results[source].node for source in sources)

    @staticmethod
    def _outputs(full: str, node: Any) -> tuple[tuple[str, int], ...] | None:
        operation = OPERATIONS.get(node.op)
        if operation is None:
            return None
        several = any(output.number or output.listed for output in operation.outputs)
        try:
            attributes = operation.read(node.attr) if several else {}
            return tuple(
                (output.name, len(output.types(attributes)) if several else 1)
                for output in operation.outputs
            )
        except UnsupportedError as error:
            raise ConversionError(f"node {full!r} ({node.op}): {error}") from error

    def _returned(self, frame: _Frame, result: str) -> Value:
        reference = frame.function.ret.get(result, "")
        source = reference.partition(":")[0]
        if source not in frame.results:
            raise ConversionError(
                f"result {result!r} of {frame.name!r} is {reference!r}, which is not there"
            )
        return self._resolve(frame, reference, f"{frame.prefix}{result}")

    @staticmethod
    def _resolve(frame: _Frame, reference: str, user: str) -> Value:
        """Return the value of "node:output name:number", "node:number", or a bare name."""
        name, *rest = reference.split(":")
        found = frame.results[name]
        if found.outputs is None:
            return found.node, UNKNOWN
        count = sum(n for _, n in found.outputs)
        first, number = 0, rest[-1] if rest else "0"
        if len(rest) == 2:
            for output, length in found.outputs:
                if output == rest[0]:
                    count = first + length
                    break
                first += length
            else:
                count = -1
        if len(rest) > 2 or not _is_number(number) or first + int(number) >= count:
            raise ConversionError(
                f"node {user!r} takes {reference!r}; the outputs of that node are "
                f"{', '.join(f'{output} ({n})' for output, n in found.outputs) or 'none'}"
            )
        return found.value(first + int(number))
