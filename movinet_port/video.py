"""Reading and writing videos with PyAV (the extra ``video``): files, URLs and webcams.

Frames are RGB, (height, width, 3), uint8, upright: the rotation that phones store beside the frames
is applied. Where a frame rate is asked for, each sample is the frame that a player would show at
that time, so a variable frame rate needs no special case. Reading holds a few frames at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import math
import re
import sys
from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from movinet_port.errors import MovinetPortError
from movinet_port.files import whole_file

# What a folder is searched for.
SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3gp", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts"),
        *("ogv", "ts", "webm", "wmv"),
    )
)

# What can be written, and FFmpeg's name for it.
_CONTAINERS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".gif": "gif"}

# FFmpeg's input for cameras, and how it names the first one; {} is the camera's number.
_CAMERAS = {
    "linux": ("v4l2", "/dev/video{}"),
    "darwin": ("avfoundation", "{}:none"),
    "win32": ("dshow", "video={}"),
}
_WEBCAM = re.compile(r"webcam(?::(.+))?", re.DOTALL)

# FFmpeg's names of the containers that say how long they are; for others it makes a guess.
_STATING = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "gif"}

# Seconds to connect, and seconds without any data.
_PATIENCE = (20.0, 30.0)

# Containers round times to their own tick; at most this much belongs to the rounding.
_MOST_ROUNDING = Fraction(1, 2000)
# A leap beyond this is a damaged timestamp: as a pause it would be filled with copies for ever.
_LONGEST_PAUSE = 3600
# An ending that is missing more than this is missing data, not a rounding.
_SHORTEST_LOSS = 0.5


# Seconds since the beginning, seconds shown, PyAV's frame.
_Timed: TypeAlias = tuple[Fraction, Fraction, Any]


class VideoError(MovinetPortError):
    """A video cannot be read or written."""


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What a container says of its video.

    Attributes:
        height, width: of the upright frames.
        frames_per_second: on average, if known.
        seconds: how long it lasts; None for a camera and where the container does not say.
    """

    height: int
    width: int
    frames_per_second: float | None
    seconds: float | None


class Frame(NamedTuple):
    """One frame: seconds since the video began, and RGB, (height, width, 3), uint8."""

    seconds: float
    image: Tensor


def import_av() -> Any:
    """Return PyAV.

    Raises:
        VideoError: it is not installed.
    """
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise VideoError(
            "reading and writing videos needs PyAV: pip install 'movinet-port[video]'"
        ) from error


def is_live(source: str) -> bool:
    """Return whether a source is a camera ("webcam", "webcam:1") or a URL, and not a file."""
    return _WEBCAM.fullmatch(source) is not None or "://" in source


def display_name(source: str) -> str:
    """Return a source as messages name it: a URL without its user and password."""
    return re.sub(r"^([A-Za-z][\w+.-]*://)[^/?#]*@", r"\1", source)


def probe(source: str) -> VideoInfo:
    """Return the size, rate and length of a video. One frame is decoded, for its orientation.

    Raises:
        VideoError: see `iterate_frames`.
    """
    with (
        _opened(source) as (container, stream),
        contextlib.closing(_decode(source, container, stream, 0.0)) as frames,
    ):
        height, width, _ = _ToRgb()(next(frames)).shape
        rate = stream.average_rate or stream.guessed_rate
        seconds = _stated_seconds(container, stream)
        if seconds is None and container.duration and container.format.name in _STATING:
            seconds = container.duration / 1_000_000
        return VideoInfo(height, width, float(rate) if rate else None, seconds)


def read_video(
    source: str, fps: float | None = None, *, start: float = 0.0, frames: int | None = None
) -> Tensor:
    """Read a video, or a part of one, into memory.

    Args:
        source: see `iterate_frames`.
        fps: frames per second to sample at; None for every frame there is.
        start: seconds to skip.
        frames: how many to read at most; None for all.

    Returns:
        RGB, (frames, height, width, 3), uint8.

    Raises:
        VideoError: see `iterate_frames`; or the video ends before `start`.
    """
    with contextlib.closing(iterate_frames(source, fps, start=start)) as found:
        images = [frame.image for frame in itertools.islice(found, frames)]
    if not images:
        raise VideoError(f"cannot read {display_name(source)}: it ends before {start:g} s")
    return torch.stack(images)


