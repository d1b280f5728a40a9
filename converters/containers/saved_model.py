"""SavedModels without TensorFlow: the graph, its functions, its signatures and its variables."""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from converters import protos
from converters.containers.bundle import Bundle
from converters.containers.checkpoint import (
    GRAPH_FILE,
    VARIABLES,
    checkpoint_files,
    read_checkpoint,
)
from converters.containers.variables import SourceVariables
from converters.errors import ConversionError, SourceProblem
from converters.tensors import ndarray_from_tensor_proto

# The graph of the largest network, with all its functions, takes some 100 megabytes.
MOST_GRAPH_BYTES = 1 << 29

# Field numbers; `protos` has the tables.
_META_GRAPHS = 2  # of SavedModel
_GRAPH_DEF = 2  # of MetaGraphDef
_LIBRARY = 2  # of GraphDef
_FUNCTION = 1  # of FunctionDefLibrary
_SIGNATURE, _NAME = 1, 1  # of FunctionDef, and of the OpDef there


def find_saved_model(path: Path) -> Path | None:
    """Return `path` if it is a SavedModel's folder."""
    return path if path.is_dir() and (path / GRAPH_FILE).is_file() else None


def saved_model_files(folder: Path) -> list[Path]:
    """Return the files of a SavedModel that make the network: its graph and its variables.

    Raises:
        SourceProblem: one is missing.
    """
    variables = folder / VARIABLES
    if not variables.is_dir():
        raise SourceProblem(
            f"the folder {VARIABLES} is missing next to {GRAPH_FILE}; copy every file of it"
        )
    checkpoint_files(_index_in(folder))
    return [folder / GRAPH_FILE, *(file for file in variables.iterdir() if file.is_file())]


def read_saved_model(folder: Path) -> SourceVariables:
    """List the variables of a SavedModel; see `read_checkpoint`."""
    return read_checkpoint(_index_in(folder))


def _index_in(folder: Path) -> Path:
    return folder / VARIABLES / f"{VARIABLES}.index"


class Functions(Mapping[str, Any]):
    """The functions of a graph: ``FunctionDef`` by name, parsed when looked up."""

    def __init__(self, path: Path, library: memoryview) -> None:
        self._path = path
        self._raw: dict[str, memoryview] = {}
        for function in protos.take(library, _FUNCTION)[0]:
            # Not to the end of each: there are a hundred thousand nodes.
            signature = _first(function, _SIGNATURE)
            self._raw[bytes(_first(signature, _NAME)).decode()] = function

    def __getitem__(self, name: str) -> Any:
        raw = self._raw[name]
        try:
            return protos.parse(protos.FunctionDef, raw)
        except ValueError as error:
            raise _damaged(self._path, error) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)


