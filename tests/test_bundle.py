"""TF2 checkpoints read and written without TensorFlow, beside TensorFlow's own reader."""

from __future__ import annotations

import random
import shutil
import tarfile
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import containers
import numpy as np
import pytest
from numpy.typing import NDArray

from converters import protos
from converters.containers import bundle
from converters.containers.bundle import OBJECT_GRAPH_KEY, Bundle, write_bundle
from converters.containers.snappy import decompress
from converters.errors import ConversionError
from converters.tensorflow import import_tensorflow
from converters.tensors import DATA_TYPES

ROOT = Path(__file__).parents[1]
ARCHIVES = sorted((ROOT / "tests/data").glob("*.tar.gz"))
OUTSIDE = sorted((ROOT.parent / "shared/fixtures").glob("*_a0_*.tar.gz"))

SHAPES: list[tuple[int, ...]] = [(), (1,), (7,), (3, 0), (2, 3, 5)]
Arrays = dict[str, NDArray[Any]]


def assert_as_tensorflow(prefix: Path) -> Bundle:
    """Every tensor has TensorFlow's name, type, shape and bits."""
    theirs = import_tensorflow().train.load_checkpoint(str(prefix))
    shapes, dtypes = theirs.get_variable_to_shape_map(), theirs.get_variable_to_dtype_map()
    ours = Bundle(prefix)
    assert sorted(ours.entries) == sorted(shapes)
    assert shapes
    for name, entry in ours.entries.items():
        assert entry.kind.name == dtypes[name].name
        assert list(entry.shape) == shapes[name]
        found, wanted = ours.read(name), theirs.get_tensor(name)
        if entry.kind.name == "string":
            assert np.asarray(wanted, object).tolist() == found.tolist()
            continue
        wanted = np.asarray(wanted)
        if entry.kind.name == "bfloat16":
            wanted = wanted.astype(np.float32)
        elif entry.kind.name.startswith("q"):
            wanted = wanted.view(entry.kind.numpy)
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        assert found.tobytes() == wanted.tobytes()
    return ours


def save(prefix: Path, tensors: Mapping[str, Any], slices: str = "") -> Path:
    """Write a checkpoint with TensorFlow."""
    import_tensorflow().raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[slices] * len(tensors),
        tensors=list(tensors.values()),
    )
    return prefix


def refusal(prefix: Path) -> str:
    """What reading all of a checkpoint says is wrong with it, or nothing."""
    with pytest.raises(ConversionError) as caught:
        everything(prefix)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{prefix}: ")
    return message


def everything(prefix: Path) -> list[object]:
    """All that a checkpoint says, in a form that can be compared."""
    opened = Bundle(prefix)
    return [
        (name, entry.kind, entry.shape, _bits(opened.read(name)))
        for name, entry in opened.entries.items()
    ]


def _bits(value: NDArray[Any]) -> object:
    return value.tolist() if value.dtype == object else value.tobytes()


