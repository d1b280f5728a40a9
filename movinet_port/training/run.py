"""A whole fine-tuning run: from a folder of videos to a checkpoint that `predict` reads."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import movinet_port
from movinet_port.checkpoint import Checkpoint, load_checkpoint, save
from movinet_port.errors import MovinetPortError
from movinet_port.inputs import InputFormat, published_input
from movinet_port.model import MoViNet
from movinet_port.training.data import Augmentation, VideoClips, find_splits
from movinet_port.training.distributed import Process
from movinet_port.training.freeze import ALL, freeze
from movinet_port.training.trainer import Epoch, Schedule, Trainer, write_log

STATE, LOG, LAST, BEST = "state.pt", "log.csv", "last.pt", "best.pt"


class RunError(MovinetPortError):
    """A run cannot start."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What to train, on what, and where the results go.

    Attributes:
        data: a folder with a subfolder of videos for each class, or with "train" and "val" folders
            that have these.
        out: the folder that is written: ``last.pt`` and ``best.pt`` (by validation accuracy),
            ``log.csv``, and ``state.pt`` to go on from.
        weights: the checkpoint to start from.
        validation: the folder to validate on, if it is another than in `data`.
        validation_fraction: without one, the part of `data` that is kept for it.
        train: which part learns: "all", "head", or a number of last blocks.
        clip: what the network gets of a video; `clip_for` has the defaults.
        schedule: how it learns.
        augmentation: what a training clip shows.
        dropout, stochastic_depth: rates, as in `MoViNet`.
        workers: processes that read videos.
        resume: go on where the run in `out` stopped; where there is none, start one.
        tensorboard: write TensorBoard's event files too.
    """

    data: Path
    out: Path
    weights: Path
    clip: InputFormat
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    validation: Path | None = None
    validation_fraction: float = 0.2
    train: str | int = ALL
    dropout: float = 0.2
    stochastic_depth: float = 0.2
    workers: int = 0
    resume: bool = False
    tensorboard: bool = False


def clip_for(
    checkpoint: Checkpoint,
    *,
    frames: int | None = None,
    size: int | None = None,
    frames_per_second: float | None = None,
) -> InputFormat:
    """Return the clips to train on: those that the network was made for, but for what is given.

    Raises:
        RunError: something is not given, and for this network nothing is known.
    """
    known = checkpoint.input or published_input(checkpoint.spec.name)
    if known is None:
        if frames is None or size is None or frames_per_second is None:
            raise RunError(
                "the checkpoint does not say what clips it was made for: give --frames, --size "
                "and --fps"
            )
        return InputFormat(size, size, frames_per_second, frames)
    size = size or known.size
    return InputFormat(
        size,
        round(size * known.resize / known.size),
        frames_per_second or known.frames_per_second,
        frames or known.frames,
    )


def start_from(checkpoint: Checkpoint, classes: tuple[str, ...]) -> MoViNet:
    """Return the network with a new last layer for these classes.

    If the checkpoint's own labels are these classes, in this order, its last layer is kept.
    """
    model = checkpoint.build()
    if checkpoint.labels != classes:
        model.reset_classifier(len(classes))
        model.labels = classes
    return model


def finetune(
    run: Run,
    process: Process,
    *,
    report: Callable[[Epoch], None] = lambda epoch: None,
    progress: Callable[[str], None] = lambda activity: None,
) -> list[Epoch]:
    """Train, and write the results after each epoch; return the log.

    Args:
        run: what to do.
        process: from `joined`.
        report: called with each line of the log, in the first process.
        progress: called with what is being done.

    Raises:
        MovinetPortError: the folders, the checkpoint or the settings cannot be used.
    """
    state = run.out / STATE
    if state.exists() and not run.resume:
        raise RunError(
            f"{run.out} holds a run already; go on with it (--resume), or name another folder"
        )
    if run.tensorboard:
        _summary_writer()
    classes, train, val = find_splits(run.data, run.validation, run.validation_fraction)
    source = load_checkpoint(run.weights)
    torch.manual_seed(run.schedule.seed)
    model = start_from(source, classes)
    model.set_drop_rates(run.dropout, run.stochastic_depth)
    freeze(model, run.train)
    trainer = Trainer(
        model,
        run.schedule,
        VideoClips(train, run.clip, run.augmentation, seed=run.schedule.seed),
        VideoClips(val, run.clip),
        process,
        workers=run.workers,
        progress=progress if process.is_first else lambda activity: None,
    )
    if state.exists():
        trainer.load_state(state)
    for epoch in trainer.epochs():
        write_results(run, source, trainer)
        if process.is_first:
            report(epoch)
    return trainer.history


def write_results(run: Run, source: Checkpoint, trainer: Trainer) -> None:
    """Write the files of a run as they are after its last epoch; the first process does.

    Args:
        run: says where.
        source: the checkpoint that was started from.
        trainer: after an epoch.

    Raises:
        MovinetPortError: a file cannot be written.
    """
    if trainer.process.is_first:
        _make_folder(run.out)
        _write(run, source, trainer)
    trainer.process.wait()


def _write(run: Run, source: Checkpoint, trainer: Trainer) -> None:
    history = trainer.history
    checkpoint = trained_checkpoint(trainer.model, source, run, history[-1])
    save(checkpoint, run.out / LAST)
    accuracies = [epoch.val_accuracy for epoch in history]
    if max(accuracies[:-1], default=-1.0) < accuracies[-1]:  # not so where nothing is measured
        save(checkpoint, run.out / BEST)
    write_log(history, run.out / LOG)
    if run.tensorboard:
        _write_events(history[-1], run.out)
    # Last: whoever goes on from it finds everything else as it should be.
    trainer.save_state(run.out / STATE)


def trained_checkpoint(model: MoViNet, source: Checkpoint, run: Run, epoch: Epoch) -> Checkpoint:
    """Return the network as a checkpoint: with its classes' names, and where it came from."""
    provenance: dict[str, Any] = {
        "source": str(run.weights),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {"movinet-port": movinet_port.__version__, "torch": torch.__version__},
        "fine-tuned": {
            "data": str(run.data),
            "train": run.train,
            "augmentation": dataclasses.asdict(run.augmentation),
            "schedule": dataclasses.asdict(run.schedule),
            "epoch": dataclasses.asdict(epoch),
        },
        "started from": dict(source.provenance),
    }
    state_dict = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    return Checkpoint(model.spec, state_dict, provenance, model.labels, run.clip)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot write {folder}: {error.strerror}; name another folder with -o"
        ) from error


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError("TensorBoard's files need it: pip install tensorboard") from error
    return SummaryWriter


def _write_events(epoch: Epoch, folder: Path) -> None:
    with _summary_writer()(str(folder)) as writer:
        for name, value in dataclasses.asdict(epoch).items():
            if name != "epoch":
                writer.add_scalar(name, value, epoch.epoch)
