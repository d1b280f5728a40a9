"""Reading TF Lite's flatbuffers (schema version 3), every position checked; no dependency.

A flatbuffer's table is a position in the file. Two bytes before each field's place say whether it
is there (the vtable); everything that a table points to is found by an offset, so that a damaged
file can point anywhere, and every offset is checked before it is followed. Field numbers are those
of TensorFlow's `schema.fbs`.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.errors import ConversionError
from movinet_port.errors import printable

# The largest published file has 20 MB and some 2,000 tensors and operations.
MOST_BYTES = 1 << 30
_MOST_ITEMS = 100_000
_MOST_AXES = 8
_MOST_TEXT = 1 << 16

# What it tells a TF Lite file from others by, after the root's offset.
IDENTIFIER = b"TFL3"

# `TensorType`; what no MoViNet has is left out.
_DTYPES: Mapping[int, str] = {
    0: "float32",
    1: "float16",
    2: "int32",
    3: "uint8",
    4: "int64",
    6: "bool",
    7: "int16",
    9: "int8",
    10: "float64",
}

# `ActivationFunctionType`: what an operation does to its result at once.
_FUSED: Mapping[int, str] = {0: "linear", 1: "relu", 2: "relu_n1_to_1", 3: "relu6", 4: "tanh"}
_PADDING: Mapping[int, str] = {0: "SAME", 1: "VALID"}


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How numbers stand for real ones: ``scale * (number - zero_point)``.

    Attributes:
        scale, zero_point: one for the tensor, or one for each index of `axis`.
        axis: of the channels that have their own.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    axis: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of the file's graph.

    Attributes:
        index: its number, by which operations name it.
        name: segments apart by ";"; the first says what the value is.
        dtype: numpy name.
        shape: as the file states it.
        quantization: None if the numbers are what they stand for.
        data: a constant's numbers; None for what is computed.
    """

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    quantization: Quantization | None
    data: NDArray[Any] | None = dataclasses.field(repr=False, compare=False)

    @property
    def place(self) -> str:
        """The first segment of the name, such as ``.../block1_layer0/bneck/add``."""
        return self.name.partition(";")[0]

    def real(self) -> NDArray[Any]:
        """Return a constant as the numbers it stands for: float64, or integers as they are."""
        assert self.data is not None
        if self.quantization is not None:
            return dequantize(self.data, self.quantization)
        return self.data.astype(np.float64) if self.data.dtype.kind == "f" else self.data


