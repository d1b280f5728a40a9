"""TF2 checkpoints without TensorFlow: an index of named tensors, and data files.

The index is a table of LevelDB's (``tensorflow/core/lib/io/format.h``): sorted keys and values in
blocks, each with a checksum, and at its end a block that lists the blocks. The value of the empty
key is a ``BundleHeaderProto``, the others are ``BundleEntryProto`` (``tensor_bundle.proto``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from converters import protos
from converters.containers.snappy import decompress
from converters.containers.variables import MOST_BYTES
from converters.errors import ConversionError
from converters.protos import varint
from converters.tensors import DATA_TYPES, DataType, array_of, full_shape

OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"

# The index of the largest network takes 100 kilobytes, one with every slot of an optimizer half a
# megabyte. The limit holds for the file and for its keys and values when unpacked.
MOST_INDEX_BYTES = 1 << 25
# An object path is some hundred long.
MOST_NAME_BYTES = 1 << 13
# The object graph, a string, takes half a megabyte.
MOST_STRING_BYTES = 1 << 24

_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
_FOOTER = 48
_TRAILER = 5  # of a block: compression, checksum
_MASK = 0xA282EAD8


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a tensor is.

    Attributes:
        kind: its type; without a field, if it is one that is not read.
        shape: its shape.
        shard: number of the data file.
        offset: its first byte in that file.
        size: how many bytes it takes there.
        crc32c: their checksum, masked.
    """

    kind: DataType
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int


class Bundle:
    """A checkpoint's tensors; the index is read at once, a tensor when it is asked for.

    Attributes:
        prefix: the path of the index without ``.index``; it may end in a slash.
        entries: by name, sorted.
    """

    def __init__(self, prefix: Path | str) -> None:
        """Read the index.

        Raises:
            ConversionError: it is damaged, or of a sort that is not read: big-endian, partitioned.
        """
        self.prefix = prefix
        try:
            items = _table(_whole(Path(f"{prefix}.index")))
            self._shards, self.entries = _entries(items)
        except (OSError, ValueError) as error:
            raise self._damaged("index", error) from error

    def read(self, name: str) -> NDArray[Any]:
        """Return a tensor, after its checksum was found right.

        Strings come as an array of ``bytes`` objects, bfloat16 as float32.

        Raises:
            ConversionError: there is no such tensor, or its data are damaged.
        """
        try:
            if name not in self.entries:
                raise ValueError("it is not in the index")
            entry = self.entries[name]
            if not entry.kind.field:
                raise ValueError(f"{entry.kind.name} is not read")
            path = Path(f"{self.prefix}.data-{entry.shard:05}-of-{self._shards:05}")
            # Before memory is taken. Not mapped: a file that becomes shorter would end the process.
            there = path.stat().st_size
            if entry.offset + entry.size > there:
                raise ValueError(
                    f"{path.name} has {there} bytes, the index says {entry.offset + entry.size}"
                )
            data = np.fromfile(path, np.uint8, entry.size, offset=entry.offset)
            if len(data) != entry.size:
                raise ValueError(f"{path.name} became shorter while it was read")
            if entry.kind.name == "string":
                return _strings(data.tobytes(), entry)
            _check(google_crc32c.value(data), entry.crc32c, f"{path.name}, byte {entry.offset}")
            return array_of(data, entry.kind, entry.shape)
        except (OSError, ValueError) as error:
            raise self._damaged(f"variable {name}", error) from error

    def object_graph(self) -> Any:
        """Return the ``TrackableObjectGraph``.

        Raises:
            ConversionError: there is none (TensorFlow 1), or it is damaged.
        """
        if OBJECT_GRAPH_KEY not in self.entries:
            raise ConversionError(
                f"{self.prefix}: a checkpoint without an object graph (TensorFlow 1?), expected "
                f"one that tf.train.Checkpoint or tf.saved_model.save wrote; found "
                f"{', '.join(list(self.entries)[:3]) or 'no variables'}"
            )
        value = self.read(OBJECT_GRAPH_KEY)
        try:
            if value.dtype != object or value.shape:
                raise ValueError("it is no string")
            return protos.parse(protos.TrackableObjectGraph, value.item())
        except ValueError as error:
            raise self._damaged("object graph", error) from error

    def _damaged(self, what: str, error: Exception) -> ConversionError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = (reason.splitlines() or [type(error).__name__])[0]
        return ConversionError(
            f"{self.prefix}: cannot read its {what}: {reason}; the checkpoint is "
            f"damaged or incomplete, get it again"
        )


