"""From a video to class probabilities: whole clips, or a stream with a running prediction."""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import itertools
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from movinet_port.checkpoint import Checkpoint, load_checkpoint
from movinet_port.ensemble import check_members
from movinet_port.errors import MovinetPortError
from movinet_port.fast import InferenceNetwork
from movinet_port.fast import optimize as optimized
from movinet_port.inputs import HIGHEST_RATE, InputFormat, published_input
from movinet_port.labels import check_labels
from movinet_port.loading import build_from
from movinet_port.model import MoViNet
from movinet_port.transforms import clip_starts, repeated
from movinet_port.video import (
    SUFFIXES,
    Frame,
    VideoError,
    display_name,
    is_live,
    iterate_frames,
    probe,
)

# Frames that a stream network gets at a time where nobody waits for each of them.
CHUNK = 8

# What Kinetics' clips and so the published networks' last, where nothing else is known.
_USUAL_SECONDS = 10


class PredictError(MovinetPortError):
    """Weights, videos or options that cannot be predicted with."""


@dataclasses.dataclass(frozen=True)
class RunningPrediction:
    """The running prediction of a stream.

    Attributes:
        seconds: when the last frame seen is shown.
        frames: how many were seen.
        probabilities: (classes,), float32.
        image: the last frame, as it is in the video: RGB, (height, width, 3), uint8.
    """

    seconds: float
    frames: int
    probabilities: Tensor
    image: Tensor


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What is in a video.

    Attributes:
        seconds: when the last frame seen is shown.
        frames: how many were seen, in all clips.
        probabilities: (classes,), float32.
    """

    seconds: float
    frames: int
    probabilities: Tensor


@dataclasses.dataclass(frozen=True)
class Guess:
    """One class of a prediction; the label is None if the classes have no names."""

    index: int
    label: str | None
    probability: float

    @property
    def name(self) -> str:
        """The label, or else the number of the class."""
        return self.label if self.label is not None else f"class {self.index}"


class Predictor:
    """One network or an ensemble, and the clips that each was made for.

    Attributes:
        mode: "base" or "stream".
        labels: the classes' names, if known.
        fps: the highest frame rate that a network was made for.
    """

    def __init__(
        self,
        models: Sequence[MoViNet | InferenceNetwork],
        formats: Sequence[InputFormat],
        labels: Sequence[str] | None = None,
        device: torch.device | None = None,
    ) -> None:
        check_members(models)
        self._device = device or torch.device("cpu")
        self._members = [(m.eval(), made_for) for m, made_for in zip(models, formats, strict=True)]
        # The fastest last: where frames coincide, it sees its own after the others saw theirs.
        self._members.sort(key=lambda member: member[1].frames_per_second)
        self.mode = models[0].spec.mode
        self.num_classes = models[0].spec.num_classes
        known = [model.labels for model in models if model.labels is not None]
        self.labels = tuple(labels) if labels is not None else (known[0] if known else None)
        if self.labels is not None:
            check_labels(self.labels, self.num_classes, "labels")
        self.fps = self._members[-1][1].frames_per_second

    def predict(self, source: str, clips: int = 1) -> Prediction:
        """Return what is in a video.

        A base network sees one clip from its middle, or the mean of `clips` that are spread over
        it, as the authors evaluate; a video that is shorter than a clip starts over. A stream
        network sees the whole video. Of a camera or an endless URL, a base network sees the first
        clip.

        Args:
            source: as `movinet_port.video.iterate_frames` takes it.
            clips: how many; for base networks.

        Raises:
            VideoError: the video cannot be read.
        """
        if self.mode == "stream":
            last = None
            for moment in self.stream(source, chunk=CHUNK):
                last = moment
            assert last is not None
            return Prediction(last.seconds, last.frames, last.probabilities)
        seconds = None if source.startswith("webcam") else _length(source)
        means, ends, frames = [], [], 0
        for model, made_for in self._members:
            starts = [0.0] if seconds is None else clip_starts(seconds, made_for.seconds, clips)
            # A video no longer than a clip has one clip only.
            starts = list(dict.fromkeys(starts))
            each = []
            for start in starts:
                clip, end = read_clip(source, made_for, start)
                frames += clip.shape[2]
                ends.append(end)
                each.append(_probabilities(model, clip.to(self._device)))
            means.append(torch.stack(each).mean(0))
        return Prediction(max(ends), frames, torch.stack(means).mean(0))

    def stream(self, source: str, chunk: int = 1) -> Generator[RunningPrediction, None, None]:
        """Yield the running prediction of a stream network as frames arrive.

        The memory it takes does not grow with the video. In an ensemble, each network sees the
        frames of its own rate, and the prediction is the mean of the latest ones.

        Args:
            source: as `movinet_port.video.iterate_frames` takes it.
            chunk: frames to run at a time; a prediction follows each chunk.

        Raises:
            PredictError: it is a base network, or an ensemble is to read a camera, which only one
                at a time can.
            VideoError: the video cannot be read.
        """
        if self.mode != "stream":
            raise PredictError(
                "a base network sees whole clips only: a running prediction needs the weights of "
                "a stream network"
            )
        if len(self._members) > 1 and source.startswith("webcam"):
            raise PredictError(f"cannot read {source} once for each network: give one --weights")
        with contextlib.ExitStack() as stack:
            runs = []
            for number, (model, made_for) in enumerate(self._members):
                frames = iterate_frames(source, made_for.frames_per_second)
                stack.enter_context(contextlib.closing(frames))
                runs.append(_run(number, model, made_for, frames, chunk, self._device))
            latest: dict[int, Tensor] = {}
            # By time, then by member.
            for moment, number in heapq.merge(*runs, key=lambda run: (run[0].seconds, run[1])):
                latest[number] = moment.probabilities
                if number == len(self._members) - 1:
                    mean = torch.stack(list(latest.values())).mean(0)
                    yield dataclasses.replace(moment, probabilities=mean)

    def top(self, probabilities: Tensor, count: int = 5) -> list[Guess]:
        """Return the likeliest classes, the likeliest first."""
        values, indices = probabilities.topk(min(count, self.num_classes))
        return [
            Guess(index, None if self.labels is None else self.labels[index], value)
            for index, value in zip(indices.tolist(), values.tolist(), strict=True)
        ]


def load_predictor(
    paths: Iterable[str | os.PathLike[str]],
    *,
    size: int | None = None,
    resize: int | None = None,
    fps: float | None = None,
    frames: int | None = None,
    labels: Sequence[str] | None = None,
    device: str = "cpu",
    optimize: str | None = None,
) -> Predictor:
    """Return what predicts with one checkpoint file, or with the mean of several.

    Args:
        paths: files that `movinet_port.save` wrote.
        size, resize, fps, frames: instead of what a checkpoint, or else the catalogue of published
            networks, says; see `movinet_port.inputs.InputFormat`. With `size` alone, frames are
            scaled to just that.
        labels: the classes' names instead of the checkpoint's.
        device: where to run, such as "cuda".
        optimize: a level of `movinet_port.optimize`; None for the readable network.

    Raises:
        CheckpointError: a file cannot be read.
        EnsembleError: the networks do not go together.
        PredictError: a file does not say what its clips are, and nor do the options; or there is no
            such device.
        SpecError: there is no such level.
    """
    where = _device(device)
    models: list[MoViNet | InferenceNetwork] = []
    formats = []
    for path in paths:
        checkpoint = load_checkpoint(path)
        formats.append(_input_format(path, checkpoint, size, resize, fps, frames))
        model = build_from(path, checkpoint)
        models.append((model if optimize is None else optimized(model, optimize)).to(where))
    return Predictor(models, formats, labels, where)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise PredictError(f"cannot run on {name!r}: {reason}; 'cpu' is always there") from error
    return device


def _input_format(
    path: str | os.PathLike[str],
    checkpoint: Checkpoint,
    size: int | None,
    resize: int | None,
    fps: float | None,
    frames: int | None,
) -> InputFormat:
    known = checkpoint.input or published_input(checkpoint.spec.name)
    if fps is not None and not 0 < fps <= HIGHEST_RATE:
        raise PredictError(f"--fps {fps:g}: expected a rate above 0, and at most {HIGHEST_RATE:g}")
    if known is None:
        if size is None or fps is None:
            raise PredictError(
                f"{path} does not say what clips its network was made for: give --size and --fps"
            )
        known = InputFormat(size, size, fps, max(1, round(fps * _USUAL_SECONDS)))
    elif fps is not None and frames is None:
        frames = max(1, round(fps * known.seconds))
    if resize is None:
        resize = known.resize if size is None else size
    return InputFormat(
        size=known.size if size is None else size,
        resize=resize,
        frames_per_second=known.frames_per_second if fps is None else fps,
        frames=known.frames if frames is None else frames,
    )


def read_clip(source: str, made_for: InputFormat, start: float = 0.0) -> tuple[Tensor, float]:
    """Read one clip of a video; a video that ends too early starts over at `start`.

    Returns:
        RGB in [0, 1], (1, 3, frames, height, width), float32; and when its last frame is shown.

    Raises:
        VideoError: the video cannot be read, or ends before `start`.
    """
    transform = made_for.transform()
    parts, end = [], start
    with contextlib.closing(
        iterate_frames(source, made_for.frames_per_second, start=start)
    ) as frames:
        for frame in itertools.islice(frames, made_for.frames):
            parts.append(transform(frame.image[None]))
            end = frame.seconds
    if not parts:
        raise VideoError(f"cannot read {display_name(source)}: it ends before {start:.1f} s")
    return repeated(torch.cat(parts, dim=2), made_for.frames), end


def _run(
    number: int,
    model: MoViNet | InferenceNetwork,
    made_for: InputFormat,
    frames: Iterator[Frame],
    chunk: int,
    device: torch.device,
) -> Iterator[tuple[RunningPrediction, int]]:
    transform = made_for.transform()
    state = None
    seen = 0
    while batch := list(itertools.islice(frames, chunk)):
        clip = transform(torch.stack([frame.image for frame in batch])).to(device)
        if state is None:
            state = model.init_state(1, *clip.shape[3:])
        with torch.inference_mode():
            logits, state = model.step(clip, state)
        seen += len(batch)
        last = batch[-1]
        yield (
            RunningPrediction(last.seconds, seen, logits[0].float().softmax(0).cpu(), last.image),
            number,
        )


@torch.inference_mode()
def _probabilities(model: MoViNet | InferenceNetwork, clip: Tensor) -> Tensor:
    logits = model(clip)
    return logits[0].float().softmax(0).cpu()


def _length(source: str) -> float | None:
    """Return how many seconds a video lasts; None for what has no end."""
    seconds = probe(source).seconds
    if seconds is not None or is_live(source):
        return seconds
    # The container does not say: once through it.
    with contextlib.closing(iterate_frames(source)) as frames:
        for frame in frames:
            seconds = frame.seconds
    return seconds


def find_videos(sources: Iterable[str]) -> list[str]:
    """Return the videos that sources stand for: folders give the files in them, by name.

    Raises:
        PredictError: a folder holds none.
    """
    found: list[str] = []
    for source in sources:
        if is_live(source) or not Path(source).is_dir():
            found.append(source)
            continue
        inside = sorted(
            str(path)
            for path in Path(source).rglob("*")
            if path.suffix.lower() in SUFFIXES and path.is_file()
        )
        if not inside:
            raise PredictError(
                f"no videos in {source}: expected files that end in {', '.join(sorted(SUFFIXES))}"
            )
        found += inside
    return found
