"""Writing TF Lite's flatbuffer: tensors, operations and a signature, as in `schema.fbs`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The converter writes so; readers ask for 3.
_VERSION = 3
_IDENTIFIER = b"TFL3"
# Kernels read weights in steps of this many bytes.
_ALIGNMENT = 16

_TYPES: Mapping[str, int] = {"float32": 0, "float16": 1, "int32": 2, "int8": 9}
_SAME, _VALID = 0, 1

# (number of the options' field, what it is, value): `?` a flag, `b` a byte, `i` an int32.
_Options = Sequence[tuple[int, str, int]]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """One kind of operation: its number, version, and what its options are called and hold."""

    code: int
    version: int = 1
    options_type: int = 0
    fields: int = 0
    options: Callable[[Mapping[str, Any]], _Options] = lambda given: ()


def _window(given: Mapping[str, Any]) -> list[tuple[int, str, int]]:
    height, width = given.get("strides", (1, 1))
    padding = _VALID if given.get("valid") else _SAME
    return [(0, "b", padding), (1, "i", width), (2, "i", height)]


def _conv(given: Mapping[str, Any]) -> _Options:
    return [*_window(given), (3, "b", given.get("fused", 0)), (4, "i", 1), (5, "i", 1)]


def _depthwise(given: Mapping[str, Any]) -> _Options:
    return [
        *_window(given),
        (3, "i", 1),
        (4, "b", given.get("fused", 0)),
        (5, "i", 1),
        (6, "i", 1),
    ]


def _pool(given: Mapping[str, Any]) -> _Options:
    return [*_window(given), (3, "i", 3), (4, "i", 3)]


def _fused(given: Mapping[str, Any]) -> _Options:
    return [(0, "b", given.get("fused", 0))]


def _masks(given: Mapping[str, Any]) -> _Options:
    return [(0, "i", given["begin_mask"]), (1, "i", given["end_mask"])]


_KINDS: Mapping[str, _Kind] = {
    "ADD": _Kind(0, 1, 11, 2, _fused),
    "AVERAGE_POOL_2D": _Kind(1, 1, 5, 6, _pool),
    "CAST": _Kind(53, 1, 37, 2, lambda given: [(0, "b", 2), (1, "b", 0)]),
    "CONCATENATION": _Kind(2, 1, 10, 2, lambda given: [(0, "i", given["axis"])]),
    "CONV_2D": _Kind(3, 1, 1, 8, _conv),
    "COS": _Kind(108, 1, 84, 0),
    "DEPTHWISE_CONV_2D": _Kind(4, 1, 2, 7, _depthwise),
    "DEQUANTIZE": _Kind(6, 3, 38, 0),
    "DIV": _Kind(42, 1, 29, 1, _fused),
    "HARD_SWISH": _Kind(117, 1, 91, 0),
    "LOGISTIC": _Kind(14),
    "MAXIMUM": _Kind(55, 1, 39, 0),
    "MEAN": _Kind(40, 1, 27, 1, lambda given: [(0, "?", 1)]),
    "MINIMUM": _Kind(57, 1, 39, 0),
    "MUL": _Kind(18, 1, 21, 1, _fused),
    "PAD": _Kind(34, 1, 22, 0),
    "QUANTIZE": _Kind(114, 1, 89, 0),
    "RELU": _Kind(19),
    "RELU6": _Kind(21),
    "RESHAPE": _Kind(22, 1, 17, 1),
    "SIN": _Kind(66),
    "STRIDED_SLICE": _Kind(45, 1, 32, 6, _masks),
    "SUB": _Kind(41, 1, 28, 2, _fused),
    "SUM": _Kind(74, 1, 27, 1, lambda given: [(0, "?", 1)]),
}


@dataclasses.dataclass(frozen=True)
class LiteTensor:
    """A tensor of the file.

    Attributes:
        name: what it is; readers find the layer in it.
        shape: axes.
        dtype: of the numbers.
        data: of a constant.
        scale: what one is worth, of each index of `axis` or of all, where numbers are quantised.
        axis: of the channels.
        zero_point: the number that stands for 0, where there is one scale.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    data: NDArray[Any] | None = None
    scale: NDArray[np.float32] | None = None
    axis: int = 0
    zero_point: int = 0


@dataclasses.dataclass(frozen=True)
class LiteOperation:
    """An operation of the file, which has one result.

    Attributes:
        kind: TF Lite's name.
        inputs, output: numbers of tensors.
        options: what `_KINDS` makes its options of.
    """

    kind: str
    inputs: tuple[int, ...]
    output: int
    options: Mapping[str, Any]