def _whole(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MOST_INDEX_BYTES:
        raise ValueError(f"{size} bytes, expected at most {MOST_INDEX_BYTES}")
    return path.read_bytes()


def _masked(checksum: int) -> int:
    """Return a crc32c as files keep it: rotated, so that it is not one of what holds it."""
    return ((checksum >> 15 | checksum << 17) + _MASK) & 0xFFFFFFFF


def _check(found: int, masked: int, where: str) -> None:
    if _masked(found) != masked:
        raise ValueError(f"the checksum is wrong ({where})")


# The index


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of a table in ascending order of the keys."""
    if len(data) < _FOOTER or data[-8:] != _MAGIC:
        raise ValueError("it does not end as an index ends")
    footer = data[-_FOOTER:]
    at = 0
    for _ in range(2):  # of a block of statistics, unused
        _, at = varint(footer, at)
    index, _ = _handle(footer, at)
    before: bytes | None = None
    end = unpacked = 0
    for _, where in _block(data, index):
        handle, rest = _handle(where, 0)
        # Each block once: they follow each other.
        if handle[0] < end or rest != len(where):
            raise ValueError("its blocks are in disorder")
        end = sum(handle)
        for key, value in _block(data, handle):
            if before is not None and key <= before:
                raise ValueError("its keys are in disorder")
            unpacked += len(key) + len(value)
            if unpacked > MOST_INDEX_BYTES:
                raise ValueError(f"it unpacks to more than {MOST_INDEX_BYTES} bytes")
            before = key
            yield key, value


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Return (offset, size) of a block, and where what follows starts."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _block(data: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of a block."""
    offset, size = handle
    end = offset + size
    if end + _TRAILER > len(data) - _FOOTER:
        raise ValueError(f"a block ends at byte {end + _TRAILER}, behind the last")
    stored = int.from_bytes(data[end + 1 : end + _TRAILER], "little")
    _check(google_crc32c.value(data[offset : end + 1]), stored, f"byte {offset}")
    if data[end] > 1:
        raise ValueError(f"compression {data[end]} is not known")
    block = data[offset:end]
    if data[end]:
        block = decompress(block, MOST_INDEX_BYTES)
    # Behind the entries: where those are that share nothing with the one before, and their number.
    restarts = int.from_bytes(block[-4:], "little")
    last = len(block) - 4 * (restarts + 1)
    if last < 0:
        raise ValueError("a block is shorter than its list of keys")
    key, at = b"", 0
    while at < last:
        shared, at = varint(block, at)
        own, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or at + own + length > last:
            raise ValueError("a key or a value is cut short")
        if shared + own > MOST_NAME_BYTES:
            raise ValueError(f"a name of {shared + own} bytes, expected at most {MOST_NAME_BYTES}")
        key = key[:shared] + block[at : at + own]
        at += own + length
        yield key, block[at - length : at]


def _entries(items: Iterator[tuple[bytes, bytes]]) -> tuple[int, Mapping[str, Entry]]:
    """Return the number of data files, and where each tensor is."""
    first, value = next(items, (None, b""))
    if first != b"":
        raise ValueError("it has no header")
    header = protos.parse(protos.BundleHeaderProto, value)
    if header.endianness:
        raise ValueError("it was written on a big-endian machine, which is not read")
    if header.version.min_consumer > 1:
        raise ValueError(f"its version is {header.version.min_consumer}, expected at most 1")
    found = {}
    partitions = 0
    for key, value in items:
        if key.startswith(b"\0"):  # a part of a variable that stands in the index itself, too
            partitions += 1
            continue
        name = key.decode()  # a UnicodeDecodeError is a ValueError
        entry = protos.parse(protos.BundleEntryProto, value)
        if entry.slices:
            raise ValueError(f"variable {name} is partitioned, which is not read; save it whole")
        try:
            found[name] = _entry(entry, header.num_shards)
        except ValueError as error:
            raise ValueError(f"variable {name}: {error}") from error
    if partitions:
        raise ValueError(f"it has {partitions} parts of partitioned variables, which are not read")
    return header.num_shards, found


def _entry(proto: Any, shards: int) -> Entry:
    if proto.dtype not in DATA_TYPES:
        # Of what is no network's: the state of an iterator over data, say.
        kind = DataType(f"data type {proto.dtype} of TensorFlow's", np.dtype(object), "")
        return Entry(kind, (), 0, 0, 0, 0)
    kind, shape = DATA_TYPES[proto.dtype], full_shape(proto.shape)
    if not 0 <= proto.shard_id < shards:
        raise ValueError(f"it is in data file {proto.shard_id} of {shards}")
    size = math.prod(shape) * kind.numpy.itemsize
    fits = size == proto.size <= MOST_BYTES
    if kind.name == "string":
        # The length of a string takes a byte at least.
        fits = math.prod(shape) + 4 <= proto.size <= MOST_STRING_BYTES
    if not fits or proto.offset < 0:
        raise ValueError(f"{proto.size} bytes at {proto.offset} for {kind.name} of shape {shape}")
    return Entry(kind, shape, proto.shard_id, proto.offset, proto.size, proto.crc32c)


# Strings: their lengths, the checksum of those, their bytes.


def _strings(data: bytes, entry: Entry) -> NDArray[Any]:
    lengths, at = [], 0
    for _ in range(math.prod(entry.shape)):
        length, at = varint(data, at)
        lengths.append(length)
    checksum, at = data[at : at + 4], at + 4
    if at + sum(lengths) != len(data):
        raise ValueError(f"its strings take {at + sum(lengths)} bytes, the index says {len(data)}")
    _check(google_crc32c.value(_fixed(lengths)), int.from_bytes(checksum, "little"), "lengths")
    _check(google_crc32c.value(_fixed(lengths) + checksum + data[at:]), entry.crc32c, "strings")
    strings = np.empty(len(lengths), object)
    for number, length in enumerate(lengths):
        strings[number] = data[at : at + length]
        at += length
    return strings.reshape(entry.shape)


def _fixed(lengths: Sequence[int]) -> bytes:
    """Return lengths of strings as their checksum takes them."""
    return b"".join(n.to_bytes(4 if n < 1 << 32 else 8, "little") for n in lengths)


# Writing


def write_bundle(prefix: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a checkpoint of one data file.

    Args:
        prefix: the path of the index without ``.index``; it may end in a slash.
        tensors: by name; of numbers of a type that TensorFlow has, or of ``bytes`` objects.

    Raises:
        OSError: it cannot be written.
    """
    header = protos.BundleHeaderProto(num_shards=1, version={"producer": 1})
    items = [(b"", header.SerializeToString())]
    numbers = {kind.name: number for number, kind in DATA_TYPES.items()}
    offset = 0
    with prefix.with_name(f"{prefix.name}.data-00000-of-00001").open("wb") as file:
        for name, array in sorted(tensors.items(), key=lambda item: item[0].encode()):
            kind = DATA_TYPES[numbers["string" if array.dtype == object else array.dtype.name]]
            if kind.name == "string":
                strings = array.ravel().tolist()
                lengths = [len(string) for string in strings]
                fixed = _fixed(lengths)
                checksum = _masked(google_crc32c.value(fixed)).to_bytes(4, "little")
                rest = b"".join([checksum, *strings])
                data, checked = b"".join(map(_as_varint, lengths)) + rest, fixed + rest
            else:
                data = checked = array.astype(kind.numpy).tobytes()
            entry = protos.BundleEntryProto(
                dtype=numbers[kind.name],
                shape={"dim": [{"size": size} for size in array.shape]},
                offset=offset,
                size=len(data),
                crc32c=_masked(google_crc32c.value(checked)),
            )
            items.append((name.encode(), entry.SerializeToString()))
            offset += file.write(data)
    _write_table(prefix.with_name(f"{prefix.name}.index"), items)


def _write_table(path: Path, items: Sequence[tuple[bytes, bytes]]) -> None:
    entries = _as_block(items)
    nothing = _as_block([])
    handles = _as_varint(0) + _as_varint(len(entries) - _TRAILER)
    index = _as_block([(items[-1][0], handles)])
    first, second = len(entries), len(entries) + len(nothing)
    footer = _as_varint(first) + _as_varint(len(nothing) - _TRAILER)
    footer += _as_varint(second) + _as_varint(len(index) - _TRAILER)
    footer = footer.ljust(_FOOTER - len(_MAGIC), b"\0") + _MAGIC
    path.write_bytes(entries + nothing + index + footer)


def _as_block(items: Sequence[tuple[bytes, bytes]]) -> bytearray:
    """Return a block with its trailer; no key shares anything with the one before."""
    block, restarts = bytearray(), []
    for key, value in items:
        restarts.append(len(block))
        block += _as_varint(0) + _as_varint(len(key)) + _as_varint(len(value)) + key + value
    restarts = restarts or [0]
    block += b"".join(n.to_bytes(4, "little") for n in (*restarts, len(restarts))) + b"\0"
    return block + _masked(google_crc32c.value(bytes(block))).to_bytes(4, "little")


def _as_varint(number: int) -> bytes:
    data = bytearray()
    while number >= 0x80:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*data, number])
