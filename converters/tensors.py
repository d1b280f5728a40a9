"""TensorFlow's data types, and arrays of the constants in its graphs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What a constant that repeats its last value may take; those of a MoViNet are a few kilobytes.
MOST_REPEATED_BYTES = 1 << 26


@dataclasses.dataclass(frozen=True)
class DataType:
    """A data type that is read.

    Attributes:
        name: TensorFlow's, which is numpy's except for bool, string, bfloat16 and the quantised.
        numpy: of an array as it is stored; object, for strings.
        field: of a ``TensorProto``, where it holds values one by one.
    """

    name: str
    numpy: np.dtype[Any]
    field: str


def _data_type(name: str, numpy: str, field: str) -> DataType:
    return DataType(name, np.dtype(numpy), field)


# TensorFlow's number of a type (types.proto) -> the type. Numpy has no bfloat16: it is stored as
# 16 bits and given as float32, which holds every value of it.
DATA_TYPES = {
    1: _data_type("float32", "<f4", "float_val"),
    2: _data_type("float64", "<f8", "double_val"),
    3: _data_type("int32", "<i4", "int_val"),
    4: _data_type("uint8", "u1", "int_val"),
    5: _data_type("int16", "<i2", "int_val"),
    6: _data_type("int8", "i1", "int_val"),
    7: _data_type("string", "O", "string_val"),
    8: _data_type("complex64", "<c8", "scomplex_val"),
    9: _data_type("int64", "<i8", "int64_val"),
    10: _data_type("bool", "?", "bool_val"),
    11: _data_type("qint8", "i1", "int_val"),
    12: _data_type("quint8", "u1", "int_val"),
    13: _data_type("qint32", "<i4", "int_val"),
    14: _data_type("bfloat16", "<u2", "half_val"),
    15: _data_type("qint16", "<i2", "int_val"),
    16: _data_type("quint16", "<u2", "int_val"),
    17: _data_type("uint16", "<u2", "int_val"),
    18: _data_type("complex128", "<c16", "dcomplex_val"),
    19: _data_type("float16", "<f2", "half_val"),
    22: _data_type("uint32", "<u4", "uint32_val"),
    23: _data_type("uint64", "<u8", "uint64_val"),
}


def data_type(number: int) -> DataType:
    """Return the type that TensorFlow gives a number.

    Raises:
        ValueError: it is not read here.
    """
    if number not in DATA_TYPES:
        raise ValueError(f"data type {number} of TensorFlow's is not read")
    return DATA_TYPES[number]


def full_shape(shape: Any) -> tuple[int, ...]:
    """Return the sizes of a ``TensorShapeProto``, all of them known.

    Raises:
        ValueError: the rank or a size is not known, or is no size.
    """
    sizes = tuple(dimension.size for dimension in shape.dim)
    if shape.unknown_rank or any(size < 0 for size in sizes):
        raise ValueError(f"a shape that is not known: {'?' if shape.unknown_rank else sizes}")
    return sizes


def array_of(stored: NDArray[Any], kind: DataType, shape: Sequence[int]) -> NDArray[Any]:
    """Return stored numbers as an array; bytes (uint8) and values of the stored type both do."""
    values = stored.view(kind.numpy).reshape(shape)
    if kind.name != "bfloat16":
        return values
    # The upper half of a float32.
    return (values.astype("<u4") << 16).view("<f4")


def ndarray_from_tensor_proto(proto: Any) -> NDArray[Any]:
    """Return the array that a ``TensorProto`` holds; strings as an array of ``bytes`` objects.

    Raises:
        ValueError: its content does not fit its shape and type, or the type is not read here.
    """
    kind = data_type(proto.dtype)
    shape = full_shape(proto.tensor_shape)
    count = math.prod(shape)
    if proto.tensor_content and kind.name != "string":
        content = np.frombuffer(proto.tensor_content, np.uint8)
        if len(content) != count * kind.numpy.itemsize:
            raise ValueError(
                f"{len(content)} bytes of content for {kind.name} of shape {shape}, which takes "
                f"{count * kind.numpy.itemsize}"
            )
        return array_of(content.copy(), kind, shape)
    values = getattr(proto, kind.field)
    per_value = 2 if kind.name.startswith("complex") else 1
    if len(values) % per_value or len(values) > count * per_value:
        raise ValueError(f"{len(values)} values in {kind.field} for shape {shape}")
    if count * kind.numpy.itemsize > max(MOST_REPEATED_BYTES, len(values) * 16):
        raise ValueError(f"{len(values)} values repeated to shape {shape}; no MoViNet needs that")
    stored = _stored(values, kind)
    # The last value stands for the rest; no value at all for zeros.
    fill = stored[-1:] if len(stored) else _stored([0] * per_value, kind)
    rest = np.repeat(fill, count - len(stored))
    return array_of(np.concatenate([stored, rest]), kind, shape)


def _stored(values: Sequence[Any], kind: DataType) -> NDArray[Any]:
    """Return the values of a field as they are stored: `array_of` gives them their meaning."""
    if kind.name == "string":
        stored = np.empty(len(values), object)
        stored[:] = [value or b"" for value in values]
        return stored
    if kind.field == "half_val":  # bit patterns
        return np.array(values, np.int64).astype("<u2")
    if kind.field == "int_val":  # too wide for most; what does not fit is cut, as in TensorFlow
        return np.array(values, np.int64).astype(kind.numpy)
    part = {"scomplex_val": "<f4", "dcomplex_val": "<f8"}.get(kind.field, kind.numpy)
    return np.array(values, part).view(kind.numpy)