@pytest.mark.parametrize("archive", [*ARCHIVES, *OUTSIDE], ids=lambda path: path.name)
def test_every_tensor_of_an_export_is_tensorflow_s(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    ours = assert_as_tensorflow(tmp_path / "variables/variables")
    assert len(ours.entries) > 200
    assert len(ours.object_graph().nodes) > 200


def every_type(seed: int = 0) -> dict[str, Any]:
    """Tensors of every type and of several shapes, as TensorFlow's."""
    tf = import_tensorflow()
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for number, kind in DATA_TYPES.items():
        dtype = tf.dtypes.as_dtype(number)
        for shape in SHAPES:
            name = f"{kind.name}/{len(shape)}/{'x'.join(map(str, shape))}"
            if kind.name == "string":
                words = [rng.bytes(int(n)) for n in rng.integers(0, 300, int(np.prod(shape)))]
                found[name] = tf.constant(np.array(words, object).reshape(shape), tf.string)
                continue
            size = int(np.prod(shape)) * kind.numpy.itemsize
            data = rng.integers(0, 2 if kind.name == "bool" else 256, size, np.uint8).tobytes()
            # Every bit pattern, those that are no numbers included.
            proto = type(tf.make_tensor_proto(0))(dtype=number, tensor_content=data)
            proto.tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
            found[name] = tf.io.parse_tensor(proto.SerializeToString(), dtype)
    return found


def test_tensors_of_every_type_are_tensorflow_s(tmp_path: Path) -> None:
    ours = assert_as_tensorflow(save(tmp_path / "all", every_type()))
    assert {entry.kind.name for entry in ours.entries.values()} == {
        kind.name for kind in DATA_TYPES.values()
    }


def test_several_data_files_are_tensorflow_s(tmp_path: Path) -> None:
    numbers = {name: value for name, value in every_type().items() if "string" not in name}
    save(tmp_path / "one", numbers)
    ours = assert_as_tensorflow(containers.shard(tmp_path / "one", tmp_path / "two"))
    assert {entry.shard for entry in ours.entries.values()} == {0, 1}


def test_index_of_several_blocks_is_tensorflow_s(tmp_path: Path) -> None:
    # Names that share much with the one before, some quarter of a megabyte of what they do not.
    rng = random.Random(0)
    names = [f"model/{n:05}/{rng.randbytes(40).hex()}" for n in range(6000)]
    save(tmp_path / "many", {name: np.float32(n) for n, name in enumerate(names)})
    data = (tmp_path / "many.index").read_bytes()
    assert len(_blocks(data)) > 1
    ours = Bundle(tmp_path / "many")
    assert list(ours.entries) == sorted(names)
    for number in range(0, 6000, 37):
        assert ours.read(names[number]) == number


def _blocks(data: bytes) -> list[tuple[int, int]]:
    footer = data[-48:]
    at = 0
    for _ in range(2):
        _, at = protos.varint(footer, at)
    return [
        bundle._handle(where, 0)[0]
        for _, where in bundle._block(data, bundle._handle(footer, at)[0])
    ]


# Compressed blocks. TensorFlow writes none of late, but reads them.


def compress(data: bytes, rng: random.Random) -> bytes:
    """Snappy, with every kind of tag where it fits."""
    out = bytearray(_varint(len(data)))
    at = 0
    pending = b""

    def literal() -> None:
        nonlocal pending
        for start in range(0, len(pending), 70_000):
            piece = pending[start : start + 70_000]
            size = len(piece) - 1
            extra = 0 if size < 60 else max(1, (size.bit_length() + 7) // 8)
            out.append((59 + extra if extra else size) << 2)
            out.extend((size.to_bytes(extra, "little") if extra else b"") + piece)
        pending = b""

    while at < len(data):
        length = rng.choice((4, 8, 11, 30, 64))
        found = data.rfind(data[at : at + length], 0, at + length - 1)
        if found < 0 or len(data) - at < length or rng.random() < 0.3:
            pending += data[at : at + 1]
            at += 1
            continue
        literal()
        offset = at - found
        kinds = [4] + [2] * (offset < 1 << 16) + [1] * (offset < 1 << 11 and length <= 11)
        match rng.choice(kinds):
            case 1:
                out += bytes([1 | (length - 4) << 2 | offset >> 8 << 5, offset & 0xFF])
            case 2:
                out += bytes([2 | (length - 1) << 2]) + offset.to_bytes(2, "little")
            case 4:
                out += bytes([3 | (length - 1) << 2]) + offset.to_bytes(4, "little")
        at += length
    literal()
    return bytes(out)


def _varint(number: int) -> bytes:
    return bytes(bundle._as_varint(number))


def test_compressed_index_is_tensorflow_s(tmp_path: Path) -> None:
    save(tmp_path / "plain", every_type())
    shutil.copy(tmp_path / "plain.data-00000-of-00001", tmp_path / "small.data-00000-of-00001")
    items = list(bundle._table((tmp_path / "plain.index").read_bytes()))
    rng = random.Random(1)

    def block(entries: list[tuple[bytes, bytes]]) -> bytes:
        data = compress(bytes(bundle._as_block(entries)[:-5]), rng) + b"\1"
        return data + bundle._masked(bundle.google_crc32c.value(data)).to_bytes(4, "little")

    written, handles = b"", []
    for start in range(0, len(items), 40):
        part = items[start : start + 40]
        data = block(part)
        handles.append((part[-1][0], _varint(len(written)) + _varint(len(data) - 5)))
        written += data
    tail = b""
    for data in (block([]), block(handles)):
        tail += _varint(len(written)) + _varint(len(data) - 5)
        written += data
    written += tail.ljust(40, b"\0") + 0xDB4775248B80FB57.to_bytes(8, "little")
    (tmp_path / "small.index").write_bytes(written)
    assert_as_tensorflow(tmp_path / "small")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x05\x10hello", b"hello"),
        # Copies that overlap what they make.
        (b"\x0c\x04xy\x26\x02\x00", b"xyxyxyxyxyxy"),
        (b"\x09\x00a\x11\x01", b"a" * 9),
        (b"\x00", b""),
    ],
)
def test_compressed_bytes_are_what_the_format_says(data: bytes, expected: bytes) -> None:
    assert decompress(data, 100) == expected


