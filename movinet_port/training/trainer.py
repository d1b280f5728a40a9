"""The loop: epochs of clips, a log, and a state from which a run goes on as if never stopped."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from movinet_port.errors import MovinetPortError
from movinet_port.files import whole_file
from movinet_port.layers import StochasticDepth
from movinet_port.model import MoViNet
from movinet_port.training.data import Batches, DataError, VideoClips, seed_for
from movinet_port.training.distributed import Process, distribute
from movinet_port.training.freeze import set_training_mode

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

STATE_VERSION = 1


class ResumeError(MovinetPortError):
    """A run cannot be continued from the state that was found."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the network learns.

    Attributes:
        epochs: how often every video is seen.
        batch: videos per step and process.
        learning_rate: the largest; it rises linearly, then falls along a cosine to 0.
        warmup: the part of all steps in which it rises.
        weight_decay: of kernels; biases, norms and scalars have none.
        label_smoothing: as in `torch.nn.functional.cross_entropy`.
        clip_frames: a stream network gets a video in clips of this many frames, with a loss after
            each; None for the whole video at once.
        precision: "float32", or "bfloat16" or "float16" for mixed precision.
        norm_momentum: how far each step moves the running statistics towards its batch's; the
            authors' 0.01 is for runs of a hundred thousand steps.
        freeze_norms: keep all batch statistics as they are.
        seed: of the order, of the clips, and of what is dropped.
    """

    epochs: int = 20
    batch: int = 8
    learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 1e-2
    label_smoothing: float = 0.0
    clip_frames: int | None = None
    precision: str = "float32"
    norm_momentum: float = 0.1
    freeze_norms: bool = False
    seed: int = 0

    def rate(self, progress: float) -> float:
        """Return the learning rate after this part of the run, 0 to 1."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        falling = (progress - self.warmup) / max(1 - self.warmup, 1e-9)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * falling))