def iterate_frames(
    source: str, fps: float | None = None, *, start: float = 0.0
) -> Generator[Frame, None, None]:
    """Yield the frames of a video in the order they are shown.

    Args:
        source: a file; a URL that FFmpeg opens (http, https, rtsp, ...); or "webcam", "webcam:1"
            for a camera of this machine.
        fps: frames per second to sample at: sample k is the frame shown at start + k / fps, so that
            frames repeat or drop out. None for every frame there is.
        start: seconds to skip.

    Raises:
        VideoError: no such file, no video in it, no frames, damaged or cut short; or PyAV is not
            installed.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise VideoError(f"{fps} frames per second: expected a number above 0")
    if not (math.isfinite(start) and start >= 0):
        raise VideoError(f"start at {start} s: expected 0 or more")
    with (
        _opened(source) as (container, stream),
        contextlib.closing(_timed(source, container, stream, start)) as timed,
    ):
        rounding = min(Fraction(stream.time_base or 1) / 2, _MOST_ROUNDING)
        shown = _all_from(timed, start, rounding)
        if fps is not None:
            shown = _sampled(timed, Fraction(fps), Fraction(start), rounding)
        to_rgb = _ToRgb()
        for seconds, frame in shown:
            yield Frame(float(seconds), to_rgb(frame))


def _all_from(
    timed: Iterator[_Timed], start: float, rounding: Fraction
) -> Iterator[tuple[Fraction, Any]]:
    for seconds, _, frame in timed:
        if seconds + rounding >= start:
            yield seconds, frame


def _sampled(
    timed: Iterator[_Timed],
    fps: Fraction,
    start: Fraction,
    rounding: Fraction,
) -> Iterator[tuple[Fraction, Any]]:
    """Yield the frame shown at each sample's time: the last one that began by then."""
    sample = start
    count = 0
    shown, end = None, Fraction(0)
    for seconds, duration, frame in timed:
        while shown is not None and sample + rounding < seconds:
            yield sample, shown
            count += 1
            sample = start + count / fps
        shown, end = frame, seconds + duration
    while shown is not None and sample + rounding < end:
        yield sample, shown
        count += 1
        sample = start + count / fps


def _timed(source: str, container: Any, stream: Any, start: float) -> Generator[_Timed, None, None]:
    """Yield (seconds since the beginning, seconds shown, frame); from a key frame before `start`.

    Times never go back, and frames without one follow the average rate.
    """
    base = Fraction(stream.time_base) if stream.time_base else Fraction(1, 1000)
    rate = stream.average_rate or stream.guessed_rate
    usual = 1 / Fraction(rate) if rate else Fraction(1, 25)
    origin = None
    if start > 0 and stream.start_time is not None and not is_live(source):
        origin = stream.start_time * base
        with contextlib.suppress(OSError, ValueError):
            container.seek(int(stream.start_time + start / base), stream=stream)
    before = None
    for frame in _decode(source, container, stream, start):
        if frame.pts is None:
            seconds = Fraction(0) if before is None else before + usual
        else:
            if origin is None:
                origin = frame.pts * base
            seconds = frame.pts * base - origin
        if before is not None:
            if seconds > before + _LONGEST_PAUSE:
                raise _damaged(source, f"the time leaps by {float(seconds - before):.0f} s", before)
            seconds = max(seconds, before)
        before = seconds
        duration = (getattr(frame, "duration", None) or 0) * base
        yield seconds, duration if duration > 0 else usual, frame


def _decode(source: str, container: Any, stream: Any, start: float) -> Generator[Any, None, None]:
    """Yield decoded frames; an error if there is none at all, or if the data end too early."""
    av = import_av()
    last, reached = None, None
    try:
        for packet in container.demux(stream):
            if packet.pts is not None:
                reached = max(reached or packet.pts, packet.pts + (packet.duration or 0))
            for frame in packet.decode():
                last = frame
                yield frame
    except av.FFmpegError as error:
        seconds = None if last is None or last.time is None else Fraction(last.time)
        raise _damaged(source, _reason(error), seconds) from error
    if last is None and start > 0:
        return
    if last is None:
        raise VideoError(
            f"cannot read {display_name(source)}: its video has no frames; "
            f"was the recording cut short?"
        )
    stated = _stated_seconds(container, stream)
    if stated is None or reached is None:
        return
    # A late beginning may count, or not.
    found = float(max(reached, reached - (stream.start_time or 0)) * stream.time_base)
    if stated - found > max(_SHORTEST_LOSS, 0.02 * stated):
        raise VideoError(
            f"cannot read {display_name(source)}: it is cut short: {found:.1f} s of "
            f"{stated:.1f} s are there; copy it again"
        )