def dequantize(data: NDArray[Any], how: Quantization) -> NDArray[np.float64]:
    """Return the real numbers that quantised ones stand for."""
    scale, zero = how.scale.astype(np.float64), how.zero_point
    if len(scale) > 1:
        shape = [1] * data.ndim
        shape[how.axis] = len(scale)
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    real: NDArray[np.float64] = (data.astype(np.int64) - zero) * scale
    return real


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of the file's graph.

    Attributes:
        index: its number, in the order of computing.
        kind: TF Lite's name, such as "CONV_2D"; a custom or Flex one under its own.
        inputs, outputs: numbers of tensors; -1 for an input that is left out.
        options: what the schema calls its options.
    """

    index: int
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Signature:
    """One signature: what an app calls inputs and outputs -> number of the tensor."""

    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class LiteModel:
    """What a TF Lite file holds.

    Attributes:
        tensors, operations: of the graph; operations in the order of computing.
        inputs, outputs: numbers of tensors.
        signatures: by key, such as "serving_default".
        metadata: name -> bytes.
        description: free text of the converter's.
    """

    tensors: Sequence[Tensor]
    operations: Sequence[Operation]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    signatures: Mapping[str, Signature]
    metadata: Mapping[str, bytes]
    description: str


class DamagedError(Exception):
    """An offset, length or value that no right file has."""


class _Table:
    """A table of a flatbuffer."""

    def __init__(self, buffer: memoryview, position: int) -> None:
        self._buffer = buffer
        self._position = position
        self._vtable = position - _number(buffer, position, "<i")
        self._size = _number(buffer, self._vtable, "<H")

    def _place(self, field: int) -> int:
        """Return where a field is, or 0 if it is left out."""
        entry = 4 + 2 * field
        if entry + 2 > self._size:
            return 0
        offset = _number(self._buffer, self._vtable + entry, "<H")
        return self._position + offset if offset else 0

    def number(self, field: int, form: str, default: Any = 0) -> Any:
        """Return a number; `form` as in `struct`."""
        place = self._place(field)
        return _number(self._buffer, place, form) if place else default

    def _target(self, field: int) -> int:
        place = self._place(field)
        return place + _number(self._buffer, place, "<I") if place else 0

    def table(self, field: int) -> _Table | None:
        """Return a table, or None if it is left out."""
        target = self._target(field)
        return _Table(self._buffer, target) if target else None

    def array(self, field: int, dtype: str) -> NDArray[Any]:
        """Return a vector of numbers, a view of the file; empty if it is left out."""
        target = self._target(field)
        kind = np.dtype(dtype).newbyteorder("<")
        if not target:
            return np.zeros(0, kind)
        count = _number(self._buffer, target, "<I")
        _check(self._buffer, target + 4, count * kind.itemsize)
        return np.frombuffer(self._buffer, kind, count, target + 4)

    def text(self, field: int) -> str:
        """Return a string; "" if it is left out."""
        found = self.array(field, "u1")
        if len(found) > _MOST_TEXT:
            raise DamagedError(f"a name of {len(found)} bytes")
        # Names get into messages, and from there to terminals.
        return printable(found.tobytes().decode("utf-8", "replace"))

    def numbers(self, field: int, most: int = _MOST_ITEMS) -> tuple[int, ...]:
        """Return a vector of int32."""
        found = self.array(field, "i4")
        if len(found) > most:
            raise DamagedError(f"a list of {len(found)} numbers")
        return tuple(found.tolist())

    def tables(self, field: int) -> list[_Table]:
        """Return a vector of tables; empty if it is left out."""
        target = self._target(field)
        if not target:
            return []
        count = _number(self._buffer, target, "<I")
        if count > _MOST_ITEMS:
            raise DamagedError(f"a list of {count} tables")
        places = range(target + 4, target + 4 + 4 * count, 4)
        return [
            _Table(self._buffer, place + _number(self._buffer, place, "<I")) for place in places
        ]


def _check(buffer: memoryview, position: int, size: int) -> None:
    if position < 0 or position + size > len(buffer):
        raise DamagedError(f"{size} bytes at {position}, in a file of {len(buffer)}")


def _number(buffer: memoryview, position: int, form: str) -> Any:
    _check(buffer, position, struct.calcsize(form))
    return struct.unpack_from(form, buffer, position)[0]


# Operations ------------------------------------------------------------------------------------

_Read = Callable[[_Table], Any]


def _int(field: int, default: int = 0) -> _Read:
    return lambda table: table.number(field, "<i", default)


def _flag(field: int) -> _Read:
    return lambda table: bool(table.number(field, "<B"))


def _float(field: int) -> _Read:
    return lambda table: table.number(field, "<f", 0.0)


def _name(field: int, names: Mapping[int, str], what: str) -> _Read:
    def read(table: _Table) -> str:
        value = table.number(field, "<b")
        if value not in names:
            raise DamagedError(f"{what} number {value}")
        return names[value]

    return read


def _fused(field: int) -> Mapping[str, _Read]:
    return {"activation": _name(field, _FUSED, "fused activation")}


def _window(first: int) -> Mapping[str, _Read]:
    """Padding and strides; `first` is the padding's field."""
    return {
        "padding": _name(first, _PADDING, "padding"),
        "strides": lambda table: (_int(first + 2)(table), _int(first + 1)(table)),
    }


def _dilations(width: int) -> Mapping[str, _Read]:
    return {"dilations": lambda table: (_int(width + 1, 1)(table), _int(width, 1)(table))}


_BINARY = _fused(0)
_REDUCE: Mapping[str, _Read] = {"keep_dims": _flag(0)}