@dataclasses.dataclass(frozen=True)
class Epoch:
    """A line of the log: the last learning rate, mean losses, accuracies from 0 to 1.

    Without videos to validate on, what is measured on them is not a number.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float


class Trainer:
    """Trains a network in this process, and in those beside it.

    Args:
        model: the network, after `freeze`.
        schedule: how.
        train, val: what to train on and what to validate on.
        process: from `joined`.
        workers: processes that read videos; 0 reads in this one.
        progress: called with a line on what is being done.
    """

    def __init__(
        self,
        model: MoViNet,
        schedule: Schedule,
        train: VideoClips,
        val: VideoClips,
        process: Process,
        *,
        workers: int = 0,
        progress: Callable[[str], None] = lambda activity: None,
    ) -> None:
        self.model = model
        self.schedule = schedule
        self.process = process
        self.progress = progress
        self.history: list[Epoch] = []
        self._train = train
        for module in model.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.momentum = schedule.norm_momentum
        self._wrapped: nn.Module = distribute(model, process)
        self._batches = Batches(
            len(train),
            schedule.batch,
            rank=process.rank,
            world_size=process.world_size,
            seed=schedule.seed,
        )
        self._loader = DataLoader(train, batch_sampler=self._batches, num_workers=workers)
        shard = range(process.rank, len(val), process.world_size)
        self._val_loader = DataLoader(
            val, batch_size=schedule.batch, sampler=list(shard), num_workers=workers
        )
        self._optimizer = torch.optim.AdamW(
            _decayed(model, schedule.weight_decay), lr=schedule.learning_rate
        )
        self._dtype = PRECISIONS[schedule.precision]
        self._scaler = torch.amp.GradScaler(
            process.device.type, enabled=self._dtype is torch.float16
        )

    def epochs(self) -> Iterator[Epoch]:
        """Train the epochs that are left, and yield the line of the log after each."""
        for number in range(len(self.history) + 1, self.schedule.epochs + 1):
            start = time.perf_counter()
            train = self._train_epoch(number)
            val = self.evaluate(self._val_loader)
            rate = self._optimizer.param_groups[0]["lr"]
            self.history.append(
                Epoch(number, rate, *train, *val, round(time.perf_counter() - start, 3))
            )
            yield self.history[-1]

    def _train_epoch(self, number: int) -> tuple[float, float]:
        schedule = self.schedule
        self._train.epoch = self._batches.epoch = number
        # From the epoch's number and not from what was drawn before, so that a run that was
        # stopped goes on with the same numbers. Processes drop differently.
        torch.manual_seed(seed_for(schedule.seed, number, self.process.rank))
        set_training_mode(self.model, freeze_norms=schedule.freeze_norms)
        steps = len(self._batches)
        loss = right = count = 0.0
        for step, (videos, targets) in enumerate(_read(self._loader)):
            done = (number - 1 + (step + 1) / steps) / schedule.epochs
            rate = schedule.rate(done - 0.5 / steps / schedule.epochs)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self.progress(f"epoch {number} of {schedule.epochs}, step {step + 1} of {steps}")
            videos, targets = self._moved(videos), self._moved(targets)
            one_loss, logits = self._step(videos, targets)
            loss += one_loss * len(targets)
            right += (logits.argmax(dim=1) == targets).sum().item()
            count += len(targets)
        loss, right, count = self.process.sum(loss, right, count)
        return loss / count, right / count

    def _step(self, videos: Tensor, targets: Tensor) -> tuple[float, Tensor]:
        """Take one step of the optimizer; return the loss, and the last clip's logits."""
        clips = self._clips(videos)
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for number, clip in enumerate(clips, start=1):
            # Gradients of a video's clips add up here, and are exchanged once.
            with self._alone() if number < len(clips) else contextlib.nullcontext():
                with self._autocast():
                    logits = self._wrapped(clip)
                loss = F.cross_entropy(
                    logits.float(), targets, label_smoothing=self.schedule.label_smoothing
                ) / len(clips)
                if not math.isfinite(loss.item()) and not self._scaler.is_enabled():
                    raise MovinetPortError(
                        f"the loss is {loss.item()} in epoch {len(self.history) + 1}: lower "
                        f"--learning-rate, or train with --precision float32"
                    )
                self._scaler.scale(loss).backward()
            total += loss.item()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.model.clean_activation_buffers()
        return total, logits.detach()

    @torch.no_grad()
    def evaluate(self, loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """Return the mean loss and the accuracy; of a stream, those after the last clip."""
        self.model.eval()
        loss = right = count = 0.0
        for videos, targets in _read(loader):
            videos, targets = self._moved(videos), self._moved(targets)
            for clip in self._clips(videos):
                with self._autocast():
                    logits = self.model(clip)
            self.model.clean_activation_buffers()
            loss += F.cross_entropy(logits.float(), targets, reduction="sum").item()
            right += (logits.argmax(dim=1) == targets).sum().item()
            count += len(targets)
        loss, right, count = self.process.sum(loss, right, count)
        return (loss / count, right / count) if count else (math.nan, math.nan)

    def _clips(self, videos: Tensor) -> tuple[Tensor, ...]:
        frames = self.schedule.clip_frames
        if frames is None or not self.model.spec.causal:
            return (videos,)
        return videos.split(frames, dim=2)

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        no_sync = getattr(self._wrapped, "no_sync", contextlib.nullcontext)
        context: contextlib.AbstractContextManager[None] = no_sync()
        return context

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.process.device.type, dtype=self._dtype, enabled=self._dtype is not None
        )

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.process.device, non_blocking=True)

    # Stopping and going on -------------------------------------------------------------------

    def save_state(self, path: Path) -> None:
        """Write everything that the next epoch depends on; from the first process only."""
        if not self.process.is_first:
            return
        with whole_file(path) as temporary:
            torch.save(
                {
                    "version": STATE_VERSION,
                    "run": self._run(),
                    "history": [dataclasses.asdict(epoch) for epoch in self.history],
                    "model": self.model.state_dict(),
                    "optimizer": self._optimizer.state_dict(),
                    "scaler": self._scaler.state_dict(),
                },
                temporary,
            )

    def load_state(self, path: Path) -> None:
        """Go on where `save_state` stopped.

        Raises:
            ResumeError: the file cannot be read, or belongs to a run with other settings.
        """
        try:
            state = torch.load(path, map_location=self.process.device, weights_only=True)
            version = state["version"]
        except Exception as error:
            raise ResumeError(
                f"cannot read {path}: no state of a run ({type(error).__name__}); remove it to "
                f"start again"
            ) from error
        if version != STATE_VERSION:
            raise ResumeError(f"{path}: version {version!r}, expected {STATE_VERSION}")
        mine = self._run()
        odd = [key for key in mine if state["run"].get(key) != mine[key]]
        if odd:
            listed = "; ".join(f"{k} was {state['run'].get(k)}, is {mine[k]}" for k in odd)
            raise ResumeError(
                f"{path} belongs to another run: {listed}; give the same options, or start another "
                f"run in another folder"
            )
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]

    def _run(self) -> dict[str, Any]:
        """What has to be equal for one run to be the continuation of another."""
        learns = [name for name, p in self.model.named_parameters() if p.requires_grad]
        modules = self.model.modules()
        return {
            **dataclasses.asdict(self.schedule),
            "clip": dataclasses.asdict(self._train.clip),
            "augmentation": repr(self._train.augmentation),
            "videos": len(self._train),
            "processes": self.process.world_size,
            "classes": list(self.model.labels or ()) or self.model.spec.num_classes,
            "dropout": self.model.classifier.dropout.p,
            "drop rates": [m.drop_rate for m in modules if isinstance(m, StochasticDepth)],
            "parameters that learn": len(learns),
        }


def _read(loader: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    try:
        yield from loader
    except MovinetPortError as error:
        # A reading process hands its whole traceback over as the message.
        line = str(error).strip().splitlines()[-1]
        if str(error).startswith("Caught "):
            line = line.partition(": ")[2]
        raise DataError(line) from error


def _decayed(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in learns if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in learns if p.ndim <= 1], "weight_decay": 0.0},
    ]


def write_log(history: Iterable[Epoch], path: Path) -> None:
    """Write the log as a table of comma-separated values, one line for each epoch."""
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in dataclasses.fields(Epoch))
        for epoch in history:
            writer.writerow(dataclasses.astuple(epoch))