def _stated_seconds(container: Any, stream: Any) -> float | None:
    """Return how long a video lasts by its own container, if that says so for the video alone."""
    if container.format.name not in _STATING:
        return None
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    # Matroska has the time of its end as a tag, "00:00:03.500000000".
    parts = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
    if parts is None:
        return None
    hours, minutes, seconds = parts.groups()
    end = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return end - float((stream.start_time or 0) * stream.time_base)


def _damaged(source: str, reason: str, seconds: Fraction | None) -> VideoError:
    where = "at its beginning" if seconds is None else f"after {float(seconds):.1f} s"
    return VideoError(f"cannot read {display_name(source)}: damaged {where}: {reason}")


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text.splitlines()[0] if text else type(error).__name__


@contextlib.contextmanager
def _opened(source: str) -> Iterator[tuple[Any, Any]]:
    """Open a source; yield its container and its video stream."""
    av = import_av()
    name = display_name(source)
    address, options = _address(source)
    try:
        container = av.open(address, **options)
    except av.FFmpegError as error:
        raise VideoError(f"cannot read {name}: {_reason(error)}; {_expected(source)}") from error
    except UnicodeEncodeError as error:
        raise VideoError(f"cannot read {name!r}: the name is no text that FFmpeg takes") from error
    with container:
        # A cover picture of a song is no video.
        streams = [s for s in container.streams.video if not _is_cover(s)]
        if not streams:
            others = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
            raise VideoError(f"cannot read {name}: no video in it, only {others}")
        if streams[0].codec_context is None:
            raise VideoError(f"cannot read {name}: its codec is not one that this FFmpeg has")
        if not is_live(source):
            # Frame threads hold back as many frames as there are threads: not for what is live.
            streams[0].thread_type = "AUTO"
        yield container, streams[0]


def _is_cover(stream: Any) -> bool:
    return "attached_pic" in str(getattr(stream, "disposition", "")).lower()


def _address(source: str) -> tuple[str, dict[str, Any]]:
    """Return what FFmpeg opens, and how; a path that is no file is an error."""
    camera = _WEBCAM.fullmatch(source)
    if camera is not None:
        if sys.platform not in _CAMERAS:
            raise VideoError(f"cannot read {source}: no cameras on {sys.platform}")
        driver, pattern = _CAMERAS[sys.platform]
        number = camera[1] or "0"
        return pattern.format(number), {"format": driver}
    if "://" in source:
        return source, {"timeout": _PATIENCE}
    path = Path(source)
    try:
        if path.is_dir():
            raise VideoError(f"cannot read {source}: it is a folder, expected a video file")
        if not path.exists():
            raise VideoError(f"cannot read {source}: no such file")
        if path.stat().st_size == 0 and path.is_file():
            raise VideoError(f"cannot read {source}: the file is empty")
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"cannot read {display_name(source)}: {reason}") from error
    # Without the scheme, FFmpeg would take the colon in a file's name for the end of one.
    return f"file:{source}", {}


def _expected(source: str) -> str:
    if _WEBCAM.fullmatch(source):
        return "is a camera there, and may you use it?"
    if "://" in source:
        return "expected the URL of a video"
    return "expected a video file; is it one, and whole?"


class _Orientation(NamedTuple):
    """How to bring a decoded frame upright: swap its axes, then mirror it."""

    swapped: bool = False
    upside_down: bool = False
    mirrored: bool = False


def _orientation(frame: Any) -> _Orientation:
    """Read the display matrix: p' = a p + c q, q' = b p + d q for column p and row q."""
    stored = frame.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return _Orientation()
    a, b, _, c, d = np.frombuffer(bytes(stored), np.int32)[:5].tolist()
    # Quarter turns and mirrorings are all that cameras write; anything else goes to the nearest.
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return _Orientation(False, d < 0, a < 0)
    return _Orientation(True, b < 0, c < 0)