# `BuiltinOperator` -> (name, its options).
_OPERATIONS: Mapping[int, tuple[str, Mapping[str, _Read]]] = {
    0: ("ADD", _BINARY),
    1: (
        "AVERAGE_POOL_2D",
        {
            **_window(0),
            "window": lambda table: (_int(4)(table), _int(3)(table)),
            **_fused(5),
        },
    ),
    2: ("CONCATENATION", {"axis": _int(0), **_fused(1)}),
    3: ("CONV_2D", {**_window(0), **_fused(3), **_dilations(4)}),
    4: (
        "DEPTHWISE_CONV_2D",
        {**_window(0), "multiplier": _int(3), **_fused(4), **_dilations(5)},
    ),
    6: ("DEQUANTIZE", {}),
    9: ("FULLY_CONNECTED", {**_fused(0), "format": _int(1), "keep_dims": _flag(2)}),
    14: ("LOGISTIC", {}),
    18: ("MUL", _BINARY),
    19: ("RELU", {}),
    21: ("RELU6", {}),
    22: ("RESHAPE", {}),
    25: ("SOFTMAX", {"beta": _float(0)}),
    32: ("CUSTOM", {}),
    34: ("PAD", {}),
    36: ("GATHER", {"axis": _int(0), "batch_dims": _int(1)}),
    39: ("TRANSPOSE", {}),
    40: ("MEAN", _REDUCE),
    41: ("SUB", _BINARY),
    42: ("DIV", _BINARY),
    43: ("SQUEEZE", {"axes": lambda table: table.numbers(0, _MOST_AXES)}),
    45: (
        "STRIDED_SLICE",
        {
            "begin_mask": _int(0),
            "end_mask": _int(1),
            "ellipsis_mask": _int(2),
            "new_axis_mask": _int(3),
            "shrink_axis_mask": _int(4),
            "offset": _flag(5),
        },
    ),
    53: ("CAST", {}),
    55: ("MAXIMUM", {}),
    57: ("MINIMUM", {}),
    59: ("NEG", {}),
    65: ("SLICE", {}),
    66: ("SIN", {}),
    70: ("EXPAND_DIMS", {}),
    74: ("SUM", _REDUCE),
    75: ("SQRT", {}),
    76: ("RSQRT", {}),
    77: ("SHAPE", {}),
    78: ("POW", {}),
    83: ("PACK", {"axis": _int(1)}),
    92: ("SQUARE", {}),
    93: ("ZEROS_LIKE", {}),
    94: ("FILL", {}),
    96: ("RANGE", {}),
    108: ("COS", {}),
    114: ("QUANTIZE", {}),
    117: ("HARD_SWISH", {}),
    128: ("CUMSUM", {"exclusive": _flag(0), "reverse": _flag(1)}),
    130: ("BROADCAST_TO", {}),
    132: (
        "CONV_3D",
        {
            "padding": _name(0, _PADDING, "padding"),
            "strides": lambda table: (_int(1)(table), _int(3)(table), _int(2)(table)),
            **_fused(4),
        },
    ),
    152: ("RELU_0_TO_1", {}),
}


# The file --------------------------------------------------------------------------------------


