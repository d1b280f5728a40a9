"""SavedModels with something wrong in their variables or their graph."""

from __future__ import annotations

import dataclasses
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.tensorflow import import_tensorflow

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
DATA = "variables/variables.data-00000-of-00001"
INDEX = "variables/variables.index"


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive of ours into `folder`; return it."""
    with tarfile.open(archive) as opened:
        for member in opened:
            opened.extract(member, folder)
    return folder


def pack(folder: Path, archive: Path) -> Path:
    """Pack a SavedModel as TF Hub serves it; return the archive."""
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(folder, arcname="")
    return archive


@dataclasses.dataclass
class Variables:
    """The variables of a checkpoint in memory, to be changed.

    Attributes:
        tensors: key -> value.
        graph: the ``TrackableObjectGraph`` that gives keys their names and their place.
    """

    tensors: dict[str, Any]
    graph: Any

    def attribute(self, full_name: str) -> Any:
        """Return the entry of the object graph for the first variable of this full name."""
        found = [a for n in self.graph.nodes for a in n.attributes if a.full_name == full_name]
        assert found, f"no variable {full_name!r}"
        return found[0]

    def key(self, full_name: str) -> str:
        """Return the key of the first variable of this full name."""
        key: str = self.attribute(full_name).checkpoint_key
        return key

    def change(
        self, full_name: str, function: Callable[[NDArray[Any]], NDArray[Any] | np.generic]
    ) -> None:
        """Give a variable the value that `function` makes of its own."""
        key = self.key(full_name)
        self.tensors[key] = np.asarray(function(np.array(self.tensors[key])))

    def drop(self, full_name: str) -> None:
        """Remove a variable's value and every mention of it."""
        key = self.key(full_name)
        del self.tensors[key]
        for node in self.graph.nodes:
            kept = [a for a in node.attributes if a.checkpoint_key != key]
            del node.attributes[:]
            node.attributes.extend(kept)

    def drop_value(self, full_name: str) -> None:
        """Remove a variable's value, but leave it in the object graph."""
        del self.tensors[self.key(full_name)]

    def add(self, path: str, full_name: str, value: NDArray[Any], beside: str = "") -> None:
        """Add a variable at an object path from the root, or from the owner of another variable.

        Args:
            path: such as ``_conv/bias``; the parts that are missing are made.
            full_name: of the new variable.
            value: of the new variable.
            beside: full name of a variable; `path` starts where the variable's own last two
                objects hang, such as ``_conv/kernel``.
        """
        number = self._owner(beside) if beside else 0
        for name in path.split("/"):
            node = self.graph.nodes[number]
            child = next((c for c in node.children if c.local_name == name), None)
            if child is None:
                child = node.children.add(node_id=len(self.graph.nodes), local_name=name)
                self.graph.nodes.add()
            number = child.node_id
        key = f"variables/added-{number}/.ATTRIBUTES/VARIABLE_VALUE"
        self.graph.nodes[number].attributes.add(
            name="VARIABLE_VALUE", full_name=full_name, checkpoint_key=key
        )
        self.tensors[key] = value

    def _owner(self, full_name: str) -> int:
        parents = {
            child.node_id: number
            for number, node in reversed(list(enumerate(self.graph.nodes)))
            for child in node.children
            if child.local_name.startswith("_") or child.local_name in ("kernel", "scale")
        }
        attribute = self.attribute(full_name)
        number = next(i for i, n in enumerate(self.graph.nodes) if attribute in n.attributes)
        return parents[parents[number]]

    def write(self, prefix: Path) -> None:
        """Write a checkpoint at `prefix`."""
        import_tensorflow().raw_ops.SaveV2(
            prefix=str(prefix),
            tensor_names=[*self.tensors, OBJECT_GRAPH],
            shape_and_slices=[""] * (len(self.tensors) + 1),
            tensors=[*self.tensors.values(), self.graph.SerializeToString()],
        )


def read_variables(prefix: Path) -> Variables:
    """Read every tensor of the checkpoint at `prefix`."""
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    reader = import_tensorflow().train.load_checkpoint(str(prefix))
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor(OBJECT_GRAPH))
    keys = sorted(set(reader.get_variable_to_shape_map()) - {OBJECT_GRAPH})
    return Variables({key: reader.get_tensor(key) for key in keys}, graph)


def rewrite(folder: Path, change: Callable[[Variables], object]) -> Path:
    """Change the variables of the SavedModel in `folder`; return the folder."""
    variables = read_variables(folder / "variables/variables")
    change(variables)
    variables.write(folder / "variables/variables")
    return folder


def edit_graph(folder: Path, edit: Callable[[Any], object]) -> Path:
    """Change the ``MetaGraphDef`` of the SavedModel in `folder`; return the folder."""
    import_tensorflow()
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / "saved_model.pb"
    saved_model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    edit(saved_model.meta_graphs[0])
    path.write_bytes(saved_model.SerializeToString())
    return folder


def nodes(meta_graph: Any, pattern: str) -> list[Any]:
    """Return the nodes of every function of a graph whose name matches; at least one."""
    found = [
        node
        for function in meta_graph.graph_def.library.function
        for node in function.node_def
        if re.search(pattern, node.name)
    ]
    assert found, f"no node matches {pattern!r}"
    return found
