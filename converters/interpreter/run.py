"""Running a flat graph in PyTorch, node by node.

Numbers are float32, as in TensorFlow, or float64, which holds every float32 of the file exactly;
constants may be read as the decimals that were meant. Floats are on the device that is asked for;
integers and truth values, which are shapes and indices, stay on the CPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from converters.errors import ConversionError
from converters.interpreter.graph import Graph, Node, Value
from converters.interpreter.operations import (
    MOST_ELEMENTS,
    OPERATIONS,
    RESOURCE,
    TYPES,
    Attributes,
    Operation,
    UnsupportedError,
)
from converters.tensors import ndarray_from_tensor_proto

Array: TypeAlias = NDArray[Any]

# Somebody wrote a constant this small; a larger one is weights, which are what they are.
MOST_WRITTEN = 16
_LARGEST_DIVISOR = 1 << 20


def meant(value: float) -> float:
    """Return the number that was written where `value`, rounded to float32, stands now.

    That is its shortest decimal, if short enough to have been written (0.2, 0.16667), or 1/n of an
    integer n (a mean over n cells); otherwise the value itself.
    """
    narrow = np.float32(value)
    if not np.isfinite(narrow) or not narrow:
        return value
    decimal = np.format_float_scientific(narrow, unique=True, trim="-")
    digits = len(decimal.partition("e")[0].strip("-").replace(".", ""))
    if digits > 6:
        divisor = round(1 / float(narrow)) if abs(narrow) > 1 / _LARGEST_DIVISOR else 0
        if divisor and np.float32(1 / divisor) == narrow:
            return 1 / divisor
    return float(decimal) if digits <= 7 else value


@dataclasses.dataclass(frozen=True)
class _Step:
    node: Node
    compute: Callable[..., Any]
    attributes: Attributes
    # Nodes whose outputs nothing needs after this one.
    freed: tuple[str, ...]
    fetched: tuple[Value, ...]


class Interpreter:
    """Runs one flat graph.

    Args:
        graph: of a signature.
        captured: number of a captured object -> its value, see `SavedModel.value`.
        dtype: what float32 of the file is computed in: float32 or float64.
        device: of the floats.
        decimals: read the small float32 constants of the graph as the decimals that were meant.
    """

    def __init__(
        self,
        graph: Graph,
        captured: Callable[[int], Array],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        decimals: bool = False,
    ) -> None:
        self.graph = graph
        self.dtype = dtype
        self.device = torch.device(device)
        self._decimals = decimals
        # Now, because the files may be gone when it runs.
        self._captured = {value[0]: captured(number) for number, value in graph.captured.items()}
        self._arguments = {value[0]: key for key, value in graph.inputs.items()}
        self._constants: dict[str, Tensor] = {}
        self._types: dict[str, tuple[int, ...]] = {}
        self._plans: dict[tuple[tuple[Value, ...], frozenset[Value]], list[_Step]] = {}

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return the signature's results.

        Args:
            inputs: signature's argument -> value.

        Raises:
            ConversionError: an argument is missing, unknown or of another type, or a node cannot
                be computed; the message names it.
        """
        found = dict(self.stream(inputs, list(self.graph.outputs.values())))
        return {key: found[value] for key, value in self.graph.outputs.items()}

    def stream(
        self,
        inputs: Mapping[str, Tensor],
        fetches: Sequence[Value],
        known: Mapping[Value, Tensor] | None = None,
    ) -> Iterator[tuple[Value, Tensor]]:
        """Yield each value of `fetches` once, as soon as it is computed.

        What no later node needs is freed, so that who does not keep the values needs the memory of
        a few.

        Args:
            inputs: signature's argument -> value.
            fetches: (node, number of its output) of any node.
            known: what some nodes give, which are then not computed; of nodes with one output.

        Raises:
            ConversionError: as of `__call__`, or there is no such value.
        """
        known = known or {}
        key = tuple(dict.fromkeys(fetches)), frozenset(known)
        if key not in self._plans:
            self._plans[key] = self._plan(*key)
        given = self._given(inputs)
        values: dict[str, tuple[Tensor, ...]] = {}
        for step in self._plans[key]:
            node = step.node
            if (node.name, 0) in known:
                values[node.name] = (known[node.name, 0],)
            elif node.op in ("Placeholder", "Const", "ReadVariableOp"):
                argument = self._arguments.get(node.name)
                if argument is not None and argument not in given:
                    raise ConversionError(f"the graph needs its argument {argument}")
                values[node.name] = (
                    given[argument] if argument is not None else self._constant(node),
                )
            else:
                values[node.name] = self._compute(
                    step, [values[name][number] for name, number in node.inputs]
                )
            for value in step.fetched:
                yield value, values[node.name][value[1]]
            for name in step.freed:
                del values[name]

    def _given(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {}
        for key, value in inputs.items():
            if key not in self.graph.inputs:
                raise ConversionError(
                    f"the graph has no argument {key}; it takes "
                    f"{', '.join(sorted(self.graph.inputs)) or 'nothing'}"
                )
            expected = self._torch_type(self.graph.nodes[self.graph.inputs[key][0]])
            if value.is_floating_point() != expected.is_floating_point or (
                not value.is_floating_point() and value.dtype != expected
            ):
                raise ConversionError(f"argument {key} is {value.dtype}, expected {expected}")
            given[key] = self._placed(value.detach().to(expected))
        return given

    def _torch_type(self, placeholder: Node) -> torch.dtype:
        return self._dtype(self._known_type(placeholder, placeholder.type))

    def _dtype(self, number: int) -> torch.dtype:
        return self.dtype if number == 1 else TYPES[number]

    @staticmethod
    def _known_type(node: Node, number: int) -> int:
        if number not in TYPES:
            raise _refused(node, f"data type {number} is not known")
        return number

    def _placed(self, value: Tensor) -> Tensor:
        return value.to(self.device if value.is_floating_point() else "cpu")

    def _constant(self, node: Node) -> Tensor:
        """Return the value of a constant, a variable or a captured constant."""
        if node.name not in self._constants:
            try:
                if node.op == "Const":
                    array = ndarray_from_tensor_proto(node.attr["value"].tensor)
                    kind = node.attr["value"].tensor.dtype
                else:
                    holder = node.inputs[0][0] if node.inputs else node.name
                    if holder not in self._captured:
                        raise ValueError("its value is not given")
                    array = self._captured[holder]
                    kind = self._types[node.name][0]
                if self._types[node.name] != (kind,):
                    raise ValueError(f"it holds data type {kind}, not {self._types[node.name][0]}")
                value = torch.from_numpy(np.require(array, requirements=["C", "W"]))
                if value.dtype != TYPES[kind]:
                    raise ValueError(f"it holds {value.dtype}, not {TYPES[kind]}")
                value = value.to(self._dtype(kind))
                written_down = node.op != "ReadVariableOp" and value.numel() <= MOST_WRITTEN
                if self._decimals and kind == 1 and written_down:
                    written = [meant(number) for number in value.flatten().tolist()]
                    value = torch.tensor(written, dtype=self.dtype).reshape(value.shape)
            except (TypeError, ValueError, KeyError) as error:
                raise _refused(node, error) from error
            self._constants[node.name] = self._placed(value)
        return self._constants[node.name]

    def _compute(self, step: _Step, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        try:
            found = step.compute(step.attributes, *inputs)
        # PyTorch's errors for shapes that do not fit, sizes that no memory holds, missing kernels.
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise _refused(step.node, error) from error
        outputs = (found,) if isinstance(found, Tensor) else tuple(found)
        if any(value.numel() > MOST_ELEMENTS for value in outputs):
            raise _refused(step.node, f"it gives more than {MOST_ELEMENTS} numbers")
        return tuple(map(self._placed, outputs))

    def _plan(self, fetches: tuple[Value, ...], known: frozenset[Value]) -> list[_Step]:
        """Return the steps that compute some values, in the order of the graph."""
        nodes = self.graph.nodes
        for name, _ in (*fetches, *known):
            if name not in nodes:
                raise ConversionError(f"the graph has no node {name!r}")
        wanted = {name for name, _ in fetches}
        ends = {name for name, _ in known}
        needed = self._closure(wanted, ends, controls=False)
        # Whatever TensorFlow would run must be known, though only values are computed.
        for name in self._closure(wanted | set(self.graph.controls), ends, controls=True):
            if nodes[name].op not in OPERATIONS:
                raise _refused(nodes[name], "this operation is not known")
        order = [nodes[name] for name in nodes if name in needed]
        prepared = {node.name: self._prepare(node, node.name in ends) for node in order}
        last = {source: node.name for node in order for source, _ in node.inputs}
        freed: dict[str, list[str]] = {}
        for node in order:
            freed.setdefault(last.get(node.name, node.name), []).append(node.name)
        fetched: dict[str, list[Value]] = {}
        for value in fetches:
            if not 0 <= value[1] < len(self._types[value[0]]):
                raise _refused(nodes[value[0]], f"it has no output {value[1]}")
            fetched.setdefault(value[0], []).append(value)
        return [
            _Step(
                node,
                prepared[node.name][0].compute,
                prepared[node.name][1],
                tuple(freed.get(node.name, ())),
                tuple(fetched.get(node.name, ())),
            )
            for node in order
        ]

    def _closure(self, names: set[str], ends: set[str], controls: bool) -> set[str]:
        """Return the nodes that some need, themselves too; what is before `ends` is not needed."""
        found, pending = set(names), list(names)
        while pending:
            node = self.graph.nodes[pending.pop()]
            if node.name in ends:
                continue
            # A variable is read by its number; its resource is no value.
            sources = () if node.op == "ReadVariableOp" else [name for name, _ in node.inputs]
            for source in (*sources, *(node.controls if controls else ())):
                if source not in found:
                    found.add(source)
                    pending.append(source)
        return found

    def _type_of(self, value: Value, user: Node) -> int:
        types = self._types.get(value[0], ())
        if not 0 <= value[1] < len(types):
            raise _refused(user, f"it takes output {value[1]} of {value[0]}, which is not there")
        return types[value[1]]

    def _prepare(self, node: Node, known: bool) -> tuple[Operation, Attributes]:
        """Check a node's attributes and the types of its inputs, and note those of its outputs."""
        operation = OPERATIONS[node.op]
        if node.type:
            self._types[node.name] = (node.type,)
            return operation, {}
        try:
            attributes = operation.read(node.attr)
            expected = tuple(t for argument in operation.inputs for t in argument.types(attributes))
            outputs = tuple(t for argument in operation.outputs for t in argument.types(attributes))
        except UnsupportedError as error:
            raise _refused(node, error) from error
        for number in (*expected, *outputs):
            if number != RESOURCE:
                self._known_type(node, number)
        found = expected
        if node.op == "ReadVariableOp":
            found = (self.graph.nodes[node.inputs[0][0]].type,)
        elif not known:
            found = tuple(self._type_of(value, node) for value in node.inputs)
        if found != expected:
            raise _refused(node, f"its inputs are of data types {found}, expected {expected}")
        self._types[node.name] = outputs
        for name, kind in operation.attributes.items():
            if kind == "type":
                attributes[name] = self._dtype(self._known_type(node, attributes[name]))
            elif kind == "float" and self._decimals:
                attributes[name] = meant(attributes[name])
        return operation, attributes


def _refused(node: Node, reason: object) -> ConversionError:
    text = (str(reason).splitlines() or [type(reason).__name__])[0]
    return ConversionError(f"graph node {node.name}: {node.op} cannot be computed: {text}")