def test_compressed_bytes_come_back_and_no_part_of_them_does() -> None:
    rng = random.Random(5)
    for length in (0, 1, 59, 60, 61, 300, 5000, 140_000):
        data = b"".join(
            rng.choice((b"weights/", b"block", rng.randbytes(3))) for _ in range(length)
        )
        data = data[:length]
        packed = compress(data, rng) if length < 10_000 else _varint(length) + _long(data)
        assert decompress(packed, 1 << 20) == data
        for cut in range(len(packed)) if length == 300 else ():
            with pytest.raises(ValueError, match="compressed data"):
                decompress(packed[:cut], 1 << 20)


def _long(data: bytes) -> bytes:
    return b"\xf8" + (len(data) - 1).to_bytes(3, "little") + data


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xff\xff\xff\xff\x0f", "expected at most"),
        (b"\xff" * 9, "without a length"),
        (b"\x80\x80\x80\x80\x80\x01", "without a length"),
        (b"", "without a length"),
        (b"\x04\x0cabc", "end too early"),
        (b"\x02\x08abc", "go on too long"),
        (b"\x05\x00a\x02\x00\x00", "before their start"),
        (b"\x05\x00a\x0e\x02\x00", "before their start"),
        (b"\x05\x08abc", "3 bytes, expected 5"),
    ],
)
def test_damaged_compression_is_refused(data: bytes, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        decompress(data, 1000)


# What is not read


def test_partitioned_variable_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path / "part", {"embedding": np.zeros((2, 2), np.float32)}, "4 2 0,2:0,2")
    assert "variable embedding is partitioned, which is not read" in refusal(tmp_path / "part")
    items = list(bundle._table((tmp_path / "part.index").read_bytes()))
    bundle._write_table(tmp_path / "part.index", items[:2])
    assert "it has 1 parts of partitioned variables" in refusal(tmp_path / "part")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A small checkpoint: (2, 3) of float32 called "weight", an object graph."""
    graph = protos.TrackableObjectGraph()
    graph.nodes.add().children.add(node_id=1, local_name="weight")
    graph.nodes.add().attributes.add(
        name="VARIABLE_VALUE", full_name="weight", checkpoint_key="weight"
    )
    write_bundle(
        tmp_path / "ckpt-1",
        {
            "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
            OBJECT_GRAPH_KEY: np.array(graph.SerializeToString(), object),
        },
    )
    return tmp_path / "ckpt-1"


def rewrite(prefix: Path, change: Any) -> None:
    """Write the index of a small checkpoint with its header or an entry changed."""
    path = prefix.with_name(f"{prefix.name}.index")
    items = dict(bundle._table(path.read_bytes()))
    header = protos.parse(protos.BundleHeaderProto, items[b""])
    entry = protos.parse(protos.BundleEntryProto, items[b"weight"])
    change(header, entry)
    items |= {b"": header.SerializeToString(), b"weight": entry.SerializeToString()}
    bundle._write_table(path, sorted(items.items()))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda h, e: setattr(h, "endianness", 1), "a big-endian machine, which is not read"),
        (lambda h, e: setattr(h.version, "min_consumer", 2), "version is 2, expected at most 1"),
        (
            lambda h, e: setattr(e, "dtype", 20),
            "weight: data type 20 of TensorFlow's is not read",
        ),
        (lambda h, e: setattr(e, "shard_id", 1), "variable weight: it is in data file 1 of 1"),
        (lambda h, e: setattr(e, "shard_id", -1), "it is in data file -1 of 1"),
        (lambda h, e: setattr(h, "num_shards", 0), "it is in data file 0 of 0"),
        (lambda h, e: setattr(h, "num_shards", 7), "No such file"),
        (lambda h, e: setattr(e, "offset", -8), "24 bytes at -8"),
        (lambda h, e: setattr(e, "offset", 1 << 62), "the index says 46116860184273879"),
        (lambda h, e: setattr(e, "size", 23), "23 bytes at"),
        (lambda h, e: setattr(e.shape.dim[0], "size", 1 << 40), "of shape"),
        (lambda h, e: setattr(e.shape.dim[0], "size", -2), "a shape that is not known"),
        (lambda h, e: setattr(e.shape, "unknown_rank", True), "a shape that is not known"),
        (lambda h, e: setattr(e, "crc32c", 1), "variable weight: the checksum is wrong"),
        (
            lambda h, e: (e.shape.dim.add(size=1 << 28), setattr(e, "size", 24 << 28)),
            "bytes at",
        ),
        (
            lambda h, e: (
                (e.ClearField("shape"), e.shape.dim.add(size=1 << 26))
                and (setattr(e, "size", 1 << 28))
            ),
            "the index says",
        ),
    ],
)
def test_entry_that_contradicts_the_files_is_refused(
    written: Path, change: Any, expected: str
) -> None:
    assert len(everything(written)) == 2
    rewrite(written, change)
    assert expected in refusal(written)


def test_tensor_of_a_type_that_is_not_read_keeps_no_other_from_being_read(tmp_path: Path) -> None:
    tf = import_tensorflow()
    data = iter(tf.data.Dataset.range(3))
    weight = tf.Variable([1.0, 2.0])
    prefix = Path(tf.train.Checkpoint(data=data, weight=weight).write(str(tmp_path / "ckpt")))
    opened = Bundle(prefix)
    assert opened.read("weight/.ATTRIBUTES/VARIABLE_VALUE").tolist() == [1, 2]
    odd = [name for name, entry in opened.entries.items() if not entry.kind.field]
    assert len(odd) == 1
    with pytest.raises(ConversionError, match="data type 21 of TensorFlow's is not read"):
        opened.read(odd[0])


def test_checkpoint_without_an_object_graph_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "old", {"conv/kernel": np.zeros(3), "conv/bias": np.zeros(2)})
    with pytest.raises(ConversionError, match=r"TensorFlow 1\?.*found conv/bias, conv/kernel"):
        Bundle(tmp_path / "old").object_graph()
    save(tmp_path / "no", {OBJECT_GRAPH_KEY: np.zeros(3)})
    with pytest.raises(ConversionError, match="object graph: it is no string"):
        Bundle(tmp_path / "no").object_graph()
    save(tmp_path / "bad", {OBJECT_GRAPH_KEY: np.array(b"\xff\xff", object)})
    with pytest.raises(ConversionError, match="no TrackableObjectGraph"):
        Bundle(tmp_path / "bad").object_graph()


def test_tensor_that_is_not_there_is_named(written: Path) -> None:
    with pytest.raises(ConversionError, match="variable bias: it is not in the index"):
        Bundle(written).read("bias")
    written.with_name("ckpt-1.data-00000-of-00001").unlink()
    assert "No such file" in refusal(written)
    written.with_name("ckpt-1.index").unlink()
    assert "cannot read its index: No such file" in refusal(written)


# Damage


def small(prefix: Path) -> Path:
    """A checkpoint of a handful of tensors, as TensorFlow writes it."""
    return save(
        prefix,
        {
            "model/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
            "model/bias": np.array([1, 2], np.int64),
            "model/names": np.array([b"one", b"", b"three"], object),
            "save_counter": np.int32(3),
        },
    )


def test_every_byte_of_an_index_flipped_is_refused_or_harmless(tmp_path: Path) -> None:
    prefix = small(tmp_path / "ckpt")
    expected = everything(prefix)
    path = tmp_path / "ckpt.index"
    whole = path.read_bytes()
    harmless = []
    start = time.monotonic()
    for at in range(len(whole)):
        for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            data = bytearray(whole)
            data[at] ^= mask
            path.write_bytes(data)
            if _as_before(prefix, expected):
                harmless.append(at)
    assert time.monotonic() - start < 60
    # The unused block of statistics, where it is said to be, and what fills the footer up.
    statistics, _ = bundle._handle(whole[-48:], 0)
    unused = range(statistics[0], sum(statistics) + 5)
    assert set(harmless) - {*unused, *range(len(whole) - 48, len(whole))} == set()
    assert set(unused) <= set(harmless)


def _as_before(prefix: Path, expected: list[object]) -> bool:
    """Whether a damaged checkpoint says what it said; if not, it is refused in one line."""
    try:
        found = everything(prefix)
    except ConversionError as error:
        message = str(error)
    else:
        assert found == expected
        return True
    assert len(message.splitlines()) == 1
    assert message.startswith(f"{prefix}: cannot read its ")
    return False


def test_damaged_checkpoint_is_refused_or_harmless(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    numbers = {name: v for name, v in every_type().items() if not name.startswith("string/3")}
    save(whole / "one", numbers)
    containers.shard(whole / "one", whole / "two")
    expected = everything(whole / "two")
    rng = random.Random(11)
    refused = 0
    for number in range(200):
        folder = shutil.copytree(whole, tmp_path / "damaged")
        file = rng.choice(sorted(folder.glob("two.*")))
        data = bytearray(file.read_bytes())
        at = rng.randrange(len(data))
        match number % 6:
            case 0 | 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at:]
            case 3:
                data[at : at + 50] = rng.randbytes(min(50, len(data) - at))
            case 4:
                data[at:at] = rng.randbytes(rng.choice((1, 8, 1000)))
            case 5:
                data[at : at + 60] = bytes(min(60, len(data) - at))
        file.write_bytes(data)
        start = time.monotonic()
        refused += not _as_before(folder / "two", expected)
        assert time.monotonic() - start < 5
        shutil.rmtree(folder)
    assert refused > 180


def _table(*blocks: list[tuple[bytes, bytes]], handles: list[int] | None = None) -> bytes:
    """An index of these blocks, listed in the order of `handles`."""
    data, places = b"", []
    for entries in blocks:
        block = bundle._as_block(entries)
        places.append(_varint(len(data)) + _varint(len(block) - 5))
        data += block
    index = bundle._as_block([(b"z", places[n]) for n in handles or range(len(blocks))])
    footer = _varint(0) * 2 + _varint(len(data)) + _varint(len(index) - 5)
    return data + index + footer.ljust(40, b"\0") + 0xDB4775248B80FB57.to_bytes(8, "little")


HEADER = (b"", protos.BundleHeaderProto(num_shards=1).SerializeToString())


ENTRY = protos.BundleEntryProto(dtype=1, size=4).SerializeToString()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "it does not end as an index ends"),
        (b"<!doctype html>" * 9, "it does not end as an index ends"),
        (_table([]), "it has no header"),
        (_table([(b"a", b"")]), "it has no header"),
        (_table([HEADER, HEADER]), "its keys are in disorder"),
        (_table([HEADER, (b"b", ENTRY), (b"a", ENTRY)]), "its keys are in disorder"),
        (_table([HEADER], [(b"a", ENTRY)], handles=[0, 1, 1]), "its blocks are in disorder"),
        (_table([HEADER], [(b"a", ENTRY)], [], handles=[0, 2, 1]), "its blocks are in disorder"),
        (_table([HEADER, (b"\xff", b"")]), "codec can't decode"),
        (_table([(b"", b"\xff\xff")]), "no BundleHeaderProto"),
        (_table([HEADER, (b"a", b"\xff\xff")]), "no BundleEntryProto"),
        (_table([HEADER, (b"a\nb", b"\x38")]), "no BundleEntryProto"),
    ],
)
def test_index_that_is_none_is_refused(data: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "ckpt.index").write_bytes(data)
    assert expected in refusal(tmp_path / "ckpt")


def test_index_that_unpacks_to_too_much_is_refused_in_time(tmp_path: Path) -> None:
    # A long name that many others start with: a megabyte in the file, a gigabyte in memory.
    long = b"k" * 8_000
    entries = bytearray(_varint(0) + _varint(0) + _varint(len(HEADER[1])) + HEADER[1])
    entries += _varint(0) + _varint(len(long)) + _varint(len(ENTRY)) + long + ENTRY
    for number in range(200_000):
        entries += _varint(len(long)) + _varint(6) + _varint(len(ENTRY))
        entries += b"%06d" % number + ENTRY
    data = bytes(entries) + (0).to_bytes(4, "little") + (1).to_bytes(4, "little")
    _bomb(tmp_path, data + b"\0")
    # And one that snappy makes of a few bytes.
    _bomb(tmp_path, _varint((1 << 25) + 1) + b"\x00a" + b"\xfe\x01\x00" * 100 + b"\1")


def _bomb(folder: Path, data: bytes) -> None:
    block = data + bundle._masked(bundle.google_crc32c.value(data)).to_bytes(4, "little")
    index = bundle._as_block([(b"z", _varint(0) + _varint(len(block) - 5))])
    footer = _varint(0) * 2 + _varint(len(block)) + _varint(len(index) - 5)
    footer = footer.ljust(40, b"\0") + 0xDB4775248B80FB57.to_bytes(8, "little")
    (folder / "ckpt.index").write_bytes(block + index + footer)
    start = time.monotonic()
    tracemalloc.start()
    message = refusal(folder / "ckpt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "unpacks to more" in message or "expected at most" in message
    assert time.monotonic() - start < 10
    assert peak < 200_000_000


# Writing


def test_what_is_written_is_what_tensorflow_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    tensors: Arrays = {OBJECT_GRAPH_KEY: np.array(bytes(range(256)) * 300, object)}
    for kind in DATA_TYPES.values():
        if kind.name[0] in "qs" or kind.name == "bfloat16":
            continue
        for shape in SHAPES:
            size = int(np.prod(shape)) * kind.numpy.itemsize
            data = rng.integers(0, 2 if kind.name == "bool" else 256, size, np.uint8)
            tensors[f"{kind.name}/{shape}"] = data.view(kind.numpy).reshape(shape)
    tensors["strided"] = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::-1].T
    tensors["strings"] = np.array([[b"a", b""], [b"x" * 300, b"bc"]], object)
    tensors["big"] = np.arange(5, dtype=">f4")
    write_bundle(tmp_path / "ckpt", tensors)
    ours = assert_as_tensorflow(tmp_path / "ckpt")
    assert list(ours.entries) == sorted(tensors)
    for name, value in tensors.items():
        assert ours.read(name).tolist() == value.tolist() or np.isnan(value).any()


def test_what_is_written_is_restored_object_by_object(tmp_path: Path) -> None:
    tf = import_tensorflow()
    graph = protos.TrackableObjectGraph()
    root, weight = graph.nodes.add(), graph.nodes.add()
    root.children.add(node_id=1, local_name="weight")
    key = "weight/.ATTRIBUTES/VARIABLE_VALUE"
    weight.attributes.add(name="VARIABLE_VALUE", full_name="any", checkpoint_key=key)
    value = np.float32([[1, 2], [3, 4]])
    tensors = {key: value, OBJECT_GRAPH_KEY: np.array(graph.SerializeToString(), object)}
    write_bundle(tmp_path / "ckpt", tensors)
    module = tf.Module()
    module.weight = tf.Variable(tf.zeros((2, 2)))
    checkpoint = tf.train.Checkpoint(module)
    checkpoint.read(str(tmp_path / "ckpt")).assert_existing_objects_matched().assert_consumed()
    assert module.weight.numpy().tolist() == value.tolist()


def _names() -> Iterator[str]:
    yield from ("a", "a/b", "é", "z" * 5000)


def test_names_of_any_length_are_written(tmp_path: Path) -> None:
    tensors: Arrays = {name: np.float32(n) for n, name in enumerate(_names())}
    write_bundle(tmp_path / "ckpt", tensors)
    assert set(assert_as_tensorflow(tmp_path / "ckpt").entries) == set(tensors)
