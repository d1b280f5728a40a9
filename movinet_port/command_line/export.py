"""``movinet-port export``: a checkpoint as the file that another runtime reads."""

from __future__ import annotations

from collections.abc import Iterator

import click

from converters import to_tensorflow
from movinet_port.checkpoint import load_checkpoint
from movinet_port.command_line import summaries
from movinet_port.command_line.options import Size
from movinet_port.command_line.output import say
from movinet_port.export import ClipShape, Exported, Target, export_checkpoint, targets
from movinet_port.files import check_outputs
from movinet_port.progress import show_progress

TARGETS: dict[str, Target] = {**targets.TARGETS, **to_tensorflow.TARGETS}


def _needing(extra: str) -> str:
    return " and ".join(name for name, target in TARGETS.items() if target.extra == extra)


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
    type=click.Choice(list(TARGETS)),
    help=f"What to write. {_needing('reference')} need the extra 'reference'.",
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
@click.option("--size", type=Size(), metavar="N or HxW", help="Fix the size of a frame, in pixels.")
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

    onnx, torchscript and exported-program hold the network, compiled its native code (see
    'movinet-port compile'), safetensors its weights. tf-checkpoint and keras-h5 hold weights that
    the authors' TensorFlow code restores, saved-model the network as they export it. Sizes that
    are not fixed stay free. A stream network takes its state as inputs, and returns it. What was
    written is run beside the network, and compared.

    Exit code 0: written. 1: it does not give the network's logits, nothing was written. 2: the
    checkpoint or the output cannot be used.
    """
    check_outputs({"-o": output}, [("the checkpoint", weights)])
    shape = ClipShape(batch, frames, *(size or (None, None)))
    with show_progress() as progress:
        progress(f"reading {weights}")
        checkpoint = load_checkpoint(weights)
        exported = export_checkpoint(
            checkpoint,
            output,
            target,
            shape,
            verify=not no_verify,
            progress=progress,
            targets=TARGETS,
        )
    for label, text in [
        ("written", output),
        *exported.notes,
        *_compared(exported, checkpoint.spec.causal),
    ]:
        say(f"{label:<10}  {text}")


def _compared(exported: Exported, causal: bool) -> Iterator[tuple[str, str]]:
    agreement = exported.comparison
    if agreement is None:
        if TARGETS[exported.target].verified:
            yield "compared", "no: --no-verify"
    elif exported.target in to_tensorflow.TARGETS:
        yield from summaries.verification_rows(agreement)
    else:
        states = f", states by {agreement.states:.1e}" if causal else ""
        yield (
            "compared",
            f"{len(agreement.clips)} clips: logits differ by {agreement.logits:.1e} of the largest "
            f"one{states}",
        )
