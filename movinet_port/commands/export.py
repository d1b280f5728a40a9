"""``movinet-port export``: a checkpoint as the file that another runtime reads."""

from __future__ import annotations

import os
import re

import click

from movinet_port.checkpoint import load_checkpoint
from movinet_port.errors import MovinetPortError
from movinet_port.export import TARGETS, ClipShape, export_checkpoint
from movinet_port.progress import show_progress


class _Size(click.ParamType):  # type: ignore[type-arg]  # generic in click 8.4 only
    """A square's side, or HEIGHTxWIDTH, in pixels."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", str(value))
        if match is None:
            self.fail(f"{value!r} is no size; expected a number of pixels, or HEIGHTxWIDTH")
        return int(match[1]), int(match[2] or match[1])


@click.command()
@click.option(
    "--weights",
    required=True,
    metavar="FILE",
    help="A checkpoint of 'movinet-port convert', or of fine-tuning (.pt, .safetensors).",
)
@click.option(
    "--to", "target", required=True, type=click.Choice(list(TARGETS)), help="What to write."
)
@click.option("-o", "--output", required=True, metavar="OUT", help="The file to write.")
@click.option("--batch", type=click.IntRange(1), help="Fix the number of videos.")
@click.option("--frames", type=click.IntRange(1), help="Fix the number of frames of a clip.")
@click.option(
    "--size", type=_Size(), metavar="N or HxW", help="Fix the size of a frame, in pixels."
)
@click.option("--no-verify", is_flag=True, help="Do not run both sides and compare.")
def export(
    weights: str,
    target: str,
    output: str,
    batch: int | None,
    frames: int | None,
    size: tuple[int, int] | None,
    no_verify: bool,
) -> None:
    """Write a network as ONNX, TorchScript, an exported program or safetensors.

    Sizes that are not fixed stay free. A stream network takes its state as inputs and returns it.
    What was written is run beside the network, and compared.

    Exit code 0: written. 1: it does not give the network's logits, nothing was written. 2: the
    checkpoint or the output cannot be used.
    """
    if os.path.exists(output) and os.path.exists(weights) and os.path.samefile(output, weights):
        raise MovinetPortError(
            f"the output {output} is the checkpoint itself; name another with -o"
        )
    height, width = size or (None, None)
    with show_progress() as progress:
        progress(f"reading {weights}")
        exported = export_checkpoint(
            load_checkpoint(weights),
            output,
            target,
            ClipShape(batch, frames, height, width),
            verify=not no_verify,
            progress=progress,
        )
    click.echo(f"written     {exported.path}")
    click.echo(f"takes       {exported.shape}")
    comparison = exported.comparison
    if comparison is None:
        click.echo("compared    no: --no-verify")
    else:
        click.echo(
            f"compared    {len(comparison.clips)} clips: logits differ by {comparison.logits:.1e} "
            f"of the largest one, states by {comparison.states:.1e}"
        )
