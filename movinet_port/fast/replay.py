"""A function of tensors recorded as the operations that it calls, and run again without Python.

A frame of a small network is some 300 operations of a few microseconds. Python takes a seventh of
the time between them; PyTorch's own interpreter of graphs, TorchScript's, hardly any. Recorded are
PyTorch's operations themselves, so the results are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

TensorFunction: TypeAlias = Callable[..., Sequence[Tensor]]

# How graphs write an element's type for lists of what schemas call it.
_ELEMENTS = {"int": "int", "float": "float", "bool": "bool", "Optional[number]": "Scalar?"}


class _Cannot(Exception):
    """There is an operation that cannot be written down."""


class _Recorder(TorchDispatchMode):
    """Writes down, as a graph in TorchScript's own notation, what is called meanwhile."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        # What stands for each tensor. Whoever is named is kept, so that no other gets its id.
        self._names: dict[int, str] = {}
        self._kept: list[Tensor] = []
        self.parameters = [self._name(tensor) for tensor in inputs]
        # Tensors that were there before, such as weights.
        self.others: list[Tensor] = []
        self._constants: dict[tuple[str, str], str] = {}
        self._lines: list[str] = []

    def _name(self, tensor: Tensor) -> str:
        # What an operation writes into is what it returns.
        if id(tensor) not in self._names:
            self._names[id(tensor)] = f"%{len(self._names)}"
            self._kept.append(tensor)
        return self._names[id(tensor)]

    def _constant(self, value: str, kind: str) -> str:
        if (value, kind) not in self._constants:
            name = self._constants[value, kind] = f"%c{len(self._constants)}"
            self._lines.append(f"{name} : {kind} = {value}")
        return self._constants[value, kind]

    def _argument(self, value: Any, kind: str) -> str:
        if isinstance(value, Tensor):
            if id(value) not in self._names:
                self.parameters.append(self._name(value))
                self.others.append(value)
            return self._names[id(value)]
        if value is None:
            return self._constant("prim::Constant()", "NoneType")
        if isinstance(value, (list, tuple)):
            kind = kind.removeprefix("Optional[List[").removeprefix("List[").rstrip("]")
            kind = "Optional[number]" if kind == "Optional[number" else kind
            if kind not in _ELEMENTS:
                raise _Cannot(kind)
            items = ", ".join(self._argument(item, kind) for item in value)
            return self._constant(f"prim::ListConstruct({items})", f"{_ELEMENTS[kind]}[]")
        if isinstance(value, (bool, int)):
            kind = type(value).__name__
            return self._constant(f"prim::Constant[value={int(value)}]()", kind)
        if isinstance(value, float):
            return self._constant(f"prim::Constant[value={value!r}]()", "float")
        if isinstance(value, str):
            return self._constant(f'prim::Constant[value="{value}"]()', "str")
        raise _Cannot(kind)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Or PyTorch imports its compiler, which takes a second and 80 MB.
        return False

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        found = operation(*args, **kwargs)
        schema = operation._schema
        arguments = []
        for index, argument in enumerate(schema.arguments):
            value = argument.default_value
            if index < len(args):
                value = args[index]
            elif argument.name in kwargs:
                value = kwargs[argument.name]
            arguments.append(self._argument(value, str(argument.type)))
        results = found if isinstance(found, (tuple, list)) else [found]
        if [str(result.type) for result in schema.returns] != ["Tensor"] * len(results):
            raise _Cannot(schema.name)
        # An operation that writes returns a name that is taken: that of its result is not used.
        names = []
        for index, result in enumerate(results):
            taken = id(result) in self._names
            names.append(f"%w{len(self._lines)}_{index}" if taken else self._name(result))
        typed = ", ".join(f"{name} : Tensor" for name in names)
        self._lines.append(f"{typed} = {schema.name}({', '.join(arguments)})")
        return found

    def graph(self, results: Sequence[Tensor]) -> str:
        """Return what was written, from the inputs and the other tensors to the results."""
        parameters = ", ".join(f"{name} : Tensor" for name in self.parameters)
        names = [self._argument(result, "Tensor") for result in results]
        kinds = ", ".join(["Tensor"] * len(names))
        self._lines.append(f"%out : ({kinds}) = prim::TupleConstruct({', '.join(names)})")
        return "\n  ".join([f"graph({parameters}):", *self._lines, "return (%out)\n"])


def record(
    function: TensorFunction, inputs: Sequence[Tensor]
) -> tuple[Sequence[Tensor], TensorFunction]:
    """Call a function, and return what it returns and a function that does the same again.

    It is called twice: what it does the first time only, such as laying out weights, is not to be
    done again.

    What the second one computes may depend on the values of the inputs, on nothing else: neither
    on their shapes nor on anything in Python. Tensors that the function refers to stay the same
    ones, with what is in them by then. Where this PyTorch has no such interpreter, or cannot be
    told of an operation, it is the first function.

    Args:
        function: of tensors, to several tensors. It calls operations of PyTorch only.
        inputs: to call it with.
    """
    # Names go by objects, and one tensor may be two inputs.
    inputs = [torch.ops.aten.alias(tensor) for tensor in inputs]
    found = function(*inputs)
    recorder = _Recorder(inputs)
    try:
        with recorder:
            found = function(*inputs)
        graph = torch._C.parse_ir(recorder.graph(found))
        repeat = torch._C._create_function_from_graph("recorded", graph)
    except (_Cannot, AttributeError, RuntimeError):
        return found, function
    others = recorder.others

    def again(*inputs: Tensor) -> Sequence[Tensor]:
        results: Sequence[Tensor] = repeat(*inputs, *others)
        return results

    return found, again
