"""Reading variables out of a TF2 object-graph checkpoint, a SavedModel's own included."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.containers.variables import SourceVariables, Variable
from converters.errors import ConversionError
from converters.tensorflow import import_tensorflow

OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"

# Names under which Keras lists the objects of a model a second time; paths do not go through
# them, so that a variable's path is the one of the attributes that own it.
_ALIASES = frozenset(
    {
        "keras_api",
        "layers",
        "metrics",
        "non_trainable_variables",
        "regularization_losses",
        "signatures",
        "trainable_variables",
        "variables",
    }
)


def read_variables(prefix: Path) -> SourceVariables:
    """List the variables of the checkpoint at `prefix` (``.../variables/variables``).

    Only the index is read; values are read variable by variable.

    Raises:
        ConversionError: the index is damaged, or has no object graph (a TF1 checkpoint).
    """
    reader = _open(prefix)
    shapes = reader.get_variable_to_shape_map()
    dtypes = reader.get_variable_to_dtype_map()
    if OBJECT_GRAPH_KEY not in shapes:
        raise ConversionError(
            f"{prefix}: a checkpoint without an object graph (TensorFlow 1?), expected one that "
            f"tf.train.Checkpoint or tf.saved_model.save wrote; found "
            f"{', '.join(sorted(shapes)[:3]) or 'no variables'}"
        )
    graph = _parse_object_graph(prefix, reader)
    paths = object_paths(
        [[(child.local_name, child.node_id) for child in node.children] for node in graph.nodes]
    )
    variables = []
    for number, node in enumerate(graph.nodes):
        for attribute in node.attributes:
            key = attribute.checkpoint_key
            if attribute.name != "VARIABLE_VALUE":
                continue
            if key not in shapes:
                raise ConversionError(
                    f"{prefix}: variable {key} ({attribute.full_name}) is in the object graph but "
                    f"not in the index: the checkpoint is damaged or incomplete"
                )
            variables.append(
                Variable(
                    path=paths.get(number) or key.partition("/.ATTRIBUTES/")[0],
                    full_name=attribute.full_name,
                    shape=tuple(shapes[key]),
                    dtype=dtypes[key].name,
                    node=number,
                    read=_reader_of(prefix, reader, key),
                )
            )
    return SourceVariables(variables)


def object_paths(children: Iterable[Iterable[tuple[str, int]]]) -> dict[int, str]:
    """Return the shortest path from node 0 to each node of an object graph.

    Args:
        children: for each node, (name, node) of its children.
    """
    edges = [list(node) for node in children]
    paths = {0: ""}
    # Breadth first along what owns; what only lists things again is followed for the rest.
    for follow_aliases in (False, True):
        queue = deque(paths)
        while queue:
            number = queue.popleft()
            for name, child in edges[number] if number < len(edges) else []:
                if child in paths or (_is_alias(name) and not follow_aliases):
                    continue
                paths[child] = f"{paths[number]}/{name}".lstrip("/")
                queue.append(child)
    return paths


def _is_alias(name: str) -> bool:
    return name in _ALIASES or name.startswith("layer-")


def _open(prefix: Path) -> Any:
    tf = import_tensorflow()
    try:
        return tf.train.load_checkpoint(str(prefix))
    # The reader's errors have no common type: DataLossError, NotFoundError, ValueError, ...
    except Exception as error:
        raise _damaged(prefix, "index", error) from error


def _parse_object_graph(prefix: Path, reader: Any) -> Any:
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    try:
        graph.ParseFromString(reader.get_tensor(OBJECT_GRAPH_KEY))
    except Exception as error:
        raise _damaged(prefix, "object graph", error) from error
    return graph


def _reader_of(prefix: Path, reader: Any, key: str) -> Callable[[], NDArray[Any]]:
    def read() -> NDArray[Any]:
        try:
            return np.asarray(reader.get_tensor(key))
        except Exception as error:
            raise _damaged(prefix, f"variable {key}", error) from error

    return read


def _damaged(prefix: Path, what: str, error: Exception) -> ConversionError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ConversionError(
        f"{prefix}: cannot read its {what}: {reason}; the checkpoint is damaged or incomplete, "
        f"get it again"
    )
