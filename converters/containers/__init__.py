"""What holds a network's variables, as a table: one row, and one file, for each kind.

A new kind of file is a new row here and a reader that yields its variables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from converters.containers.checkpoint import (
    GRAPH_FILE,
    VARIABLES,
    checkpoint_files,
    find_checkpoint,
    read_checkpoint,
)
from converters.containers.evidence import Evidence
from converters.containers.foreign import refuse_by_name
from converters.containers.hdf5 import find_hdf5, find_keras, read_hdf5, read_keras
from converters.containers.safetensors import find_safetensors, read_safetensors
from converters.containers.saved_model import find_saved_model, read_saved_model, saved_model_files
from converters.containers.state_dict import find_state_dict, read_state_dict
from converters.containers.tflite import (
    find_tflite,
    read_tflite,
    tflite_evidence,
    verify_tflite,
)
from converters.containers.variables import SourceVariables, Variable
from converters.errors import SourceProblem
from converters.graph_evidence import saved_model_evidence
from converters.verify import verify_saved_model
from movinet_port.agreement import Agreement
from movinet_port.checkpoint import listing
from movinet_port.model import MoViNet


@dataclasses.dataclass(frozen=True)
class Container:
    """One kind of file, or folder of files, that holds a network's variables.

    Attributes:
        find: what a user gave -> what `read` takes, or None if it is nothing of this kind. It may
            be no file: a checkpoint's prefix. What is of this kind and cannot be read raises
            `SourceProblem`.
        read: lists the variables; raises `ConversionError` if the file is damaged.
        suffixes: of a file that is of this kind even when its content no longer shows it.
        files: the files that matter, where that is not one: what was found -> their paths.
        evidence: reads the computation, where the container has it; it is given what `read` was,
            and the variable that fills each parameter.
        verify: runs both sides on a random clip, where the container has the computation; its third
            argument is the engine that runs the source's, see `converters.interpreter.engines`.
        needs: the packages that these import.
    """

    find: Callable[[Path], Path | None]
    read: Callable[[Path], SourceVariables]
    suffixes: tuple[str, ...] = ()
    files: Callable[[Path], Sequence[Path]] | None = None
    evidence: Callable[[Path, Mapping[str, Variable]], Evidence] | None = None
    verify: Callable[[Path, MoViNet, str], Agreement] | None = None
    needs: tuple[str, ...] = ()


# In this order: a SavedModel's variables are a checkpoint, too.
CONTAINERS: dict[str, Container] = {
    "saved_model": Container(
        find_saved_model,
        read_saved_model,
        files=saved_model_files,
        evidence=saved_model_evidence,
        verify=verify_saved_model,
    ),
    "checkpoint": Container(find_checkpoint, read_checkpoint, files=checkpoint_files),
    "hdf5": Container(find_hdf5, read_hdf5, suffixes=(".h5", ".hdf5"), needs=("h5py",)),
    "keras": Container(find_keras, read_keras, suffixes=(".keras",), needs=("h5py",)),
    "safetensors": Container(find_safetensors, read_safetensors, needs=("safetensors",)),
    "state_dict": Container(find_state_dict, read_state_dict, suffixes=(".pt", ".pth")),
    "tflite": Container(
        find_tflite,
        read_tflite,
        suffixes=(".tflite", ".lite"),
        evidence=tflite_evidence,
        verify=verify_tflite,
    ),
}


def identify(path: Path) -> tuple[str, Path] | None:
    """Return the kind of a file, folder or prefix, and what its reader takes; None if unknown.

    Raises:
        SourceProblem: it is of a known kind, and cannot be read as it is.
    """
    for kind, container in CONTAINERS.items():
        if (found := container.find(path)) is not None:
            return kind, found
    # By its name, what is too damaged to show what it is.
    for kind, container in CONTAINERS.items():
        if path.suffix.lower() in container.suffixes and path.is_file():
            return kind, path
    return None


def identify_in(folder: Path) -> tuple[str, Path]:
    """Return what a folder, or else the one of its sub-folders that has something, holds.

    Raises:
        SourceProblem: that is nothing, or more than one thing.
    """
    if (own := identify(folder)) is not None:
        return own
    entries = sorted(folder.iterdir())
    # A SavedModel's variables look like a checkpoint; without the graph they are half a model.
    subfolders = [entry for entry in entries if entry.is_dir() and entry.name != VARIABLES]
    inner = [(entry, found) for entry in subfolders if (found := identify(entry))]
    if len(inner) == 1:
        return inner[0][1]
    if inner:
        raise SourceProblem(
            f"several models: {listing([entry.name for entry, _ in inner])}; give one"
        )
    for name in ("_METADATA", "manifest.ocdbt"):
        refuse_by_name(folder / name)
    there = listing([entry.name + "/" * entry.is_dir() for entry in entries]) or "nothing"
    raise SourceProblem(
        f"it holds no SavedModel ({GRAPH_FILE}) and no TF2 checkpoint (*.index), nor does one of "
        f"its sub-folders; there is: {there}"
    )
