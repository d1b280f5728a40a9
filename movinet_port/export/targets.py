"""What a network can be exported to, and doing it."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import movinet_port
from movinet_port.agreement import Agreement
from movinet_port.checkpoint import SAFETENSORS, Checkpoint, load_checkpoint, save
from movinet_port.errors import MovinetPortError, nearest
from movinet_port.export.compare import Runner, compare, require
from movinet_port.export.onnx_file import run_onnx, write_onnx
from movinet_port.export.programs import (
    run_exported_program,
    run_torchscript,
    write_exported_program,
    write_torchscript,
)
from movinet_port.export.shape import ClipShape, input_axes
from movinet_port.files import whole_file
from movinet_port.inputs import published_input
from movinet_port.model import MoViNet

Writer = Callable[[Checkpoint, MoViNet, ClipShape, Mapping[str, Any], Path], None]


class ExportError(MovinetPortError):
    """The network cannot be exported as asked."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        title: what it is, for messages.
        write: writes it.
        run: opens a file that `write` wrote.
        takes_sizes: whether a clip's sizes can be fixed in it.
        suffix: what its name must end in; None for anything.
        needs_size: whether the size of a frame has to be fixed.
    """

    title: str
    write: Writer
    run: Callable[[Path], Runner]
    takes_sizes: bool = True
    suffix: str | None = None
    needs_size: bool = False


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: where.
        target: key of `TARGETS`.
        shape: the clips it takes.
        comparison: with the network it was made from; None if there was none.
    """

    path: Path
    target: str
    shape: ClipShape
    comparison: Agreement | None


def _write_safetensors(
    checkpoint: Checkpoint, model: MoViNet, shape: ClipShape, facts: Mapping[str, Any], path: Path
) -> None:
    # The suffix decides the format, and the path is a temporary one without it.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        written = Path(folder) / f"weights{SAFETENSORS}"
        save(checkpoint, written)
        written.replace(path)


def _run_safetensors(path: Path) -> Runner:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        link = Path(folder) / f"weights{SAFETENSORS}"
        link.symlink_to(path.resolve())
        model = load_checkpoint(link).build()
    return lambda clip, state: model.step(clip, state) if state else (model(clip), {})


TARGETS: Mapping[str, Target] = {
    "onnx": Target("ONNX file", write_onnx, run_onnx),
    "torchscript": Target("TorchScript file", write_torchscript, run_torchscript),
    # With free sizes torch.export reasons for minutes about what SAME padding makes of each.
    "exported-program": Target(
        "exported program", write_exported_program, run_exported_program, needs_size=True
    ),
    "safetensors": Target(
        "safetensors file", _write_safetensors, _run_safetensors, False, SAFETENSORS
    ),
}


def export_checkpoint(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    target: str,
    shape: ClipShape | None = None,
    *,
    verify: bool = True,
    progress: Callable[[str], None] = lambda activity: None,
) -> Exported:
    """Write a network as another kind of file; it appears whole or not at all.

    A stream network takes its state as inputs, and returns it, under the names of
    `MoViNet.init_state` (in ONNX an output has ".next" behind its name). Before the first frame
    every state is zeros of its shape.

    Args:
        checkpoint: spec, weights and labels.
        path: the file to write.
        target: key of `TARGETS`.
        shape: sizes to fix; by default every axis of a clip stays free.
        verify: run the file beside the network, and compare.
        progress: called with a line of text when a step begins.

    Raises:
        MismatchError: the file gives other logits or states; nothing was written.
        ExportError: no such target, or one that cannot be as asked.
        MovinetPortError: the file cannot be written, or a package is missing.
    """
    if target not in TARGETS:
        raise ExportError(
            f"cannot export to {target!r}{nearest(target, TARGETS)}; expected one of "
            f"{', '.join(TARGETS)}"
        )
    kind = TARGETS[target]
    shape = ClipShape() if shape is None else shape
    if shape != ClipShape() and not kind.takes_sizes:
        raise ExportError(f"a {kind.title} holds weights, no sizes of a clip; leave them out")
    if kind.suffix is not None and Path(path).suffix != kind.suffix:
        raise ExportError(f"a {kind.title} ends in {kind.suffix}, found {os.fspath(path)}")
    if kind.needs_size and None in (shape.height, shape.width):
        published = _input_format(checkpoint)
        example = f", such as --size {published['size']}" if published else ""
        raise ExportError(
            f"an {kind.title} is for one size of frames; name it with --size{example}"
        )
    model = checkpoint.build()
    odd = {tensor.dtype for tensor in checkpoint.state_dict.values() if tensor.is_floating_point()}
    if odd - {torch.float32} and kind.takes_sizes:
        found = ", ".join(sorted(str(dtype) for dtype in odd))
        raise ExportError(f"the weights are {found}, expected float32; convert them with .float()")
    comparison = None
    with whole_file(path) as temporary:
        progress(f"writing {os.fspath(path)}")
        kind.write(checkpoint, model, shape, _facts(checkpoint, model, shape), temporary)
        if verify:
            progress("running both sides on random clips")
            comparison = compare(model, kind.run(temporary), shape)
            require(comparison, f"the {kind.title}")
    return Exported(Path(path), target, shape, comparison)


def _facts(checkpoint: Checkpoint, model: MoViNet, shape: ClipShape) -> dict[str, Any]:
    """Return what travels with the network, as plain data."""
    facts: dict[str, Any] = {
        "spec": checkpoint.spec.to_dict(),
        "input": _input_format(checkpoint),
        "inputs": {name: list(axes) for name, axes in input_axes(model, shape).items()},
        "provenance": dict(checkpoint.provenance),
        "labels": None if checkpoint.labels is None else list(checkpoint.labels),
        "movinet-port": movinet_port.__version__,
    }
    return {key: value for key, value in facts.items() if value is not None}


def _input_format(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the size and rate of the clips that the network is for, if known."""
    stated = checkpoint.input or published_input(checkpoint.spec.name)
    return None if stated is None else stated.to_dict()