def read_lite_model(path: Path) -> LiteModel:
    """Read a TF Lite file.

    Raises:
        ConversionError: it is none, is damaged, is too large, or has several graphs.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DamagedError(f"it has {size:,} bytes, expected at most {MOST_BYTES:,}")
        # Read, and not mapped: a file that is cut while it is mapped kills the process.
        return parse_lite_model(path.read_bytes())
    except (OSError, DamagedError) as error:
        raise ConversionError(
            f"{path}: cannot read it: {error}; the file is damaged or no TF Lite file, get it again"
        ) from error


def parse_lite_model(content: bytes) -> LiteModel:
    """Read what a TF Lite file holds.

    Raises:
        DamagedError: it is none, is damaged, or has several graphs.
    """
    buffer = memoryview(content)
    if bytes(buffer[4:8]) != IDENTIFIER:
        raise DamagedError(f"it has no {IDENTIFIER.decode()} at its beginning")
    root = _Table(buffer, _number(buffer, 0, "<I"))
    version = root.number(0, "<I")
    if version != 3:
        raise DamagedError(f"its schema is of version {version}, expected 3")
    graphs = root.tables(2)
    if len(graphs) != 1:
        raise DamagedError(f"it has {len(graphs)} graphs, expected one, as a MoViNet's has")
    graph, buffers = graphs[0], root.tables(4)
    tensors = [
        _tensor(index, table, buffers, buffer) for index, table in enumerate(graph.tables(0))
    ]
    codes = [_code(table) for table in root.tables(1)]
    operations = [
        _operation(index, table, codes, len(tensors)) for index, table in enumerate(graph.tables(3))
    ]
    return LiteModel(
        tensors=tensors,
        operations=operations,
        inputs=_known(graph.numbers(1), len(tensors)),
        outputs=_known(graph.numbers(2), len(tensors)),
        signatures={
            table.text(2): Signature(
                _signature_side(table, 0, len(tensors)), _signature_side(table, 1, len(tensors))
            )
            for table in root.tables(7)
        },
        metadata={
            table.text(0): _bytes(_item(buffers, table.number(1, "<I"), "buffer"), buffer).tobytes()
            for table in root.tables(6)
        },
        description=root.text(3),
    )


def _known(numbers: tuple[int, ...], tensors: int, least: int = 0) -> tuple[int, ...]:
    for number in numbers:
        if not least <= number < tensors:
            raise DamagedError(f"tensor {number} of {tensors}")
    return numbers


def _item(items: Sequence[Any], number: int, what: str) -> Any:
    if not 0 <= number < len(items):
        raise DamagedError(f"{what} {number} of {len(items)}")
    return items[number]


def _bytes(table: _Table, buffer: memoryview) -> NDArray[np.uint8]:
    # A large file keeps its buffers behind the flatbuffer.
    start, size = table.number(1, "<Q"), table.number(2, "<Q")
    if start > 1:
        _check(buffer, start, size)
        return np.frombuffer(buffer, np.uint8, size, start)
    return table.array(0, "u1")


def _tensor(index: int, table: _Table, buffers: list[_Table], buffer: memoryview) -> Tensor:
    shape, kind = table.numbers(0, _MOST_AXES), table.number(1, "<b")
    if kind not in _DTYPES:
        raise DamagedError(f"tensor {index} is of type number {kind}, which no MoViNet has")
    if any(size < 0 for size in shape):
        raise DamagedError(f"tensor {index} has shape {shape}")
    raw = _bytes(_item(buffers, table.number(2, "<I"), "buffer"), buffer)
    data: NDArray[Any] | None = None
    if len(raw):
        dtype = np.dtype(_DTYPES[kind]).newbyteorder("<")
        expected = functools.reduce(lambda a, b: a * b, shape, dtype.itemsize)
        if len(raw) != expected:
            raise DamagedError(
                f"tensor {index} of shape {shape} takes {expected} bytes, and has {len(raw)}"
            )
        data = raw.view(dtype).reshape(shape) if raw.flags.aligned else raw.view(dtype)
        data = data.reshape(shape)
    quantization = _quantization(index, table.table(4), shape)
    return Tensor(index, table.text(3), _DTYPES[kind], shape, quantization, data)


def _quantization(index: int, table: _Table | None, shape: tuple[int, ...]) -> Quantization | None:
    if table is None:
        return None
    scale, zero = table.array(2, "f4"), table.array(3, "i8")
    if not len(scale):
        return None
    axis = table.number(6, "<i")
    per_channel = len(scale) > 1
    fits = not per_channel or (0 <= axis < len(shape) and shape[axis] == len(scale))
    zero = zero if len(zero) else np.zeros(len(scale), np.int64)
    if not fits or len(zero) != len(scale) or not np.isfinite(scale).all():
        raise DamagedError(
            f"tensor {index} of shape {shape} has {len(scale)} scales and {len(zero)} zero points "
            f"along axis {axis}"
        )
    return Quantization(scale, zero, axis)


def _code(table: _Table) -> tuple[str, Mapping[str, _Read]]:
    # The first field is a byte, and says 127 for what it has no room for.
    number = max(table.number(0, "<b"), table.number(3, "<i"))
    name, options = _OPERATIONS.get(number, (f"operation number {number}", {}))
    return (table.text(1), {}) if name == "CUSTOM" else (name, options)


def _operation(
    index: int, table: _Table, codes: Sequence[tuple[str, Mapping[str, _Read]]], tensors: int
) -> Operation:
    kind, options = _item(codes, table.number(0, "<I"), "operator code")
    given = table.table(4)
    if given is None:
        given = _NOTHING
    return Operation(
        index=index,
        kind=kind,
        inputs=_known(table.numbers(1), tensors, least=-1),
        outputs=_known(table.numbers(2), tensors),
        options={name: read(given) for name, read in options.items()},
    )


def _signature_side(table: _Table, field: int, tensors: int) -> dict[str, int]:
    entries = [(entry.text(0), entry.number(1, "<I")) for entry in table.tables(field)]
    _known(tuple(number for _, number in entries), tensors)
    return dict(entries)


# An empty table: every option has its default.
_NOTHING = _Table(memoryview(struct.pack("<HHi", 4, 4, 4)), 4)
