"""Walking the wire format of a protocol buffer without building its messages.

A SavedModel of a large network is a hundred megabytes of functions of which its signature calls
a few. Finding those by name first keeps conversion fast and small.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Field numbers, from TensorFlow's saved_model.proto, meta_graph.proto, graph.proto,
# function.proto and op_def.proto.
_META_GRAPHS = 2
_GRAPH_DEF, _SIGNATURE_DEF, _OBJECT_GRAPH_DEF = 2, 5, 7
_LIBRARY = 2
_FUNCTION = 1
_FUNCTION_SIGNATURE = 1
_OP_NAME = 1

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The bytes are no protocol buffer, or end too early."""


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if at >= len(data):
            raise WireError("ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise WireError("a number is too long")


def submessages(data: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yield the content of every length-delimited field number `wanted`.

    Raises:
        WireError: the data are damaged.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        elif kind == _BYTES:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise WireError("ends within a field")
            if key >> 3 == wanted:
                yield data[at : at + length]
            at += length
        else:
            raise WireError(f"a field of unknown kind {kind}")


class Functions(Mapping[str, Any]):
    """The function library of a graph: ``FunctionDef`` messages by name, parsed when looked up."""

    def __init__(self, graph_def: memoryview, message: type[Any]) -> None:
        self._message = message
        self._raw: dict[str, memoryview] = {}
        for library in submessages(graph_def, _LIBRARY):
            for function in submessages(library, _FUNCTION):
                for signature in submessages(function, _FUNCTION_SIGNATURE):
                    for name in submessages(signature, _OP_NAME):
                        self._raw[bytes(name).decode()] = function

    def __getitem__(self, name: str) -> Any:
        return self._message.FromString(bytes(self._raw[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)


class SavedModelFile:
    """The first graph of a ``saved_model.pb``; the file is mapped, not read.

    Attributes:
        object_graph: ``SavedObjectGraph``.
        signatures: ``SignatureDef`` by key.
        functions: ``FunctionDef`` by name.
    """

    def __init__(self, path: Path) -> None:
        from tensorflow.core.framework import function_pb2
        from tensorflow.core.protobuf import meta_graph_pb2, saved_object_graph_pb2

        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise WireError("the file is empty")
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        meta_graph = next(submessages(data, _META_GRAPHS), None)
        if meta_graph is None:
            raise WireError("it has no graph")
        head = meta_graph_pb2.MetaGraphDef()
        for entry in submessages(meta_graph, _SIGNATURE_DEF):
            head.MergeFromString(_field(_SIGNATURE_DEF, entry))
        self.signatures = head.signature_def
        self.object_graph = saved_object_graph_pb2.SavedObjectGraph()
        for part in submessages(meta_graph, _OBJECT_GRAPH_DEF):
            self.object_graph.MergeFromString(bytes(part))
        graph_def = next(submessages(meta_graph, _GRAPH_DEF), None)
        if graph_def is None:
            raise WireError("it has no graph")
        self.functions = Functions(graph_def, function_pb2.FunctionDef)


def _field(number: int, content: memoryview) -> bytes:
    """Return `content` as a length-delimited field, as it stood in its message."""
    out = bytearray([number << 3 | _BYTES])
    length = len(content)
    while length >= 0x80:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out) + bytes(content)
