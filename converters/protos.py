"""TensorFlow's protocol buffers, as far as its files are read and written here.

The descriptors are made when this module is imported, in a pool of their own: there is no generated
code, and TensorFlow's own messages of the same names may be loaded in the same process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

# Message -> its fields, as in TensorFlow's .proto files; fields that are not here are skipped.
# Enumerations are int32, which is the same on the wire. What follows "oneof x:" is a field of it.
_MESSAGES = {
    # saved_model.proto, meta_graph.proto
    "SavedModel": "1 int64 saved_model_schema_version; 2 repeated MetaGraphDef meta_graphs",
    "MetaGraphDef": """1 MetaGraphDef.MetaInfoDef meta_info_def; 2 GraphDef graph_def;
        5 map<string,SignatureDef> signature_def; 7 SavedObjectGraph object_graph_def""",
    "MetaGraphDef.MetaInfoDef": "4 repeated string tags; 5 string tensorflow_version",
    "SignatureDef": """1 map<string,TensorInfo> inputs; 2 map<string,TensorInfo> outputs;
        3 string method_name""",
    "TensorInfo": "1 oneof encoding: string name; 2 int32 dtype; 3 TensorShapeProto tensor_shape",
    # graph.proto, node_def.proto, function.proto, op_def.proto
    "GraphDef": "1 repeated NodeDef node; 2 FunctionDefLibrary library; 4 VersionDef versions",
    "FunctionDefLibrary": "1 repeated FunctionDef function",
    "FunctionDef": """1 OpDef signature; 3 repeated NodeDef node_def; 4 map<string,string> ret;
        5 map<string,AttrValue> attr; 6 map<string,string> control_ret""",
    "OpDef": """1 string name; 2 repeated OpDef.ArgDef input_arg;
        3 repeated OpDef.ArgDef output_arg""",
    "OpDef.ArgDef": """1 string name; 3 int32 type; 4 string type_attr; 5 string number_attr;
        6 string type_list_attr""",
    "NodeDef": """1 string name; 2 string op; 3 repeated string input; 4 string device;
        5 map<string,AttrValue> attr""",
    "VersionDef": "1 int32 producer; 2 int32 min_consumer; 3 repeated int32 bad_consumers",
    # attr_value.proto; without the oneof, an attribute that is false would be none.
    "AttrValue": """1 oneof value: AttrValue.ListValue list; 2 oneof value: bytes s;
        3 oneof value: int64 i; 4 oneof value: float f; 5 oneof value: bool b;
        6 oneof value: int32 type; 7 oneof value: TensorShapeProto shape;
        8 oneof value: TensorProto tensor; 9 oneof value: string placeholder;
        10 oneof value: NameAttrList func""",
    "AttrValue.ListValue": """2 repeated bytes s; 3 repeated int64 i; 4 repeated float f;
        5 repeated bool b; 6 repeated int32 type; 7 repeated TensorShapeProto shape;
        8 repeated TensorProto tensor; 9 repeated NameAttrList func""",
    "NameAttrList": "1 string name; 2 map<string,AttrValue> attr",
    # tensor.proto, tensor_shape.proto, tensor_slice.proto
    "TensorProto": """1 int32 dtype; 2 TensorShapeProto tensor_shape; 3 int32 version_number;
        4 bytes tensor_content; 5 repeated float float_val; 6 repeated double double_val;
        7 repeated int32 int_val; 8 repeated bytes string_val; 9 repeated float scomplex_val;
        10 repeated int64 int64_val; 11 repeated bool bool_val; 12 repeated double dcomplex_val;
        13 repeated int32 half_val; 16 repeated uint32 uint32_val; 17 repeated uint64 uint64_val""",
    "TensorShapeProto": "2 repeated TensorShapeProto.Dim dim; 3 bool unknown_rank",
    "TensorShapeProto.Dim": "1 int64 size; 2 string name",
    "TensorSliceProto": "1 repeated TensorSliceProto.Extent extent",
    "TensorSliceProto.Extent": "1 int64 start; 2 oneof has_length: int64 length",
    # saved_object_graph.proto
    "SavedObjectGraph": """1 repeated SavedObject nodes;
        2 map<string,SavedConcreteFunction> concrete_functions""",
    "SavedObject": """1 repeated TrackableObjectGraph.TrackableObject.ObjectReference children;
        3 repeated TrackableObjectGraph.TrackableObject.SlotVariableReference slot_variables;
        4 oneof kind: SavedUserObject user_object; 5 oneof kind: SavedAsset asset;
        6 oneof kind: SavedFunction function; 7 oneof kind: SavedVariable variable;
        8 oneof kind: SavedBareConcreteFunction bare_concrete_function;
        9 oneof kind: SavedConstant constant; 10 oneof kind: SavedResource resource;
        12 oneof kind: CapturedTensor captured_tensor""",
    "SavedUserObject": "1 string identifier; 3 string metadata",
    "SavedAsset": "1 int32 asset_file_def_index",
    "SavedFunction": "1 repeated string concrete_functions",
    "SavedVariable": """1 int32 dtype; 2 TensorShapeProto shape; 3 bool trainable; 6 string name;
        8 repeated SavedVariable experimental_distributed_variable_components""",
    "SavedBareConcreteFunction": """1 string concrete_function_name;
        2 repeated string argument_keywords; 3 int64 allowed_positional_arguments""",
    "SavedConstant": "1 string operation",
    "SavedResource": "1 string device",
    "CapturedTensor": "1 string name; 2 string concrete_function",
    "SavedConcreteFunction": "2 repeated int32 bound_inputs",
    # trackable_object_graph.proto
    "TrackableObjectGraph": "1 repeated TrackableObjectGraph.TrackableObject nodes",
    "TrackableObjectGraph.TrackableObject": """
        1 repeated TrackableObjectGraph.TrackableObject.ObjectReference children;
        2 repeated TrackableObjectGraph.TrackableObject.SerializedTensor attributes;
        3 repeated TrackableObjectGraph.TrackableObject.SlotVariableReference slot_variables""",
    "TrackableObjectGraph.TrackableObject.ObjectReference": "1 int32 node_id; 2 string local_name",
    "TrackableObjectGraph.TrackableObject.SerializedTensor": """1 string name; 2 string full_name;
        3 string checkpoint_key""",
    "TrackableObjectGraph.TrackableObject.SlotVariableReference": """
        1 int32 original_variable_node_id; 2 string slot_name; 3 int32 slot_variable_node_id""",
    # tensor_bundle.proto
    "BundleHeaderProto": "1 int32 num_shards; 2 int32 endianness; 3 VersionDef version",
    "BundleEntryProto": """1 int32 dtype; 2 TensorShapeProto shape; 3 int32 shard_id;
        4 int64 offset; 5 int64 size; 6 fixed32 crc32c; 7 repeated TensorSliceProto slices""",
}

_FIELD = re.compile(
    r"(?P<number>\d+) (?:oneof (?P<oneof>\w+): )?(?P<repeated>repeated )?"
    r"(?:map<string,(?P<mapped>\w+)>|(?P<type>[\w.]+)) (?P<name>\w+)"
)
_Field = descriptor_pb2.FieldDescriptorProto


def _set_type(field: Any, name: str) -> None:
    if name in _MESSAGES:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".tensorflow.{name}"
    else:
        field.type = _Field.Type.Value(f"TYPE_{name.upper()}")


def _add_field(message: Any, full_name: str, text: str) -> None:
    match = _FIELD.fullmatch(" ".join(text.split()))
    assert match, text
    field = message.field.add(name=match["name"], number=int(match["number"]))
    field.label = _Field.LABEL_OPTIONAL
    if match["mapped"]:
        # A map is a repeated message of this name with a key and a value.
        entry = message.nested_type.add(
            name="".join(word.capitalize() for word in match["name"].split("_")) + "Entry"
        )
        entry.options.map_entry = True
        for number, (key, kind) in enumerate((("key", "string"), ("value", match["mapped"])), 1):
            part = entry.field.add(name=key, number=number, label=_Field.LABEL_OPTIONAL)
            _set_type(part, kind)
        field.type, field.label = _Field.TYPE_MESSAGE, _Field.LABEL_REPEATED
        field.type_name = f".tensorflow.{full_name}.{entry.name}"
        return
    _set_type(field, match["type"])
    if match["repeated"]:
        field.label = _Field.LABEL_REPEATED
    elif match["oneof"]:
        names = [oneof.name for oneof in message.oneof_decl]
        if match["oneof"] not in names:
            message.oneof_decl.add(name=match["oneof"])
            names.append(match["oneof"])
        field.oneof_index = names.index(match["oneof"])


def _pool() -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name="movinet_port.proto", package="tensorflow", syntax="proto3"
    )
    messages: dict[str, Any] = {}
    # Outer messages stand before their inner ones when sorted.
    for full_name in sorted(_MESSAGES):
        outer, _, name = full_name.rpartition(".")
        siblings = messages[outer].nested_type if outer else file.message_type
        messages[full_name] = siblings.add(name=name)
        for text in _MESSAGES[full_name].split(";"):
            _add_field(messages[full_name], full_name, text)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


_POOL = _pool()


def _class(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"tensorflow.{name}"))


MESSAGES = tuple(_MESSAGES)

AttrValue = _class("AttrValue")
BundleEntryProto = _class("BundleEntryProto")
BundleHeaderProto = _class("BundleHeaderProto")
FunctionDef = _class("FunctionDef")
GraphDef = _class("GraphDef")
MetaGraphDef = _class("MetaGraphDef")
NodeDef = _class("NodeDef")
SavedModel = _class("SavedModel")
TensorProto = _class("TensorProto")
TensorShapeProto = _class("TensorShapeProto")
TrackableObjectGraph = _class("TrackableObjectGraph")

# The most bytes that are parsed at once: a message of nothing but empty parts takes some fifty
# times its size in memory. The largest network's largest message takes some 5 megabytes.
MOST_BYTES = 1 << 25


def parse(message: Any, data: bytes | memoryview) -> Any:
    """Return the message that bytes hold.

    Args:
        message: a class of this module.
        data: the serialised message.

    Raises:
        ValueError: they hold no such message, or are too many.
    """
    name = message.DESCRIPTOR.name
    if len(data) > MOST_BYTES:
        raise ValueError(f"a {name} of {len(data)} bytes, expected at most {MOST_BYTES}")
    try:
        return message.FromString(bytes(data))
    except DecodeError as error:
        raise ValueError(f"no {name}: {error}") from error


# Walking a message without parsing it: the functions of a large network take a hundred megabytes,
# of which a signature calls a few.

# Fields that one walk may meet; the largest network has some 10,000 functions.
MOST_FIELDS = 1_000_000


def varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return the number that starts at byte `at`, and where what follows starts.

    Raises:
        ValueError: the data end within it, or it is too long.
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("a number is cut short")


def fields(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yield (number, content, field with its number) of each field of a serialised message.

    The number is 0 of fields that are numbers themselves.

    Raises:
        ValueError: the data are no message.
    """
    at = 0
    for _ in range(MOST_FIELDS):
        if at == len(data):
            return
        start = at
        key, at = varint(data, at)
        size = {1: 8, 5: 4}.get(key & 7, 0)
        if key & 7 == 2:
            size, at = varint(data, at)
        elif key & 7 == 0:
            _, at = varint(data, at)
        elif not size:
            raise ValueError(f"a field of unknown kind {key & 7}")
        if at + size > len(data):
            raise ValueError("it ends within a field")
        yield key >> 3 if key & 7 == 2 else 0, data[at : at + size], data[start : at + size]
        at += size
    raise ValueError(f"more than {MOST_FIELDS} parts")


def take(data: memoryview, wanted: int) -> tuple[list[memoryview], bytes]:
    """Return the contents of the fields of one number, and the message without them.

    Args:
        data: a serialised message.
        wanted: the number of a field of bytes, of a string or of a message.

    Raises:
        ValueError: the data are no message.
    """
    found: list[memoryview] = []
    rest: list[memoryview] = []
    for number, content, whole in fields(data):
        if number == wanted:
            found.append(content)
        else:
            rest.append(whole)
    return found, b"".join(rest)
