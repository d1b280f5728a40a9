"""What a network can be exported to, one row a kind of file, and doing it."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

import movinet_port
from movinet_port.agreement import Agreement
from movinet_port.checkpoint import PACKAGE, SAFETENSORS, Checkpoint, load_checkpoint, save
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
from movinet_port.inputs import check_clip, published_input
from movinet_port.model import MoViNet

Notes: TypeAlias = tuple[tuple[str, str], ...]
Calibration: TypeAlias = Callable[[int, tuple[int, int]], Iterable[Tensor]]
Writer: TypeAlias = Callable[[Checkpoint, MoViNet, ClipShape, Mapping[str, Any], Path], None]


class ExportError(MovinetPortError):
    """The network cannot be exported as asked."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What to write, and where.

    Attributes:
        checkpoint: spec, weights and labels.
        path: the file, or what else the target writes.
        shape: the sizes of a clip that are fixed.
        verify: whether to run what was written beside the network, and compare.
        progress: called with a line of text when a step begins.
        quantise: how numbers are to be stored, one of the target's `quantisations`; None for
            float32.
        calibration: gives clips of real videos, (1, frames, height, width, 3) in [0, 1], for
            (frames, (height, width)); None if there are none.
    """

    checkpoint: Checkpoint
    path: Path
    shape: ClipShape
    verify: bool
    progress: Callable[[str], None]
    quantise: str | None = None
    calibration: Calibration | None = None


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        title: what it is, for messages.
        write: writes it, whole or not at all; returns the comparison of both sides, or None, and
            what else there is to say, as (label, text).
        extra: what it needs beside PyTorch: an extra of the installation.
        verified: whether it can be run beside the network.
        sizes: which sizes of a clip are in it: those that are named, the others staying free;
            at least the size of a frame; or none.
        suffix: what its name must end in; None for anything.
        quantisations: how it can store numbers other than as float32.
    """

    title: str
    write: Callable[[Request], tuple[Agreement | None, Notes]]
    extra: str | None = None
    verified: bool = True
    sizes: Literal["any", "frame", "none"] = "any"
    suffix: str | None = None
    quantisations: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: where.
        target: its name in the table.
        shape: the clips it takes.
        comparison: with the network it was made from; None if there was none.
        notes: what else there is to say, as (label, text).
    """

    path: Path
    target: str
    shape: ClipShape
    comparison: Agreement | None
    notes: Notes = ()


def beside(
    title: str, write: Writer, run: Callable[[Path], Runner], any_type: bool = False
) -> Callable[[Request], tuple[Agreement | None, Notes]]:
    """Return a target's `write` from what writes a file and what opens it to be run.

    Args:
        title: of the target.
        write: writes the file.
        run: opens a file that `write` wrote.
        any_type: whether weights may be other than float32.
    """

    def whole(request: Request) -> tuple[Agreement | None, Notes]:
        checkpoint, shape = request.checkpoint, request.shape
        model = checkpoint.build()
        types = {t.dtype for t in checkpoint.state_dict.values() if t.is_floating_point()}
        if types - {torch.float32} and not any_type:
            found = ", ".join(sorted(map(str, types)))
            raise ExportError(
                f"the weights are {found}, expected float32; convert them with .float()"
            )
        comparison = None
        with whole_file(request.path) as temporary:
            request.progress(f"writing {request.path}")
            write(checkpoint, model, shape, _facts(checkpoint, model, shape), temporary)
            if request.verify:
                request.progress("running both sides on random clips")
                comparison = compare(model, run(temporary), shape)
                require(comparison, f"the {title}")
        return comparison, () if any_type else (("takes", str(shape)),)

    return whole


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


def _write_compiled(request: Request) -> tuple[None, Notes]:
    # These import the compiler.
    from movinet_port.fast.aot import compile_package
    from movinet_port.fast.optimize import fold_network

    batch, frames, height, width = dataclasses.astuple(request.shape)
    shape = (batch or 1, frames or 1, height, width)
    network = fold_network(request.checkpoint.build(), turn=False)
    request.progress("compiling, which takes minutes")
    compile_package(network, request.path, frames=shape[1], size=shape[2:], batch=shape[0])
    return None, (("takes", f"clips of (batch, frames, height, width) = {shape}"),)


def _graph(title: str, write: Writer, run: Callable[[Path], Runner], **fields: Any) -> Target:
    return Target(title, beside(title, write, run), **fields)


TARGETS: Mapping[str, Target] = {
    "onnx": _graph("ONNX file", write_onnx, run_onnx, extra="onnx"),
    "torchscript": _graph("TorchScript file", write_torchscript, run_torchscript),
    # With free sizes torch.export reasons for minutes about what SAME padding makes of each.
    "exported-program": _graph(
        "exported program", write_exported_program, run_exported_program, sizes="frame"
    ),
    "safetensors": Target(
        "safetensors file",
        beside("safetensors file", _write_safetensors, _run_safetensors, any_type=True),
        sizes="none",
        suffix=SAFETENSORS,
    ),
    "compiled": Target(
        "compiled network", _write_compiled, verified=False, sizes="frame", suffix=PACKAGE
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
    targets: Mapping[str, Target] = TARGETS,
    quantise: str | None = None,
    calibration: Calibration | None = None,
) -> Exported:
    """Write a network as another kind of file; it appears whole or not at all.

    A stream network takes its state as inputs, and returns it, under the names of
    `MoViNet.init_state` (in ONNX an output has ".next" behind its name). Before the first frame
    every state is zeros of its shape.

    Args:
        checkpoint: spec, weights and labels.
        path: the file to write.
        target: its name in the table.
        shape: sizes to fix; by default every axis of a clip stays free.
        verify: run the file beside the network, and compare.
        progress: called with a line of text when a step begins.
        targets: the table.
        quantise, calibration: as in `Request`.

    Raises:
        MismatchError: the file gives other logits or states; nothing was written.
        ExportError: no such target, or one that cannot be as asked.
        MovinetPortError: the file cannot be written, or a package is missing.
    """
    if target not in targets:
        raise ExportError(
            f"cannot export to {target!r}{nearest(target, targets)}; expected one of "
            f"{', '.join(targets)}"
        )
    kind = targets[target]
    shape = ClipShape() if shape is None else shape
    title = f"{'an' if kind.title[0] in 'aeiouO' else 'a'} {kind.title}"
    check_clip(shape.frames or 1, shape.height or 1, shape.width or 1, shape.batch or 1)
    if shape != ClipShape() and kind.sizes == "none":
        raise ExportError(
            f"{title} has no sizes of a clip in it and leaves every size free; leave --batch, "
            f"--frames and --size out"
        )
    if kind.suffix is not None and Path(path).suffix != kind.suffix:
        raise ExportError(f"{title} ends in {kind.suffix}, found {os.fspath(path)}")
    if kind.sizes == "frame" and None in (shape.height, shape.width):
        published = _input_format(checkpoint)
        example = f", such as --size {published['size']}" if published else ""
        raise ExportError(f"{title} is for one size of frames; name it with --size{example}")
    if quantise is not None and quantise not in kind.quantisations:
        those = f"as {', '.join(kind.quantisations)}" if kind.quantisations else "in float32 only"
        raise ExportError(f"{title} stores numbers {those}, found {quantise}")
    written = kind.write(
        Request(checkpoint, Path(path), shape, verify, progress, quantise, calibration)
    )
    return Exported(Path(path), target, shape, *written)


def _facts(checkpoint: Checkpoint, model: MoViNet, shape: ClipShape) -> dict[str, Any]:
    """Return what travels with the network, as plain data."""
    inputs = {name: list(axes) for name, axes in input_axes(model, shape).items()}
    return {**facts_of(checkpoint), "inputs": inputs}


def facts_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what travels with a network whatever its sizes, as plain data."""
    facts: dict[str, Any] = {
        "spec": checkpoint.spec.to_dict(),
        "input": _input_format(checkpoint),
        "provenance": dict(checkpoint.provenance),
        "labels": None if checkpoint.labels is None else list(checkpoint.labels),
        "movinet-port": movinet_port.__version__,
    }
    return {key: value for key, value in facts.items() if value is not None}


def _input_format(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the size and rate of the clips that the network is for, if known."""
    stated = checkpoint.input or published_input(checkpoint.spec.name)
    return None if stated is None else stated.to_dict()
