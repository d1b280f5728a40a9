"""The command ``movinet-port parity``."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console
from torch import nn

from converters import convert_source
from converters.fetch import open_source
from converters.interpreter.engines import DEFAULT, ENGINES
from converters.tensorflow import import_tensorflow, quiet
from movinet_port.checkpoint import PACKAGE, Checkpoint
from movinet_port.command_line.options import Size
from movinet_port.command_line.output import say
from movinet_port.fast import InferenceNetwork
from movinet_port.fast import optimize as optimised
from movinet_port.fast.aot import read_package
from movinet_port.fast.optimize import fold_network
from movinet_port.files import check_outputs, whole_file
from movinet_port.inputs import check_clip as check_size
from movinet_port.loading import load
from movinet_port.progress import on_terminal, show_progress
from movinet_port.spec import Activation, Gate, ModelSpec
from parity.authors import authors_reference
from parity.clips import check_clip, random_clip, read_clip
from parity.compare import compare
from parity.errors import ComparisonError
from parity.optimised import Optimised
from parity.references import (
    Reference,
    SavedModelReference,
    SavedReference,
    TfliteReference,
    save_reference,
)
from parity.reports.html import render_html, require_jinja
from parity.reports.report import STATUSES, Report
from parity.reports.text import junit, print_report

MISMATCH = 1

# Where neither the source nor the catalogue says how large frames are.
_SIZE = (64, 64)
_FRAMES = 6
_STREAM_CHUNKS = (1, 2, 3)


@click.command()
@click.option(
    "--hub-url",
    "source",
    metavar="SOURCE",
    required=True,
    help="What is right: whatever 'convert' reads, or a .npz that --save-reference wrote.",
)
@click.option(
    "--weights",
    type=click.Path(dir_okay=False),
    help="Converted file to compare. Default: convert SOURCE.",
)
@click.option(
    "--optimize",
    type=click.Choice(["eager", "compile", "aot"]),
    help="Compare the optimised network; aot is also what a .pt2 given as --weights is.",
)
@click.option(
    "--input",
    "clip_source",
    default="random",
    show_default=True,
    metavar="FILE|random",
    help="A .npy, a video file, or random frames.",
)
@click.option("--frames", type=click.IntRange(1), help="Default: 6, or all of the file.")
@click.option(
    "--size",
    type=Size(),
    metavar="N|HxW",
    help="Default: the network's published size, or the file's.",
)
@click.option("--batch", type=click.IntRange(1), help="If random. Default: 1, or the .pt2's.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random frames.")
@click.option(
    "--chunks",
    metavar="N,N,...",
    help="Frames of each clip that a stream network gets. Default: 1, 2 and the rest.",
)
@click.option("--layers", metavar="PATTERN", help="Only taps that match, such as 'block1_*'.")
@click.option("--report", "html", type=click.Path(dir_okay=False), help="Write one HTML file.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write JSON.")
@click.option("--junit", "junit_path", type=click.Path(dir_okay=False), help="Write JUnit XML.")
@click.option(
    "--fail-on",
    type=click.Choice(["mismatch", "suspect"]),
    default="mismatch",
    show_default=True,
    help="The mildest verdict that gives exit code 1.",
)
@click.option(
    "--save-reference",
    type=click.Path(dir_okay=False),
    help="Write SOURCE's activations and weights to a .npz; without --weights, nothing else.",
)
@click.option(
    "--engine",
    type=click.Choice(list(ENGINES)),
    default=DEFAULT,
    show_default=True,
    help="What runs the source's graph.",
)
@click.option("--gate", type=click.Choice(get_args(Gate)), help="Where no graph tells.")
@click.option("--activation", type=click.Choice(get_args(Activation)), help="Likewise.")
@click.option("-v", "--verbose", is_flag=True, help="Show TensorFlow's own messages.")
def parity(
    source: str,
    weights: str | None,
    optimize: str | None,
    clip_source: str,
    frames: int | None,
    size: tuple[int, int] | None,
    batch: int | None,
    seed: int,
    chunks: str | None,
    layers: str | None,
    html: str | None,
    json_path: str | None,
    junit_path: str | None,
    fail_on: str,
    save_reference: str | None,
    engine: str,
    gate: str | None,
    activation: str | None,
    verbose: bool,
) -> None:
    """Compare a PyTorch MoViNet with its TensorFlow source, layer by layer.

    Exit code 0: parity. 1: a mismatch, the causes are printed. 2: the two cannot be compared.
    """
    # What is wrong with the command line is said before anything large is read.
    parts: list[int] | None = _numbers(chunks) if chunks else None
    height_width = size
    told = {"gate": gate, "activation": activation}
    given = {field: value for field, value in told.items() if value is not None}
    if clip_source != "random":
        check_clip(clip_source)
    outputs = {
        "--report": html,
        "--json": json_path,
        "--junit": junit_path,
        "--save-reference": save_reference,
    }
    inputs = [("the source", source), ("the network", weights), ("the input", clip_source)]
    check_outputs(outputs, inputs)
    if html is not None:
        require_jinja()
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet(verbose))
        progress = stack.enter_context(show_progress())
        progress("reading the source")
        reference = stack.enter_context(_open_reference(source, given, engine, verbose))
        spec = getattr(reference, "spec", None)
        saved = isinstance(reference, SavedReference)
        described: dict[str, Any] = {"kind": "saved" if saved else clip_source}
        if saved:
            if clip_source != "random" or frames or size:
                raise ComparisonError(
                    f"{source} holds its own input; leave out --input, --frames and --size"
                )
            clip = None
        else:
            each = None
            if weights is not None and Path(weights).suffix == PACKAGE:
                # It takes clips of one shape.
                of_batch, each, *of_size = read_package(weights).shape
                batch = batch or of_batch
                height_width = height_width or (of_size[0], of_size[1])
                if spec is None or not spec.causal:
                    frames = frames or each
            clip = _clip(
                clip_source,
                spec,
                frames,
                height_width or getattr(reference, "size", None),
                batch or 1,
                seed,
            )
            described.update({"seed": seed} if clip_source == "random" else {})
            if spec is not None and spec.causal and parts is None:
                parts = _default_chunks(clip.shape[2], each)
        if save_reference is not None:
            if clip is None:
                raise ComparisonError(f"{source} is a saved reference already")
            progress(f"writing {save_reference}")
            _save(reference, clip, parts, save_reference)
            if weights is None:
                say(f"reference written to {save_reference}")
                return
        progress("loading the network")
        model = _model(weights, source, reference, optimize)
        report = compare(
            reference,
            model,
            clip,
            chunks=parts,
            layers=layers,
            source=described,
            name=weights or "the converted network",
            progress=progress,
        )
        _write(report, html, json_path, junit_path)
    console = Console(highlight=False, soft_wrap=not on_terminal())
    print_report(report, console)
    folded = report.model.get("folded", ())
    if folded:
        click.echo(
            f"folded: {len(folded)} activations are no longer there in the optimised network and "
            f"were not compared; --json lists them"
        )
        if not report:
            click.echo("causes: compare the readable network, which is without --optimize")
    for label, path in (("report", html), ("json", json_path), ("junit", junit_path)):
        if path is not None:
            say(f"{label}: {path}")
    worst = {"parity": 0, "suspect": 1, "mismatch": 2}[report.verdict]
    if worst >= STATUSES.index("suspect" if fail_on == "suspect" else "mismatch"):
        sys.exit(MISMATCH)


@contextlib.contextmanager
def _open_reference(
    source: str, given: Mapping[str, Any], engine: str, verbose: bool
) -> Iterator[Reference]:
    if source.endswith(".npz"):
        yield SavedReference(source)
        return
    if engine == "tensorflow":
        import_tensorflow(verbose)
    with open_source(source) as opened:
        if opened.kind == "saved_model":
            yield SavedModelReference(opened.path, source, engine)
            return
        if opened.kind == "tflite":
            yield TfliteReference(opened.path, source)
            return
        spec = convert_source(str(opened.path), verify=False, **given).checkpoint.spec
        with authors_reference(opened.path, spec, source) as reference:
            yield reference


def _model(weights: str | None, source: str, reference: Reference, level: str | None) -> nn.Module:
    compiled = weights is not None and Path(weights).suffix == PACKAGE
    if (level == "aot") != compiled and (level or compiled):
        if level == "aot":
            raise ComparisonError(
                "--optimize aot compares a file: give a .pt2 that 'movinet-port compile' wrote "
                "as --weights"
            )
        if level is not None:
            raise ComparisonError(f"{weights} is compiled already; leave out --optimize {level}")
    spec = getattr(reference, "spec", None)
    if compiled or weights is None:
        if not isinstance(spec, ModelSpec):
            raise ComparisonError(f"{source} says nothing about the network; give --weights")
        model = Checkpoint(spec, dict(reference.parameters)).build()
    if weights is not None:
        loaded = load(weights)
        if isinstance(loaded, InferenceNetwork):
            # What is in a package cannot be computed in float64; its source's weights can.
            return Optimised(loaded, fold_network(model, turn=False))
        model = loaded
    if level is None:
        return model
    return Optimised(optimised(model, level), fold_network(model, turn=False))


def _clip(
    source: str,
    spec: ModelSpec | None,
    frames: int | None,
    size: tuple[int, int] | None,
    batch: int,
    seed: int,
) -> Any:
    if source != "random":
        return read_clip(source, frames, size)
    size = size or _published_size(spec)
    check_size(frames or _FRAMES, *size, batch)
    return random_clip(batch, frames or _FRAMES, size, seed)


def _published_size(spec: ModelSpec | None) -> tuple[int, int]:
    import weights

    if spec is None:
        return _SIZE
    for model in weights.models():
        if (model.name, model.mode) == (spec.name, spec.mode):
            return model.resolution, model.resolution
    return _SIZE


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise ComparisonError(f"--chunks {text}: expected numbers of frames, such as 1,2,3")
    return [int(number) for number in text.split(",")]


def _default_chunks(frames: int, each: int | None) -> list[int]:
    """Return 1, 2 and the rest, as far as there are frames, or so many each time."""
    if each is not None:
        return [min(each, frames - first) for first in range(0, frames, each)]
    chunks: list[int] = []
    for size in _STREAM_CHUNKS[:2]:
        if frames - sum(chunks) > size:
            chunks.append(size)
    return [*chunks, frames - sum(chunks)]


def _save(reference: Reference, clip: Any, parts: Sequence[int] | None, path: str) -> None:
    from parity.compare import split_clip

    save_reference(reference, split_clip(clip, parts), path)


def _write(report: Report, html: str | None, json_path: str | None, xml: str | None) -> None:
    writers: list[tuple[str | None, Callable[[], str]]] = [
        (json_path, report.to_json),
        (xml, lambda: junit(report)),
        (html, lambda: render_html(report)),
    ]
    for path, text in writers:
        if path is not None:
            with whole_file(path) as temporary:
                Path(temporary).write_text(text(), encoding="utf-8")
