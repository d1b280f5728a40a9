"""``saved_model.pb`` read without TensorFlow, beside what TensorFlow reads in it."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import protos
from converters.containers import saved_model
from converters.errors import ConversionError
from converters.tensorflow import import_tensorflow
from converters.tensors import DATA_TYPES, ndarray_from_tensor_proto

ROOT = Path(__file__).parents[1]
ARCHIVES = sorted((ROOT / "tests/data").glob("*.tar.gz"))
OUTSIDE = sorted((ROOT.parent / "shared/fixtures").glob("*_a0_*.tar.gz"))

Export = tuple[Path, Any, Any]


@pytest.fixture(scope="module", params=[*ARCHIVES, *OUTSIDE], ids=lambda path: path.name)
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A real export: (folder, as read here, TensorFlow's message)."""
    folder = tmp_path_factory.mktemp("model")
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    return _read_twice(folder)


def _read_twice(folder: Path) -> Export:
    import_tensorflow()
    from tensorflow.core.protobuf import saved_model_pb2

    theirs = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    return folder, saved_model.read(folder), theirs.meta_graphs[0]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A module of our own: with what no MoViNet export has."""
    tf = import_tensorflow()
    folder = tmp_path_factory.mktemp("small")

    class Module(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            self.weight = tf.Variable([[1.5, -2.0]], name="a/weight")
            self.step = tf.Variable(7, dtype=tf.int64, name="step", trainable=False)
            self.inner = {"table": [tf.Variable([True, False], name="flags")]}
            self.table = tf.constant(np.arange(6, dtype=np.float32).reshape(2, 3))
            self.again = tf.constant(0.25, shape=(4, 5))

        @tf.function(input_signature=[tf.TensorSpec((None, 1), tf.float32, "image")])
        def call(self, image: Any) -> Any:
            return {"logits": image @ self.weight @ self.table, "again": self.again + 1}

    module = Module()
    tf.saved_model.save(module, str(folder), signatures={"call": module.call})
    return _read_twice(folder)


# Messages


def theirs(name: str) -> Any:
    import_tensorflow()
    from tensorflow.core.protobuf import saved_model_pb2, tensor_bundle_pb2

    assert tensor_bundle_pb2
    return saved_model_pb2.DESCRIPTOR.pool.FindMessageTypeByName(f"tensorflow.{name}")


def described(field: Any) -> tuple[Any, ...]:
    """What a field is; an enumeration counts as a number."""
    kind = field.TYPE_INT32 if field.type == field.TYPE_ENUM else field.type
    message = field.message_type.full_name if field.message_type else ""
    oneof = field.containing_oneof.name if field.containing_oneof else ""
    return field.number, kind, field.is_repeated, message, oneof


@pytest.mark.parametrize("name", protos.MESSAGES)
def test_message_has_the_fields_that_tensorflow_gives_it(name: str) -> None:
    ours = protos._class(name).DESCRIPTOR
    known = {field.name: described(field) for field in theirs(name).fields}
    assert ours.fields
    for field in ours.fields:
        assert described(field) == known[field.name], field.name
        if field.message_type and field.message_type.GetOptions().map_entry:
            parts = field.message_type.fields
            wanted = theirs(name).fields_by_name[field.name].message_type.fields
            assert [described(part) for part in parts] == [described(part) for part in wanted]


def test_an_attribute_that_is_false_is_not_an_attribute_that_is_missing() -> None:
    import_tensorflow()
    from tensorflow.core.framework import attr_value_pb2

    data = attr_value_pb2.AttrValue(b=False).SerializeToString()
    assert protos.parse(protos.AttrValue, data).WhichOneof("value") == "b"


def test_reading_imports_no_tensorflow() -> None:
    code = (
        "import sys\n"
        "from converters.containers import bundle, saved_model\n"
        "assert not [name for name in sys.modules if name.startswith(('tensorflow', 'h5py'))]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# The whole file


def test_every_function_is_tensorflow_s(export: Export) -> None:
    _, ours, wanted = export
    functions = {f.signature.name: f for f in wanted.graph_def.library.function}
    assert set(ours.functions) == set(functions)
    assert len(ours.functions) == len(functions) > 10
    message = type(wanted.graph_def.library.function[0])
    for name, function in functions.items():
        found = ours.functions[name]
        assert [node.name for node in found.node_def] == [node.name for node in function.node_def]
        assert message.FromString(found.SerializeToString()) == function


def test_graph_signatures_and_objects_are_tensorflow_s(export: Export) -> None:
    _, ours, wanted = export
    without = type(wanted.graph_def)()
    without.CopyFrom(wanted.graph_def)
    without.ClearField("library")
    assert type(without).FromString(ours.graph.SerializeToString()) == without
    objects = type(wanted.object_graph_def).FromString(ours.object_graph.SerializeToString())
    assert objects == wanted.object_graph_def
    assert set(ours.signatures) == set(wanted.signature_def)
    for key, signature in wanted.signature_def.items():
        found = ours.signatures[key].SerializeToString()
        assert type(signature).FromString(found) == signature


def test_every_variable_is_tensorflow_s(export: Export) -> None:
    folder, ours, wanted = export
    loaded = import_tensorflow().train.load_checkpoint(str(folder / "variables/variables"))
    nodes = {
        number: node.variable
        for number, node in enumerate(wanted.object_graph_def.nodes)
        if node.WhichOneof("kind") == "variable"
    }
    assert set(ours.variables) == set(nodes)
    assert nodes
    for number, variable in ours.variables.items():
        assert variable.node == number
        assert variable.full_name == nodes[number].name
        assert list(variable.shape) == [d.size for d in nodes[number].shape.dim]
        value, expected = ours.value(number), loaded.get_tensor(variable.key)
        assert value.dtype == expected.dtype == variable.dtype
        assert value.shape == expected.shape == variable.shape
        assert value.tobytes() == expected.tobytes()


def test_variables_have_the_values_that_tensorflow_restores(small: Export) -> None:
    folder, ours, _ = small
    loaded = import_tensorflow().saved_model.load(str(folder))
    found = {v.full_name: ours.value(number) for number, v in ours.variables.items()}
    assert set(found) == {"a/weight", "step", "flags"}
    np.testing.assert_array_equal(found["a/weight"], loaded.weight.numpy())
    np.testing.assert_array_equal(found["step"], loaded.step.numpy())
    np.testing.assert_array_equal(found["flags"], loaded.inner["table"][0].numpy())


def test_captured_constants_are_read(small: Export) -> None:
    _, ours, _ = small
    objects = ours.object_graph.nodes
    bound = ours.object_graph.concrete_functions["__inference_call_" + _number(ours)].bound_inputs
    found = [ours.value(number) for number in bound]
    assert [value.shape for value in found] == [(1, 2), (2, 3), (4, 5)]
    np.testing.assert_array_equal(found[0], np.float32([[1.5, -2.0]]))
    np.testing.assert_array_equal(found[1], np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_array_equal(found[2], np.full((4, 5), 0.25, np.float32))
    kinds = [objects[number].WhichOneof("kind") for number in bound]
    assert kinds == ["variable", "constant", "constant"]
    with pytest.raises(ConversionError, match="object 0 is no variable and no constant"):
        ours.value(0)


def _number(model: saved_model.SavedModel) -> str:
    (name,) = [n for n in model.object_graph.concrete_functions if n.startswith("__inference_call")]
    return name.rpartition("_")[2]


# Constants

SHAPES = [(), (1,), (5,), (2, 3), (0, 4), (2, 1, 3)]


def _values(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    if name == "string":
        texts = [b"", b"a", b"caf\xc3\xa9", bytes(range(256)), b"\0"]
        return rng.choice(np.array(texts, object), shape) if shape else texts[3]
    if name == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if name.startswith(("float", "complex", "bfloat")):
        values = rng.normal(0, 10, shape)
        return values + 1j * rng.normal(size=shape) if name.startswith("complex") else values
    kind = np.dtype(name.removeprefix("q"))
    info = np.iinfo(kind)
    return rng.integers(info.min, info.max, shape, kind, endpoint=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("number", DATA_TYPES)
def test_constant_of_every_type_is_tensorflow_s(number: int, shape: tuple[int, ...]) -> None:
    tf = import_tensorflow()
    dtype = tf.dtypes.as_dtype(number)
    assert dtype.name == DATA_TYPES[number].name
    values = _values(dtype.name, shape, np.random.default_rng(number))
    for proto in _encodings(tf, values, shape, dtype):
        expected = tf.make_ndarray(proto)
        found = ndarray_from_tensor_proto(
            protos.parse(protos.TensorProto, proto.SerializeToString())
        )
        assert found.shape == expected.shape
        if dtype.name == "string":
            assert found.tolist() == expected.tolist()
        elif dtype.name == "bfloat16":
            assert found.dtype == np.float32
            assert found.tobytes() == expected.astype(np.float32).tobytes()
        else:
            stored = expected.view(found.dtype) if dtype.name.startswith("q") else expected
            assert found.dtype == stored.dtype
            assert found.tobytes() == stored.tobytes()


def _encodings(tf: Any, values: Any, shape: tuple[int, ...], dtype: Any) -> Iterator[Any]:
    """One by one, as bytes, the last value repeated, and no value at all."""
    if dtype.is_quantized:
        stored = np.asarray(values, dtype.name.removeprefix("q")).astype(dtype.as_numpy_dtype)
    elif dtype == tf.string:
        stored = np.array(values, object)
    else:
        stored = np.asarray(values).astype(dtype.as_numpy_dtype)
    message = type(tf.make_tensor_proto(0))
    listed = message(dtype=dtype.as_datatype_enum)
    listed.tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
    field = DATA_TYPES[dtype.as_datatype_enum].field
    flat = stored.ravel()
    parts: list[Any] = flat.tolist()
    if field == "half_val":
        parts = flat.view(np.uint16).tolist()
    elif dtype.is_complex:
        parts = [part for value in parts for part in (value.real, value.imag)]
    elif dtype.is_quantized:
        parts = flat.view(dtype.name.removeprefix("q")).tolist()
    getattr(listed, field).extend(parts)
    yield listed
    if dtype != tf.string:
        packed = message(dtype=dtype.as_datatype_enum, tensor_content=stored.tobytes())
        packed.tensor_shape.CopyFrom(listed.tensor_shape)
        yield packed
    for kept in (1, 0):
        short = message()
        short.CopyFrom(listed)
        del getattr(short, field)[kept * (2 if dtype.is_complex else 1) :]
        # Zeros of a quantised type and strings: TensorFlow's Python makes them of its own kind.
        if kept or not (dtype.is_quantized or dtype == tf.string):
            yield short


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda p: p.tensor_shape.dim.add(size=1 << 40), "bytes of content"),
        (lambda p: p.tensor_shape.dim.add(size=-1), "a shape that is not known"),
        (lambda p: setattr(p.tensor_shape, "unknown_rank", True), "a shape that is not known"),
        (lambda p: setattr(p, "tensor_content", b"12345"), "5 bytes of content for float32"),
        (lambda p: setattr(p, "dtype", 20), "data type 20 of TensorFlow's is not read"),
        (lambda p: p.ClearField("dtype"), "data type 0 of TensorFlow's is not read"),
        (
            lambda p: (p.ClearField("tensor_content"), p.tensor_shape.dim.add(size=1 << 40)),
            "0 values repeated to shape",
        ),
        (
            lambda p: (p.ClearField("tensor_content"), p.float_val.extend([0.0] * 7)),
            "7 values in float_val",
        ),
    ],
)
def test_constant_that_contradicts_itself_is_refused_before_memory_is_taken(
    change: Any, expected: str
) -> None:
    proto = protos.TensorProto(dtype=1, tensor_content=bytes(24))
    for size in (2, 3):
        proto.tensor_shape.dim.add(size=size)
    assert ndarray_from_tensor_proto(proto).shape == (2, 3)
    change(proto)
    with pytest.raises(ValueError, match=expected):
        ndarray_from_tensor_proto(proto)


# Damage


def everything(folder: Path) -> list[object]:
    """All that a file says, read; in a form that can be compared."""
    model = saved_model.read(folder)
    found: list[object] = [model.graph, model.object_graph, dict(model.signatures)]
    found += [(name, model.functions[name]) for name in sorted(model.functions)]
    return [*found, [(v, model.value(n).tobytes()) for n, v in model.variables.items()]]


def refusal(folder: Path) -> str:
    try:
        everything(folder)
    except ConversionError as error:
        return str(error)
    return ""


def test_damaged_file_is_refused_in_one_line_or_says_something_else(
    small: Export, tmp_path: Path
) -> None:
    import shutil

    folder = shutil.copytree(small[0], tmp_path / "model")
    file = folder / "saved_model.pb"
    whole = file.read_bytes()
    rng = random.Random(3)
    refused = 0
    for number in range(200):
        data = bytearray(whole)
        at = rng.randrange(len(data))
        match number % 5:
            case 0 | 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at:]
            case 3:
                data[at : at + 20] = rng.randbytes(20)
            case 4:
                data[at:at] = rng.randbytes(rng.choice((1, 9, 1000)))
        file.write_bytes(data)
        start = time.monotonic()
        message = refusal(folder)
        assert time.monotonic() - start < 5
        if message:
            refused += 1
            assert len(message.splitlines()) == 1
            assert str(folder) in message
    assert refused > 100


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "it has 0 graphs, expected one"),
        (b"<!doctype html>", "not a SavedModel's graph"),
        (b"\x12\x00\x12\x00", "it has 2 graphs, expected one"),
        (b"\x12\x02\x12\x00", "it has no object graph: a file of TensorFlow 1"),
        (b"\x12\x06\x12\x00\x3a\x02\x0a\x00", "its object graph"),
        (b"\x12\xff\xff\xff\xff\x0f", "it ends within a field"),
        (b"\x12" + b"\xff" * 11, "a number is cut short"),
    ],
)
def test_file_of_something_else_is_refused(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(content)
    if expected == "its object graph":
        assert saved_model.read(tmp_path).object_graph.nodes
        return
    with pytest.raises(ConversionError, match=expected):
        saved_model.read(tmp_path)


def test_no_file_takes_more_memory_than_the_limits_allow(tmp_path: Path) -> None:
    # Empty nodes: two bytes each here, hundreds in memory.
    nodes = b"\x0a\x00" * (1 << 23)
    graph = b"\x12" + _varint(len(nodes)) + nodes
    (tmp_path / "saved_model.pb").write_bytes(b"\x12" + _varint(len(graph)) + graph)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConversionError, match="more than 1000000 parts"):
        saved_model.read(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20
    with (tmp_path / "saved_model.pb").open("wb") as file:
        file.truncate((1 << 29) + 1)
    with pytest.raises(ConversionError, match="expected at most"):
        saved_model.read(tmp_path)


def _varint(number: int) -> bytes:
    data = bytearray()
    while number >= 0x80:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*data, number])
