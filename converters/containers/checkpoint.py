"""TF2 object-graph checkpoints, a SavedModel's included: finding them, reading their variables."""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from converters.containers.bundle import Bundle
from converters.containers.variables import SourceVariables, Variable
from converters.errors import ConversionError, SourceProblem
from movinet_port.checkpoint import listing

GRAPH_FILE = "saved_model.pb"
VARIABLES = "variables"
_INDEX = ".index"


def find_checkpoint(path: Path) -> Path | None:
    """Return the index file of the checkpoint that a prefix, an index file or a folder stands for.

    Of a folder's checkpoints it is the one that its file ``checkpoint`` names, or the only one.

    Raises:
        SourceProblem: there are several, or files are missing.
    """
    if path.is_dir():
        if path.name == VARIABLES and (path.parent / GRAPH_FILE).is_file():
            raise SourceProblem("this is a part of a SavedModel; give the folder above it")
        return _newest_in(path)
    if path.name.endswith(_INDEX) and path.is_file():
        return path
    if path.exists():
        return None
    index = path.with_name(f"{path.name}{_INDEX}")
    if index.is_file():
        return index
    if path.parent.is_dir() and _shards(index):
        raise SourceProblem(f"{index.name} is missing; copy every file of it")
    return None


def _newest_in(folder: Path) -> Path | None:
    indices = sorted(path.name for path in folder.glob(f"*{_INDEX}"))
    if not indices:
        return None
    named = _named_in(folder / "checkpoint")
    if named is not None:
        if f"{named}{_INDEX}" not in indices:
            raise SourceProblem(
                f"the file {folder / 'checkpoint'} names {named}, and {named}{_INDEX} is not "
                f"there; there is: {listing(indices)}; give a checkpoint's prefix"
            )
        return folder / f"{named}{_INDEX}"
    if len(indices) > 1:
        prefixes = [name.removesuffix(_INDEX) for name in indices]
        raise SourceProblem(f"several checkpoints: {listing(prefixes)}; give the prefix of one")
    return folder / indices[0]


def _named_in(state: Path) -> str | None:
    """Return the newest checkpoint's name in a file that tf.train.Checkpoint keeps, if any."""
    if not state.is_file():
        return None
    text = state.read_text(encoding="utf-8", errors="replace")
    match = re.search(r'^model_checkpoint_path:\s*"([^"]*)"', text, re.MULTILINE)
    # A folder in it is one of the machine that trained; "." is how an empty prefix is spelt.
    return re.split(r"[/\\]", match[1])[-1].removeprefix(".") if match else None


def _shards(index: Path) -> dict[int, dict[int, Path]]:
    """Return a checkpoint's data files: number of parts -> part -> file."""
    prefix = re.escape(index.name.removesuffix(_INDEX))
    pattern = re.compile(prefix + r"\.data-(\d{5})-of-(\d{5})")
    found: dict[int, dict[int, Path]] = {}
    for path in sorted(index.parent.iterdir()):
        if match := pattern.fullmatch(path.name):
            found.setdefault(int(match[2]), {})[int(match[1])] = path
    return found


def checkpoint_files(index: Path) -> list[Path]:
    """Return a checkpoint's files, all of them present.

    Raises:
        SourceProblem: one is missing.
    """
    if not index.is_file():
        raise SourceProblem(f"{index.name} is missing; copy every file of it")
    prefix = index.name.removesuffix(_INDEX)
    # A checkpoint saved again with another number of parts may have left old ones behind.
    missing = [f"{prefix}.data-00000-of-00001"]
    for count, parts in sorted(_shards(index).items()):
        missing = [
            f"{prefix}.data-{part:05}-of-{count:05}" for part in range(count) if part not in parts
        ]
        if not missing:
            return [index, *parts.values()]
    raise SourceProblem(
        f"{listing(missing)} {'is' if len(missing) == 1 else 'are'} missing; copy every file of it"
    )


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


def read_checkpoint(index: Path) -> SourceVariables:
    """List the variables of the checkpoint with this index file (``.../variables.index``).

    Only the index is read; values are read variable by variable.

    Raises:
        ConversionError: the index is damaged, or has no object graph (a TF1 checkpoint).
    """
    bundle = Bundle(str(index).removesuffix(_INDEX))
    graph = bundle.object_graph()
    paths = object_paths(
        [[(child.local_name, child.node_id) for child in node.children] for node in graph.nodes]
    )
    # A training run's moving averages and momenta are named by the variable that they belong to.
    for optimizer, node in enumerate(graph.nodes):
        for slot in node.slot_variables:
            owner = paths.get(slot.original_variable_node_id)
            if owner:
                paths[slot.slot_variable_node_id] = (
                    f"{owner}/.OPTIMIZER_SLOT/{paths.get(optimizer, optimizer)}/{slot.slot_name}"
                )
    variables = []
    for number, node in enumerate(graph.nodes):
        for attribute in node.attributes:
            key = attribute.checkpoint_key
            if attribute.name != "VARIABLE_VALUE":
                continue
            if key not in bundle.entries:
                raise ConversionError(
                    f"{bundle.prefix}: variable {key} ({attribute.full_name}) is in the object "
                    f"graph but not in the index: the checkpoint is damaged or incomplete"
                )
            entry = bundle.entries[key]
            variables.append(
                Variable(
                    path=paths.get(number) or key.partition("/.ATTRIBUTES/")[0],
                    full_name=attribute.full_name,
                    shape=entry.shape,
                    dtype=entry.kind.name,
                    node=number,
                    read=functools.partial(bundle.read, key),
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
