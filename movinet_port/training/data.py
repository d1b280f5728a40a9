"""A folder of videos, one subfolder for each class, as clips and targets."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from movinet_port.errors import MovinetPortError, nearest
from movinet_port.inputs import InputFormat
from movinet_port.transforms import ClipTransform, clip_starts, repeated
from movinet_port.video import SUFFIXES, probe, read_video


class DataError(MovinetPortError):
    """A folder of videos cannot be trained on."""


@dataclass(frozen=True)
class Video:
    """One file and the number of its class."""

    path: Path
    target: int


@dataclass(frozen=True)
class Augmentation:
    """What a training clip shows of its video, beyond a random part of its time.

    Attributes:
        min_scale: a random square of at least this part of the frame's shorter side; 1 for the
            largest square.
        flip: mirrored left to right, half of the time: only where a mirrored video is of the same
            class.
    """

    min_scale: float = 0.8
    flip: bool = False


def find_classes(folder: Path) -> tuple[str, ...]:
    """Return the names of a folder's subfolders, in alphabetical order.

    Raises:
        DataError: there is no such folder, or it has fewer than two subfolders.
    """
    if not folder.is_dir():
        raise DataError(f"cannot read {folder}: no such folder; expected one subfolder per class")
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not _is_hidden(p))
    if len(classes) < 2:
        raise DataError(
            f"{folder} has {len(classes)} subfolders, expected one for each class and at least two"
        )
    return tuple(classes)


def find_videos(folder: Path, classes: Sequence[str]) -> list[Video]:
    """Return the videos under each class's subfolder, in order.

    Raises:
        DataError: a class has no video, or a subfolder is no class.
    """
    for name in find_classes(folder):
        if name not in classes:
            raise DataError(
                f"{folder}: the subfolder {name!r} is no class{nearest(name, classes)}; "
                f"the classes are {', '.join(classes)}"
            )
    videos = []
    for target, name in enumerate(classes):
        paths = sorted(
            path
            for path in (folder / name).rglob("*")
            if path.suffix.lower() in SUFFIXES and path.is_file() and not _is_hidden(path)
        )
        if not paths:
            raise DataError(
                f"{folder / name} holds no video; expected files that end in "
                f"{', '.join(sorted(SUFFIXES))}"
            )
        videos += [Video(path, target) for path in paths]
    return videos


def find_splits(
    data: Path, validation: Path | None = None, fraction: float = 0.2
) -> tuple[tuple[str, ...], list[Video], list[Video]]:
    """Return the classes, the videos to train on, and those to validate on.

    Args:
        data: a folder with a subfolder for each class, or with the subfolders "train" and "val"
            that have these.
        validation: the folder to validate on, if it is another.
        fraction: without such a folder, the part of each class that is kept for validation. Which
            videos these are depends on their names alone.

    Raises:
        DataError: a folder or a class has nothing to offer.
    """
    if validation is None and (data / "train").is_dir() and (data / "val").is_dir():
        data, validation = data / "train", data / "val"
    classes = find_classes(data)
    videos = find_videos(data, classes)
    if validation is not None:
        return classes, videos, find_videos(validation, classes)
    kept: set[Path] = set()
    for target in range(len(classes)):
        paths = [video.path for video in videos if video.target == target]
        paths.sort(key=lambda path: hashlib.sha256(str(path.relative_to(data)).encode()).digest())
        kept.update(paths[: round(fraction * len(paths))])
        if len(kept.intersection(paths)) == len(paths):
            raise DataError(
                f"{data / classes[target]} has {len(paths)} videos, too few to keep "
                f"{fraction:.0%} for validation; name a folder with --val"
            )
    return (
        classes,
        [video for video in videos if video.path not in kept],
        [video for video in videos if video.path in kept],
    )


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


class VideoClips(Dataset[tuple[Tensor, int]]):
    """One clip of each video: a random one with an augmentation, the one in the middle without.

    An item is a clip, (3, frames, size, size) float32 in [0, 1], and its class's number. What is
    random depends on the seed, the epoch and the video alone: not on the order of reading, nor on
    how many processes read.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        clip: InputFormat,
        augmentation: Augmentation | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.videos = videos
        self.clip = clip
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        video = self.videos[index]
        if self.augmentation is None:
            return read_clip(video.path, self.clip), video.target
        generator = generator_for(self.seed, self.epoch, index)
        return random_clip(video.path, self.clip, self.augmentation, generator), video.target


def read_clip(path: Path, clip: InputFormat) -> Tensor:
    """Return the clip in the middle of a video, (3, frames, size, size), float32 in [0, 1].

    Raises:
        VideoError: the file cannot be read as a video.
    """
    (start,) = clip_starts(_seconds(path), clip.seconds)
    images = read_video(str(path), clip.frames_per_second, start=start, frames=clip.frames)
    return repeated(clip.transform()(images), clip.frames)[0]


def random_clip(
    path: Path, clip: InputFormat, augmentation: Augmentation, generator: torch.Generator
) -> Tensor:
    """Return a random clip of a video, in the same form.

    Raises:
        VideoError: the file cannot be read as a video.
    """

    def draw() -> float:
        return torch.rand((), generator=generator).item()

    start = max(_seconds(path) - clip.seconds, 0.0) * draw()
    images = read_video(str(path), clip.frames_per_second, start=start, frames=clip.frames)
    height, width = images.shape[1:3]
    side = max(round(min(height, width) * (1 - draw() * (1 - augmentation.min_scale))), 1)
    top, left = round((height - side) * draw()), round((width - side) * draw())
    cut = images[:, top : top + side, left : left + side]
    found = repeated(ClipTransform(clip.size)(cut), clip.frames)[0]
    return found.flip(-1) if augmentation.flip and draw() < 0.5 else found


@functools.lru_cache(maxsize=1 << 20)
def _seconds(path: Path) -> float:
    return probe(str(path)).seconds or 0.0


def seed_for(*numbers: int) -> int:
    """Return a seed that depends on all of these, and is far from that of any others."""
    text = ",".join(map(str, numbers))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little")


def generator_for(*numbers: int) -> torch.Generator:
    """Return a generator whose numbers depend on all of these."""
    return torch.Generator().manual_seed(seed_for(*numbers))


class Batches(Sampler[list[int]]):
    """The batches of one process, in an order of their own each epoch.

    The processes together take the batches of one process with a batch as large as all of theirs,
    so how many there are changes nothing. Every video is taken once, and a few again where the
    last batch would not be full: batches of one size have statistics of one size.
    """

    def __init__(
        self, videos: int, batch: int, *, rank: int = 0, world_size: int = 1, seed: int = 0
    ) -> None:
        self.videos = videos
        self.batch = batch
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.videos // (self.batch * self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.videos, generator=generator_for(self.seed, self.epoch)).tolist()
        step = self.batch * self.world_size
        for start in range(0, self.videos, step):
            taken = [order[place % self.videos] for place in range(start, start + step)]
            yield taken[self.rank :: self.world_size]
