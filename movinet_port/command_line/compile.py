"""The command ``movinet-port compile``."""

from __future__ import annotations

import click

from movinet_port.checkpoint import load_checkpoint
from movinet_port.command_line.options import Size
from movinet_port.command_line.output import say
from movinet_port.export import ClipShape, export_checkpoint
from movinet_port.files import check_outputs
from movinet_port.progress import show_progress


@click.command(name="compile")
@click.option("--weights", required=True, metavar="FILE", help="Converted file: .pt, .safetensors.")
@click.option("--frames", type=click.IntRange(1), default=1, show_default=True, help="In a clip.")
@click.option("--size", type=Size(), required=True, metavar="N|HxW", help="Of the frames.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Of clips.")
@click.option("-o", "--output", required=True, metavar="FILE.pt2", help="Where to write.")
def compile_command(
    weights: str, frames: int, size: tuple[int, int], batch: int, output: str
) -> None:
    """Compile a network ahead of time, for clips of one shape.

    The file is native code for this kind of CPU and this version of PyTorch, with the weights in
    it; movinet_port.load(FILE) runs it and needs no compiler. Load only what you trust. Compiling
    needs a C++ compiler and takes minutes.
    """
    check_outputs({"-o": output}, [("the checkpoint", weights)])
    with show_progress() as progress:
        progress("loading the network")
        checkpoint = load_checkpoint(weights)
        shape = ClipShape(batch, frames, *size)
        exported = export_checkpoint(checkpoint, output, "compiled", shape, progress=progress)
    spec = checkpoint.spec
    say(f"{output}: {spec.name} {spec.mode}, {dict(exported.notes)['takes']}")