class LiteGraph:
    """Collects tensors and operations, and writes them.

    Args:
        description: what wrote the file, for people.
    """

    def __init__(self, description: str) -> None:
        self.tensors: list[LiteTensor] = []
        self.operations: list[LiteOperation] = []
        self._constants: dict[Any, int] = {}
        self.inputs: dict[str, int] = {}
        self.outputs: dict[str, int] = {}
        self.description = description

    def add(self, tensor: LiteTensor) -> int:
        """Add a tensor and return its number."""
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constant(self, value: Any, dtype: str, name: str = "") -> int:
        """Add a small constant; the same value is the same tensor."""
        data = np.asarray(value, dtype)
        key = dtype, data.shape, data.tobytes()
        if key not in self._constants:
            self._constants[key] = self.add(
                LiteTensor(name or f"constant_{len(self._constants)}", data.shape, dtype, data)
            )
        return self._constants[key]

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Return a tensor's axes."""
        return self.tensors[tensor].shape

    def operation(
        self, kind: str, name: str, inputs: Sequence[int], shape: Sequence[int], **options: Any
    ) -> int:
        """Add an operation with one result, and return the result's number."""
        result = LiteTensor(name, tuple(shape), options.pop("dtype", "float32"))
        return self.again(LiteOperation(kind, tuple(inputs), -1, options), inputs, result)

    def again(self, operation: LiteOperation, inputs: Sequence[int], result: LiteTensor) -> int:
        """Add an operation like another one with these inputs, and return its result's number."""
        output = self.add(result)
        self.operations.append(dataclasses.replace(operation, inputs=tuple(inputs), output=output))
        return output

    def write(self, metadata: Mapping[str, bytes], key: str = "serving_default") -> bytes:
        """Return the file.

        Args:
            metadata: name -> content.
            key: of the signature.

        Raises:
            ImportError: the package flatbuffers is missing.
        """
        from flatbuffers import Builder

        size = sum(t.data.nbytes for t in self.tensors if t.data is not None)
        return _Writer(Builder(size + (1 << 16))).file(self, metadata, key)


# As the Task Library looks for it.
LABELS = "labels.txt"
_METADATA_IDENTIFIER = b"M001"
_LABELS_OF_AN_AXIS = 2


def task_metadata(name: str, labels: bool) -> bytes:
    """Return what TF Lite Metadata says of a network: names, and where its labels are.

    Args:
        name: of the network.
        labels: whether a file of labels belongs to the logits.
    """
    from flatbuffers import Builder

    writer = _Writer(Builder(1024))
    text, table, listed = writer.text, writer.table, writer.offsets
    image = table(
        7,
        {
            0: ("o", text("image")),
            1: ("o", text("RGB in [0, 1], (batch, frames, height, width, 3)")),
        },
    )
    files = []
    if labels:
        kind = ("b", _LABELS_OF_AN_AXIS)
        files.append(table(5, {0: ("o", text(LABELS)), 2: kind}))
    logits = table(
        7,
        {
            0: ("o", text("logits")),
            1: ("o", text("before softmax, (batch, classes)")),
            6: ("o", listed(files)),
        },
    )
    graph = table(8, {2: ("o", listed([image])), 3: ("o", listed([logits]))})
    root = table(8, {0: ("o", text(f"MoViNet {name}")), 3: ("o", listed([graph]))})
    return writer.finish(root, _METADATA_IDENTIFIER)


