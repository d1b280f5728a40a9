"""Files that movinet-port wrote: what each says of the network in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from movinet_port.checkpoint import PACKAGE, SAFETENSORS, Checkpoint, load_checkpoint
from movinet_port.errors import CheckpointError, MovinetPortError
from movinet_port.fast.aot import read_package
from movinet_port.inputs import InputFormat
from movinet_port.labels import check_labels
from movinet_port.spec import ModelSpec

ONNX = ".onnx"


@dataclasses.dataclass(frozen=True)
class Written:
    """What a file of movinet-port's says of itself.

    Attributes:
        kind: what the file is, in words.
        spec, labels, input: of the network; the last two None if unknown.
        provenance: where the weights came from, and where the file runs.
        checkpoint: the spec and the weights, if they can be read.
    """

    kind: str
    spec: ModelSpec
    labels: tuple[str, ...] | None
    input: InputFormat | None
    provenance: Mapping[str, Any]
    checkpoint: Checkpoint | None = None


def read_written(path: Path) -> Written | None:
    """Return what a file says of itself, or None if movinet-port did not write it.

    Raises:
        CheckpointError: it is one of movinet-port's, and damaged.
    """
    if not path.is_file():
        return None
    if path.suffix == PACKAGE:
        package = read_package(path)
        size = " x ".join(map(str, package.shape))
        return Written(
            f"compiled network for clips of {size}, {package.dtype}",
            package.spec,
            package.labels,
            None,
            package.made_for,
        )
    if path.suffix == ONNX:
        return _read_onnx(path)
    try:
        checkpoint = load_checkpoint(path)
        checkpoint.build()
    except MovinetPortError:
        return None
    return Written(
        "safetensors checkpoint" if path.suffix == SAFETENSORS else "checkpoint",
        checkpoint.spec,
        checkpoint.labels,
        checkpoint.input,
        checkpoint.provenance,
        checkpoint,
    )


def _read_onnx(path: Path) -> Written | None:
    try:
        import onnx
    except ImportError as error:
        raise MovinetPortError(
            f"reading {path} needs onnx ({error}): run pip install 'movinet-port[onnx]'"
        ) from error
    try:
        proto = onnx.load(str(path), load_external_data=False)
        found = {entry.key: entry.value for entry in proto.metadata_props}
        if "spec" not in found:
            return None
        facts = {key: json.loads(found[key]) for key in _FACTS if key in found}
        spec = ModelSpec.from_dict(facts["spec"])
        labels = tuple(facts["labels"]) if "labels" in facts else None
        if labels is not None:
            check_labels(labels, spec.num_classes, "labels")
        stated = InputFormat.from_dict(facts["input"]) if "input" in facts else None
        return Written("ONNX file", spec, labels, stated, dict(facts.get("provenance", {})))
    # protobuf's errors have no type in common with json's.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"cannot read {path}: no ONNX file of movinet-port ({reason}); export it again"
        ) from error


_FACTS = ("spec", "input", "labels", "provenance")
