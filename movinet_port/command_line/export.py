"""``movinet-port export``: a checkpoint as the file that another runtime reads."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import click

from converters import to_tensorflow
from movinet_port.checkpoint import Checkpoint, load_checkpoint
from movinet_port.command_line import summaries
from movinet_port.errors import MovinetPortError
from movinet_port.export import TARGETS, ClipShape, ExportError, export_checkpoint
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
    "--to",
    "target",
    required=True,
    type=click.Choice([*TARGETS, *to_tensorflow.TARGETS]),
    help="What to write. saved-model and keras-h5 need the extra 'reference'.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUT",
    help="The file to write; the folder of a SavedModel, the prefix of a TF checkpoint.",
)
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
    """Write a network as the file that another runtime reads.

    onnx, torchscript and exported-program hold the network, safetensors its weights. tf-checkpoint
    and keras-h5 hold weights that the authors' TensorFlow code restores, saved-model the network
    as they export it. Sizes that are not fixed stay free. A stream network takes its state as
    inputs, and returns it. What was written is run beside the network, and compared.

    Exit code 0: written. 1: it does not give the network's logits, nothing was written. 2: the
    checkpoint or the output cannot be used.
    """
    if os.path.exists(output) and os.path.exists(weights) and os.path.samefile(output, weights):
        raise MovinetPortError(
            f"the output {output} is the checkpoint itself; name another with -o"
        )
    shape = ClipShape(batch, frames, *(size or (None, None)))
    if target in to_tensorflow.TARGETS and shape != ClipShape():
        raise ExportError(f"{target} leaves every size free; leave --batch, --frames, --size out")
    write = _to_tensorflow if target in to_tensorflow.TARGETS else _to_torch
    with show_progress() as progress:
        progress(f"reading {weights}")
        rows = list(write(load_checkpoint(weights), output, target, shape, not no_verify, progress))
    for label, text in rows:
        click.echo(f"{label:<10}  {text}")


def _to_torch(
    checkpoint: Checkpoint,
    output: str,
    target: str,
    shape: ClipShape,
    verify: bool,
    progress: Callable[[str], None],
) -> Iterator[tuple[str, str]]:
    exported = export_checkpoint(
        checkpoint, output, target, shape, verify=verify, progress=progress
    )
    yield "written", output
    comparison = exported.comparison
    if TARGETS[target].takes_sizes:
        yield "takes", str(exported.shape)
    if comparison is None:
        yield "compared", "no: --no-verify"
        return
    states = f", states by {comparison.states:.1e}" if checkpoint.spec.causal else ""
    yield (
        "compared",
        f"{len(comparison.clips)} clips: logits differ by {comparison.logits:.1e} of the largest "
        f"one{states}",
    )


def _to_tensorflow(
    checkpoint: Checkpoint,
    output: str,
    target: str,
    shape: ClipShape,
    verify: bool,
    progress: Callable[[str], None],
) -> Iterator[tuple[str, str]]:
    from converters.tensorflow import import_tensorflow, quiet

    with quiet():
        import_tensorflow()
        exported = to_tensorflow.export_to_tensorflow(
            checkpoint, output, target, verify=verify, progress=progress
        )
    yield "written", output
    yield "variables", f"{exported.variables}, read back bit for bit"
    if exported.verification is not None:
        yield from summaries.verification_rows(exported.verification)
    for note in exported.notes:
        yield "restoring", note