class _Writer:
    """Lays a graph out, from the inside to the outside, as a flatbuffer is built."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder

    def file(self, graph: LiteGraph, metadata: Mapping[str, bytes], key: str) -> bytes:
        """Return the file."""
        # The first buffer is what tensors without numbers have.
        buffers = [self.table(3, {})]
        numbers = {}
        for index, tensor in enumerate(graph.tensors):
            if tensor.data is not None:
                numbers[index] = len(buffers)
                buffers.append(self._buffer(tensor.data.tobytes()))
        named = []
        for name, content in metadata.items():
            named.append((name, len(buffers)))
            buffers.append(self._buffer(content))
        tensors = [
            self._tensor(tensor, numbers.get(index, 0))
            for index, tensor in enumerate(graph.tensors)
        ]
        kinds = sorted({operation.kind for operation in graph.operations})
        codes = [
            self.table(
                4,
                {
                    0: ("b", min(_KINDS[kind].code, 127)),
                    2: ("i", _KINDS[kind].version),
                    3: ("i", _KINDS[kind].code),
                },
            )
            for kind in kinds
        ]
        written = [
            self._operation(kinds.index(operation.kind), operation)
            for operation in graph.operations
        ]
        subgraph = self.table(
            6,
            {
                0: ("o", self.offsets(tensors)),
                1: ("o", self._ints(list(graph.inputs.values()))),
                2: ("o", self._ints(list(graph.outputs.values()))),
                3: ("o", self.offsets(written)),
                4: ("o", self.text("main")),
            },
        )
        signature = self.table(
            5,
            {
                0: ("o", self._tensor_map(graph.inputs)),
                1: ("o", self._tensor_map(graph.outputs)),
                2: ("o", self.text(key)),
            },
        )
        entries = [
            self.table(2, {0: ("o", self.text(name)), 1: ("I", number)}) for name, number in named
        ]
        root = self.table(
            10,
            {
                0: ("I", _VERSION),
                1: ("o", self.offsets(codes)),
                2: ("o", self.offsets([subgraph])),
                3: ("o", self.text(graph.description)),
                4: ("o", self.offsets(buffers)),
                6: ("o", self.offsets(entries)),
                7: ("o", self.offsets([signature])),
            },
        )
        return self.finish(root, _IDENTIFIER)

    def finish(self, root: int, identifier: bytes) -> bytes:
        """Return what was built; `root` is its outermost table."""
        self._builder.Finish(root, identifier)
        return bytes(self._builder.Output())

    def text(self, value: str) -> int:
        """Write a string, and return where."""
        return int(self._builder.CreateString(value))

    def table(self, fields: int, values: Mapping[int, tuple[str, int]]) -> int:
        """Write a table, and return where.

        Args:
            fields: how many its kind has.
            values: number of the field -> (what it is, value or where that is).
        """
        builder = self._builder
        builder.StartObject(fields)
        for field, (kind, value) in values.items():
            if kind == "o":
                builder.PrependUOffsetTRelativeSlot(field, value, 0)
            elif kind == "?":
                builder.PrependBoolSlot(field, bool(value), False)
            elif kind == "b":
                builder.PrependInt8Slot(field, value, 0)
            elif kind == "I":
                builder.PrependUint32Slot(field, value, 0)
            else:
                builder.PrependInt32Slot(field, value, 0)
        return int(builder.EndObject())

    def _buffer(self, content: bytes) -> int:
        builder = self._builder
        builder.StartVector(1, len(content), _ALIGNMENT)
        builder.head = builder.head - len(content)
        builder.Bytes[builder.head : builder.head + len(content)] = content
        return self.table(3, {0: ("o", builder.EndVector())})

    def _ints(self, values: Sequence[int]) -> int:
        return int(self._builder.CreateNumpyVector(np.asarray(values, np.int32)))

    def offsets(self, values: Sequence[int]) -> int:
        """Write a list of tables, given where they are, and return where."""
        builder = self._builder
        builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            builder.PrependUOffsetTRelative(value)
        return int(builder.EndVector())

    def _tensor(self, tensor: LiteTensor, number: int) -> int:
        fields = {
            0: ("o", self._ints(tensor.shape)),
            1: ("b", _TYPES[tensor.dtype]),
            2: ("I", number),
            3: ("o", self.text(tensor.name)),
        }
        if tensor.scale is not None:
            zeros = np.full(len(tensor.scale), tensor.zero_point, np.int64)
            quantization = {
                2: ("o", int(self._builder.CreateNumpyVector(tensor.scale))),
                3: ("o", int(self._builder.CreateNumpyVector(zeros))),
                6: ("i", tensor.axis),
            }
            fields[4] = ("o", self.table(7, quantization))
        return self.table(11, fields)

    def _operation(self, code: int, operation: LiteOperation) -> int:
        row = _KINDS[operation.kind]
        fields: dict[int, tuple[str, int]] = {
            0: ("I", code),
            1: ("o", self._ints(operation.inputs)),
            2: ("o", self._ints([operation.output])),
        }
        if row.options_type:
            values = {field: (form, value) for field, form, value in row.options(operation.options)}
            fields[3] = ("b", row.options_type)
            fields[4] = ("o", self.table(row.fields, values))
        return self.table(14, fields)

    def _tensor_map(self, names: Mapping[str, int]) -> int:
        return self.offsets(
            [
                self.table(2, {0: ("o", self.text(name)), 1: ("I", number)})
                for name, number in names.items()
            ]
        )


def eight_bit_kernel(kernel: NDArray[Any], axis: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (scales, numbers) of a kernel in 8 bits, a scale for each index of `axis`."""
    others = tuple(i for i in range(kernel.ndim) if i != axis)
    most = np.abs(kernel).max(axis=others, keepdims=True)
    scale = np.where(most > 0, most / 127, 1.0).astype(np.float32)
    numbers = np.clip(np.round(kernel / scale), -127, 127).astype(np.int8)
    return scale.reshape(-1), numbers


def size_of(shape: Sequence[int]) -> int:
    """Return how many numbers a tensor of this shape has."""
    return math.prod(shape)
