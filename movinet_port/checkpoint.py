"""Checkpoint files: a spec, its weights, and where they came from.

A ``.pt`` file is a dict that ``torch.load(path, weights_only=True)`` gives, with the keys
"format_version", "spec", "provenance" and "state_dict"; "labels" if the classes have names, and
"input" if it is known what clips the network was made for. A ``.safetensors`` file holds the same
state dict, and the rest as JSON in its header's metadata.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from movinet_port.errors import CheckpointError, SpecError
from movinet_port.files import whole_file
from movinet_port.inputs import InputFormat
from movinet_port.labels import check_labels
from movinet_port.model import MoViNet
from movinet_port.spec import ModelSpec

FORMAT_VERSION = 1

SAFETENSORS = ".safetensors"
PACKAGE = ".pt2"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A network's spec and weights, and where they came from.

    Attributes:
        spec: the architecture.
        state_dict: every parameter and buffer of ``MoViNet(spec)``.
        provenance: plain data: source, sha256 of what was read, date, versions of the tools,
            and what was recognised.
        labels: the classes' names in the order of the logits, if known.
        input: the clips that the network was made for, if known.
    """

    spec: ModelSpec
    state_dict: Mapping[str, Tensor]
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    input: InputFormat | None = None

    def build(self) -> MoViNet:
        """Return the network with these weights, in eval mode.

        Raises:
            CheckpointError: the weights do not fit the spec.
        """
        try:
            with torch.device("meta"):
                model = MoViNet(self.spec)
        except RuntimeError as error:
            raise CheckpointError("the spec's sizes are too large for any network") from error
        check_fit(model.state_dict(), self.state_dict)
        if self.labels is not None:
            check_labels(self.labels, self.spec.num_classes, "labels")
        # The network's own copies: nothing was allocated for it on the meta device, and another
        # network of this checkpoint must not train along.
        copies = {name: tensor.detach().clone() for name, tensor in self.state_dict.items()}
        model.load_state_dict(copies, assign=True)
        model.labels = self.labels
        return model.eval()


def check_fit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Check names and shapes of a state dict.

    Raises:
        CheckpointError: a name is missing or unknown, or a shape differs; each is listed.
    """
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name!r} is unknown" for name in found if name not in expected]
    problems += [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    problems += [
        f"{name} is {found[name].dtype}, expected {tensor.dtype}"
        for name, tensor in expected.items()
        if name in found and found[name].is_floating_point() != tensor.is_floating_point()
    ]
    problems += [
        f"{name} is on no device or not dense"
        for name in expected
        if name in found and (found[name].is_meta or found[name].layout != torch.strided)
    ]
    if problems:
        raise CheckpointError(f"the weights do not fit the spec: {listing(problems)}")


def listing(items: list[str], most: int = 8) -> str:
    """Join `items` for one line of an error message, and say how many were left out."""
    rest = f"; and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + rest


def save(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint file; it appears whole or not at all.

    The suffix decides the format: ``.safetensors``, or else a PyTorch file.

    Raises:
        MovinetPortError: the file cannot be written.
    """
    with whole_file(path) as temporary:
        # Copies, so that a view does not take the whole of what it looks at into the file.
        state_dict = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, tensor in checkpoint.state_dict.items()
        }
        content: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "spec": checkpoint.spec.to_dict(),
            "provenance": _plain_data(path, checkpoint.provenance),
        }
        if checkpoint.labels is not None:
            content["labels"] = [str(label) for label in checkpoint.labels]
        if checkpoint.input is not None:
            content["input"] = checkpoint.input.to_dict()
        if Path(path).suffix == SAFETENSORS:
            from safetensors.torch import save_file

            metadata = {key: json.dumps(value) for key, value in content.items()}
            _translate_oserror(save_file, state_dict, temporary, metadata)
        else:
            _translate_oserror(torch.save, {**content, "state_dict": state_dict}, temporary)


def _plain_data(path: str | os.PathLike[str], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance as JSON would give it back: nothing that a reader would refuse."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(provenance)))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"cannot write {path}: the provenance is not plain data: {error}; "
            f"use text, numbers, lists and dicts"
        ) from error
    return plain


def _translate_oserror(write: Any, *args: Any) -> None:
    """Call a writer that hides the operating system's reason, a full disk say, in its own type."""
    try:
        write(*args)
    except OSError:
        raise
    except Exception as error:
        raise OSError(None, f"{error}".splitlines()[0] if str(error) else "unknown") from error


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint file that `save` wrote. Nothing in it is executed.

    Raises:
        CheckpointError: the file is missing, damaged, or no checkpoint of movinet-port.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"cannot read {path}: it is a folder, expected a file")
    if not path.is_file():
        raise CheckpointError(f"cannot read {path}: no such file")
    if path.suffix == PACKAGE:
        raise CheckpointError(
            f"cannot read {path}: it is compiled, expected the file that it was compiled from, "
            f".pt or {SAFETENSORS}"
        )
    content = _read_safetensors(path) if path.suffix == SAFETENSORS else _read_pt(path)
    _check_content(path, content)
    version = content["format_version"]
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"cannot read {path}: format version {version!r}, expected {FORMAT_VERSION}; "
            f"it needs another version of movinet-port, or to be converted again"
        )
    try:
        spec = ModelSpec.from_dict(content["spec"])
        stated = content.get("input")
        input_format = None if stated is None else InputFormat.from_dict(stated)
    except (SpecError, CheckpointError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; convert the model again") from error
    labels = content.get("labels")
    return Checkpoint(
        spec,
        content["state_dict"],
        content["provenance"],
        None if labels is None else tuple(labels),
        input_format,
    )


_KEYS = {"format_version": int, "spec": dict, "provenance": dict, "state_dict": dict}


def _check_content(path: Path, content: Any) -> None:
    found = content if isinstance(content, dict) else {}
    wrong = [key for key, kind in _KEYS.items() if not isinstance(found.get(key), kind)]
    if not isinstance(found.get("labels", []), list):
        wrong.append("labels")
    if not isinstance(found.get("input", {}), dict):
        wrong.append("input")
    if "state_dict" not in wrong:
        tensors = found["state_dict"]
        wrong += [f"state_dict[{key!r}]" for key in tensors if not isinstance(tensors[key], Tensor)]
    if wrong:
        raise CheckpointError(
            f"cannot read {path}: no checkpoint of movinet-port: {listing(wrong, 4)} missing or "
            f"of another type; expected {', '.join(_KEYS)}; 'movinet-port convert' makes one"
        )


def _read_pt(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    # A damaged archive fails in as many ways as there are parsers inside torch.load.
    except Exception as error:
        raise CheckpointError(
            f"cannot read {path}: no PyTorch file that loads with weights_only=True "
            f"({type(error).__name__}); convert the model again"
        ) from error


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            content = {key: json.loads(text) for key, text in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"cannot read {path}: no safetensors checkpoint of movinet-port "
            f"({type(error).__name__}: {error}); convert the model again"
        ) from error
    return {**content, "state_dict": tensors}