class _ToRgb:
    """Turns decoded frames into upright RGB of the first one's size."""

    def __init__(self) -> None:
        self._reformatter = import_av().video.reformatter.VideoReformatter()
        self._size: tuple[int, ...] | None = None
        self._turn = _Orientation()
        self._rotation: int | None = None

    def __call__(self, frame: Any) -> Tensor:
        """Return (height, width, 3), uint8."""
        # Looking at a frame's side data makes a cycle that keeps it until Python's collector runs:
        # only where the rotation, which costs nothing, is another one.
        if self._rotation is None or frame.rotation != self._rotation:
            self._rotation, self._turn = frame.rotation, _orientation(frame)
        turn = self._turn
        height, width = frame.height, frame.width
        if self._size is not None:
            height, width = self._size[::-1] if turn.swapped else self._size
        image = self._reformatter.reformat(frame, width, height, "rgb24").to_ndarray()
        if turn.swapped:
            image = image.transpose(1, 0, 2)
        if turn.upside_down:
            image = image[::-1]
        if turn.mirrored:
            image = image[:, ::-1]
        # A stream may change its size midway; the first frame decides.
        self._size = image.shape[:2]
        return torch.from_numpy(np.ascontiguousarray(image))


def write_video(path: str, images: Iterable[Tensor], fps: float) -> None:
    """Write frames as a video; the file appears whole or not at all.

    Args:
        path: the suffix decides: ``.gif``, or else H.264 in the container of that suffix
            (``.mp4``, ``.mov``, ``.mkv``), which pads odd sizes by a row or column.
        images: RGB, (height, width, 3), uint8, all of one size.
        fps: frames per second.

    Raises:
        VideoError: there are no frames, or the suffix is no video's.
        MovinetPortError: the file cannot be written.
    """
    av = import_av()
    kind = check_writable(path)
    remaining = iter(images)
    first = next(remaining, None)
    if first is None:
        raise VideoError(f"cannot write {path}: there are no frames")
    height, width = first.shape[:2]
    with whole_file(path) as temporary:
        try:
            with av.open(f"file:{temporary}", "w", format=kind) as container:
                rate = Fraction(fps).limit_denominator(1001)
                if kind == "gif":
                    stream = container.add_stream("gif", rate=rate)
                    stream.pix_fmt = "pal8"
                else:
                    # A build of FFmpeg without x264 has MPEG-4 of its own.
                    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
                    stream = container.add_stream(codec, rate=rate)
                    stream.pix_fmt = "yuv420p"
                    height, width = height + height % 2, width + width % 2
                stream.height, stream.width = height, width
                frames = (
                    _to_frame(av, image, height, width)
                    for image in itertools.chain([first], remaining)
                )
                for frame in _with_palette(av, frames, rate) if kind == "gif" else frames:
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
        except av.FFmpegError as error:
            raise VideoError(f"cannot write {path}: {_reason(error)}") from error


def check_writable(path: str) -> str:
    """Return FFmpeg's name of the container that a path's suffix stands for.

    Raises:
        VideoError: it stands for none.
    """
    suffix = Path(path).suffix.lower()
    kind = _CONTAINERS.get(suffix)
    if kind is None:
        raise VideoError(
            f"cannot write {path}: expected a name that ends in {', '.join(_CONTAINERS)}"
        )
    return kind


def _to_frame(av: Any, image: Tensor, height: int, width: int) -> Any:
    array = image.numpy()
    rows, columns = height - array.shape[0], width - array.shape[1]
    if rows or columns:
        array = np.pad(array, ((0, rows), (0, columns), (0, 0)), mode="edge")
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")


def _with_palette(av: Any, frames: Iterator[Any], rate: Fraction) -> Iterator[Any]:
    """Give each frame the 256 colours that suit it best: the fixed palette shows bands."""
    graph = None
    for number, frame in enumerate(frames):
        frame.pts, frame.time_base = number, 1 / rate
        if graph is None:
            graph = av.filter.Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=1 / rate
            )
            split = graph.add("split")
            palette = graph.add("palettegen", "stats_mode=single")
            use = graph.add("paletteuse", "new=1")
            source.link_to(split)
            split.link_to(palette, 0)
            split.link_to(use, 1)
            palette.link_to(use, 0, 1)
            use.link_to(graph.add("buffersink"))
            graph.configure()
        graph.push(frame)
        yield graph.pull()
