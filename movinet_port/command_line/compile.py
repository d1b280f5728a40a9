"""The command ``movinet-port compile``."""

from __future__ import annotations

import re

import click

from movinet_port.errors import MovinetPortError
from movinet_port.progress import show_progress


@click.command(name="compile")
@click.option("--weights", required=True, metavar="FILE", help="Converted file: .pt, .safetensors.")
@click.option("--frames", type=click.IntRange(1), default=1, show_default=True, help="In a clip.")
@click.option("--size", required=True, metavar="N|HxW", help="Of the frames.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Of clips.")
@click.option("-o", "--output", required=True, metavar="FILE.pt2", help="Where to write.")
def compile_command(weights: str, frames: int, size: str, batch: int, output: str) -> None:
    """Compile a network ahead of time, for clips of one shape.

    The file is native code for this kind of CPU and this version of PyTorch, with the weights in
    it; movinet_port.load(FILE) runs it and needs no compiler. Load only what you trust. Compiling
    needs a C++ compiler and takes minutes.
    """
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", size)
    if match is None:
        raise MovinetPortError(f"--size {size}: expected a number or HEIGHTxWIDTH, such as 172")
    height_width = int(match[1]), int(match[2] or match[1])
    if not output.endswith(".pt2"):
        raise MovinetPortError(f"cannot write {output}: a compiled network's file ends in .pt2")
    from movinet_port.checkpoint import load_checkpoint
    from movinet_port.fast.aot import compile_package
    from movinet_port.fast.optimize import fold_network

    with show_progress() as progress:
        progress("loading the network")
        network = fold_network(load_checkpoint(weights).build(), turn=False)
        progress("compiling, which takes minutes")
        compile_package(network, output, frames=frames, size=height_width, batch=batch)
    click.echo(
        f"{output}: {network.spec.name} {network.spec.mode}, clips of (batch, frames, height, "
        f"width) = {(batch, frames, *height_width)}"
    )
