"""``movinet-port export``: a checkpoint as the file that another runtime reads."""

from __future__ import annotations

import math
from collections.abc import Iterator

import click
from torch import Tensor

from converters import to_tensorflow
from converters.tflite import export as tflite
from movinet_port.checkpoint import Checkpoint, load_checkpoint
from movinet_port.command_line import summaries
from movinet_port.command_line.options import Size
from movinet_port.command_line.output import say
from movinet_port.export import ClipShape, Exported, Target, export_checkpoint, targets
from movinet_port.export.targets import Calibration
from movinet_port.files import check_outputs
from movinet_port.inputs import published_input
from movinet_port.predict import find_videos
from movinet_port.progress import show_progress
from movinet_port.transforms import ClipTransform, repeated
from movinet_port.video import read_video

QUANTISATIONS = tflite.QUANTISATIONS[1:]

TARGETS: dict[str, Target] = {**targets.TARGETS, **tflite.TARGETS, **to_tensorflow.TARGETS}


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
@click.option(
    "--quantize",
    "quantise",
    type=click.Choice(QUANTISATIONS),
    help="Store numbers so; TF Lite files only. int8 needs --calibrate.",
)
@click.option(
    "--calibrate",
    metavar="PATH",
    help="A video or a folder of videos that show which values activations have.",
)
@click.option("--no-verify", is_flag=True, help="Do not run both sides and compare.")
def export(
    weights: str,
    target: str,
    output: str,
    batch: int | None,
    frames: int | None,
    size: tuple[int, int] | None,
    quantise: str | None,
    calibrate: str | None,
    no_verify: bool,
) -> None:
    """Write a network as the file that another runtime reads.

    onnx, torchscript, exported-program and tflite hold the network, compiled its native code (see
    'movinet-port compile'), safetensors its weights. tf-checkpoint and keras-h5 hold weights that
    the authors' TensorFlow code restores, saved-model the network as they export it. Sizes that
    are not fixed stay free. A stream network takes its state as inputs, and returns it. What was
    written is run beside the network, and compared.

    Exit code 0: written. 1: it does not give the network's logits, nothing was written. 2: the
    checkpoint or the output cannot be used.
    """
    sources = [("the checkpoint", weights)]
    if calibrate is not None:
        sources.append(("the videos", calibrate))
    check_outputs({"-o": output}, sources)
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
            quantise=quantise,
            calibration=None if calibrate is None else _clips_of(calibrate, checkpoint),
        )
    for label, text in [
        ("written", output),
        *exported.notes,
        *_compared(exported, checkpoint.spec.causal),
    ]:
        say(f"{label:<10}  {text}")


# Of each video: a network settles on what it sees within seconds.
_CALIBRATION_FRAMES = 64


def _clips_of(path: str, checkpoint: Checkpoint) -> Calibration:
    """Return what reads the videos at a path as clips of the network's."""

    def clips(frames: int, size: tuple[int, int]) -> Iterator[Tensor]:
        made_for = checkpoint.input or published_input(checkpoint.spec.name)
        fps = made_for.frames_per_second if made_for else None
        transform = ClipTransform(size, made_for.resize if made_for else None)
        for source in find_videos([path]):
            images = read_video(source, fps, frames=max(frames, _CALIBRATION_FRAMES))
            video = repeated(transform(images), math.ceil(len(images) / frames) * frames)
            yield from video.permute(0, 2, 3, 4, 1).split(frames, 1)

    return clips


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
