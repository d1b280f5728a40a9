"""The command ``movinet-port finetune``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from movinet_port.command_line.output import say
from movinet_port.errors import MovinetPortError
from movinet_port.files import check_outputs
from movinet_port.progress import show_progress

if TYPE_CHECKING:
    from movinet_port.training import Epoch


@click.command()
@click.argument("data", type=click.Path(path_type=Path), metavar="FOLDER")
@click.option(
    "--weights",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The converted model to start from, base or stream.",
)
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where last.pt, best.pt, log.csv and state.pt go.",
)
@click.option("--resume", is_flag=True, help="Go on where the run in --out stopped, if there is.")
@click.option(
    "--val", type=click.Path(path_type=Path), metavar="FOLDER", help="Validate on these videos."
)
@click.option(
    "--val-fraction",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.2,
    show_default=True,
    help="Without --val and without 'val' in FOLDER: the part of each class kept for validation.",
)
@click.option(
    "--train",
    default="all",
    show_default=True,
    metavar="all|head|N",
    help="What learns: everything, the two classifier layers, or the last N blocks and the rest.",
)
@click.option("--freeze-norms", is_flag=True, help="Keep the batch norms' statistics.")
@click.option(
    "--norm-momentum",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.1,
    show_default=True,
    help="How far a step moves the batch norms' statistics.",
)
@click.option("--epochs", type=click.IntRange(1), default=20, show_default=True)
@click.option(
    "--batch", type=click.IntRange(1), default=8, show_default=True, help="Videos, per process."
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    default=1e-3,
    show_default=True,
    help="The largest: it warms up, then falls along a cosine.",
)
@click.option("--weight-decay", type=click.FloatRange(0), default=0.01, show_default=True)
@click.option(
    "--label-smoothing",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
)
@click.option("--dropout", type=click.FloatRange(0, 1), default=0.2, show_default=True)
@click.option("--stochastic-depth", type=click.FloatRange(0, 1), default=0.2, show_default=True)
@click.option(
    "--frames", type=click.IntRange(1), help="Of a video. Default: what the model was made for."
)
@click.option(
    "--clip-frames",
    type=click.IntRange(1),
    metavar="N",
    help="Stream networks: a video comes in clips of N frames, with a loss after each.",
)
@click.option("--size", type=click.IntRange(1), help="Pixels. Default: likewise.")
@click.option(
    "--fps", type=click.FloatRange(0, min_open=True), help="Frames per second. Default: likewise."
)
@click.option(
    "--flip", is_flag=True, help="Mirror half of the clips: where left and right do not matter."
)
@click.option(
    "--min-scale",
    type=click.FloatRange(0.05, 1),
    default=0.8,
    show_default=True,
    help="The smallest random cut, as a part of the frame.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
)
@click.option("--workers", type=click.IntRange(0), default=2, show_default=True)
@click.option("--device", metavar="cpu|cuda", help="Default: a GPU if there is one.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's files too.")
def finetune(
    data: Path,
    weights: Path,
    out: Path,
    resume: bool,
    val: Path | None,
    val_fraction: float,
    train: str,
    freeze_norms: bool,
    norm_momentum: float,
    epochs: int,
    batch: int,
    learning_rate: float,
    weight_decay: float,
    label_smoothing: float,
    dropout: float,
    stochastic_depth: float,
    frames: int | None,
    clip_frames: int | None,
    size: int | None,
    fps: float | None,
    flip: bool,
    min_scale: float,
    precision: str,
    workers: int,
    device: str | None,
    seed: int,
    tensorboard: bool,
) -> None:
    """Fine-tune a converted model on a folder of videos, one subfolder for each class.

    The result, best.pt, is a converted model as any other, with the names of the classes in it:
    'movinet-port predict' shows them. Started by torchrun, the processes train one network
    together.
    """
    from movinet_port import training
    from movinet_port.checkpoint import load_checkpoint

    for name in (training.run.LAST, training.run.BEST, training.run.LOG, training.run.STATE):
        check_outputs({"-o": out / name}, [("the model to start from", weights)])
    checkpoint = load_checkpoint(weights)
    if clip_frames is not None and not checkpoint.spec.causal:
        raise MovinetPortError(
            f"--clip-frames is for stream networks, and {weights} is a base one: it sees whole "
            f"clips, of --frames"
        )
    run = training.Run(
        data=data,
        out=out,
        weights=weights,
        clip=training.clip_for(checkpoint, frames=frames, size=size, frames_per_second=fps),
        augmentation=training.Augmentation(min_scale, flip),
        schedule=training.Schedule(
            epochs=epochs,
            batch=batch,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            label_smoothing=label_smoothing,
            clip_frames=clip_frames,
            precision=precision,
            norm_momentum=norm_momentum,
            freeze_norms=freeze_norms,
            seed=seed,
        ),
        validation=val,
        validation_fraction=val_fraction,
        train=train,
        dropout=dropout,
        stochastic_depth=stochastic_depth,
        workers=workers,
        resume=resume,
        tensorboard=tensorboard,
    )
    # Beside a spinner on the terminal, rich takes standard output over: a pipe is left alone.
    pipe = None if sys.stdout is None or sys.stdout.isatty() else sys.stdout
    with training.joined(device) as process, show_progress() as progress:
        history = training.finetune(
            run,
            process,
            report=lambda epoch: click.echo(_line(epoch), file=pipe),
            progress=progress,
        )
    if process.is_first and (out / training.run.BEST).exists():
        best = max(history, key=lambda epoch: epoch.val_accuracy)
        say(f"best {100 * best.val_accuracy:.1f} % in epoch {best.epoch}; {out / 'best.pt'}")
    elif process.is_first:
        say(f"written {out / 'last.pt'}")


def _line(epoch: Epoch) -> str:
    return (
        f"epoch {epoch.epoch:>3}  loss {epoch.train_loss:.4f}  accuracy "
        f"{100 * epoch.train_accuracy:5.1f} %  validation: loss {epoch.val_loss:.4f}  accuracy "
        f"{100 * epoch.val_accuracy:5.1f} %  {epoch.seconds:.1f} s"
    )