@dataclasses.dataclass(frozen=True)
class SavedVariable:
    """A variable of a SavedModel.

    Attributes:
        node: number of its object in the object graph.
        full_name: TensorFlow's name for it.
        key: its name in the checkpoint in ``variables/``.
        shape: its shape.
        dtype: its type, as TensorFlow names it.
    """

    node: int
    full_name: str
    key: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """What a SavedModel's folder holds.

    Attributes:
        path: the folder.
        graph: the ``GraphDef``, without its functions.
        functions: its functions, ``FunctionDef`` by name.
        signatures: ``SignatureDef`` by key.
        object_graph: the ``SavedObjectGraph``.
    """

    path: Path
    graph: Any = dataclasses.field(repr=False)
    functions: Mapping[str, Any] = dataclasses.field(repr=False)
    signatures: Mapping[str, Any] = dataclasses.field(repr=False)
    object_graph: Any = dataclasses.field(repr=False)

    @property
    def file(self) -> Path:
        """The file with the graph, ``saved_model.pb``."""
        return self.path / GRAPH_FILE

    @functools.cached_property
    def bundle(self) -> Bundle:
        """The checkpoint in ``variables/``.

        Raises:
            ConversionError: its index is damaged.
        """
        return Bundle(_index_in(self.path).with_suffix(""))

    @functools.cached_property
    def variables(self) -> Mapping[int, SavedVariable]:
        """Every variable, by the number of its object; `value` reads one.

        Raises:
            ConversionError: the checkpoint's index or its object graph is damaged, or a variable
                is missing there or has another shape or type.
        """
        here = self.object_graph.nodes
        there = self.bundle.object_graph().nodes
        # TensorFlow restores by walking both object graphs along the same names.
        pairs, queue = {0: 0}, deque([0])
        while queue:
            node = queue.popleft()
            if not 0 <= pairs[node] < len(there):
                raise _damaged(self.bundle.prefix, ValueError(f"no object {pairs[node]}"))
            children = {c.local_name: c.node_id for c in there[pairs[node]].children}
            for child in here[node].children:
                if child.node_id not in pairs and child.local_name in children:
                    pairs[child.node_id] = children[child.local_name]
                    queue.append(child.node_id)
        found = {}
        for number, item in enumerate(here):
            if item.WhichOneof("kind") != "variable":
                continue
            name = item.variable.name
            attributes = there[pairs[number]].attributes if number in pairs else ()
            key = next((a.checkpoint_key for a in attributes if a.name == "VARIABLE_VALUE"), "")
            if key not in self.bundle.entries:
                raise _damaged(self.bundle.prefix, ValueError(f"variable {name} is missing"))
            entry = self.bundle.entries[key]
            found[number] = SavedVariable(number, name, key, entry.shape, entry.kind.name)
        return found

    def value(self, node: int) -> NDArray[Any]:
        """Return the value of the variable or of the constant that is an object.

        Args:
            node: number of the object.

        Raises:
            ConversionError: the object is neither, or its data are damaged.
        """
        if node in self.variables:
            return self.bundle.read(self.variables[node].key)
        try:
            if not 0 <= node < len(self.object_graph.nodes):
                raise ValueError(f"there is no object {node}")
            found = self.object_graph.nodes[node]
            if found.WhichOneof("kind") != "constant":
                raise ValueError(f"object {node} is no variable and no constant")
            name = found.constant.operation
            constant = next((n for n in self.graph.node if n.name == name), None)
            if constant is None or constant.op != "Const":
                raise ValueError(f"constant {name!r} is not in the graph")
            return ndarray_from_tensor_proto(constant.attr["value"].tensor)
        except ValueError as error:
            raise _damaged(self.file, error) from error


def read(folder: Path) -> SavedModel:
    """Read the graph of a SavedModel; its functions and variables when they are asked for.

    Args:
        folder: the one that holds ``saved_model.pb``.

    Raises:
        ConversionError: the file cannot be read, is damaged, or is one of TensorFlow 1.
    """
    path = folder / GRAPH_FILE
    try:
        size = path.stat().st_size
        if size > MOST_GRAPH_BYTES:
            raise ValueError(f"it takes {size} bytes, expected at most {MOST_GRAPH_BYTES}")
        # Not mapped: a file that becomes shorter would end the process.
        data = memoryview(path.read_bytes())
        meta_graphs, _ = protos.take(data, _META_GRAPHS)
        if len(meta_graphs) != 1:
            raise ValueError(f"it has {len(meta_graphs)} graphs, expected one")
        graphs, rest = protos.take(meta_graphs[0], _GRAPH_DEF)
        libraries, graph = protos.take(_joined(graphs), _LIBRARY)
        meta_graph = protos.parse(protos.MetaGraphDef, rest)
        objects = meta_graph.object_graph_def
        if not objects.nodes:
            raise ValueError("it has no object graph: a file of TensorFlow 1")
        for node in objects.nodes:
            for child in node.children:
                if not 0 <= child.node_id < len(objects.nodes):
                    raise ValueError(f"its object graph has no object {child.node_id}")
        return SavedModel(
            folder,
            protos.parse(protos.GraphDef, graph),
            Functions(path, _joined(libraries)),
            meta_graph.signature_def,
            objects,
        )
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _damaged(path, error) from error


def _first(data: memoryview, wanted: int) -> memoryview:
    found = (content for number, content, _ in protos.fields(data) if number == wanted)
    return next(found, memoryview(b""))


def _joined(parts: list[memoryview]) -> memoryview:
    """Return the message that a field's contents are together."""
    return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def _damaged(path: Path | str, error: Exception) -> ConversionError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ConversionError(
        f"{path}: not a SavedModel's graph ({reason}); the file is damaged, get it again"
    )
