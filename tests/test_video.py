"""Reading videos: what is shown when, upright, in its colours; and one line for what cannot be."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import videos
from hub_server import Answer, HubServer

from movinet_port import MovinetPortError, video
from movinet_port.video import VideoError, iterate_frames, probe, read_video, write_video

LEVELS = list(range(20, 220, 10))  # of 20 grey frames


def shown(path: Path | str, fps: float | None = None, **options: Any) -> list[tuple[float, int]]:
    """Return (seconds, number of the frame) of grey frames."""
    frames = iterate_frames(str(path), fps, **options)
    return [(round(f.seconds, 3), round((int(f.image[4, 4, 0]) - 20) / 10)) for f in frames]


def test_frames_are_bytes_in_the_order_shown(tmp_path: Path) -> None:
    path = videos.write(tmp_path / "a.mp4", videos.grey(LEVELS))
    frames = read_video(str(path))
    assert (frames.dtype, tuple(frames.shape)) == (torch.uint8, (20, 48, 64, 3))
    assert shown(path) == [(n / 10, n) for n in range(20)]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "gif"])
@pytest.mark.parametrize(
    ("fps", "every"),
    [(10, 1), (5, 2), (2.5, 4), (20, 0.5)],
    ids=["same", "half", "quarter", "twice"],
)
def test_a_rate_takes_the_frame_shown_at_each_time(
    tmp_path: Path, suffix: str, fps: float, every: float
) -> None:
    codec = {"gif": "gif", "ts": "mpeg2video"}.get(suffix, "libx264")
    # MPEG-2 knows 25 frames per second and not 10.
    rate = 25 if suffix == "ts" else 10
    pixels = "rgb8" if suffix == "gif" else "yuv420p"
    path = tmp_path / f"a.{suffix}"
    videos.write(path, videos.grey(LEVELS), rate, codec=codec, pixels=pixels)
    found = [time for time, _ in shown(path, fps * rate / 10)]
    assert found == [round(n * every / rate, 3) for n in range(round(20 / every))]
    if suffix in ("mp4", "mkv"):
        assert [n for _, n in shown(path, fps)] == [
            int(n * every) for n in range(round(20 / every))
        ]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_variable_rate_is_sampled_by_its_timestamps(tmp_path: Path, suffix: str) -> None:
    times = [0, 0.1, 0.2, 0.7, 0.75, 0.8, 1.5, 1.6]
    path = videos.write(tmp_path / f"a.{suffix}", videos.grey(LEVELS[:8]), times=times)
    assert shown(path) == list(zip(times, range(8), strict=True))
    expected = [0, 1, 2, 2, 2, 2, 2, 3, 5, 5, 5, 5, 5, 5, 5, 6, 7]
    # Not all releases of FFmpeg give the last frame the same duration.
    assert [number for _, number in shown(path, 10)][:17] == expected


def test_rounded_timestamps_of_a_coarse_container_do_not_shift_frames(tmp_path: Path) -> None:
    # 24 frames per second in milliseconds: the 10th frame is stamped 417 ms, and not 416.67.
    times = [n / 24 for n in range(20)]
    path = videos.write(tmp_path / "a.mkv", videos.grey(LEVELS), times=times)
    assert [number for _, number in shown(path, 12)][:10] == list(range(0, 20, 2))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_time_counts_from_the_first_frame(tmp_path: Path, suffix: str) -> None:
    times = [5 + n / 10 for n in range(20)]
    path = videos.write(tmp_path / f"a.{suffix}", videos.grey(LEVELS), times=times)
    assert shown(path, 5)[:3] == [(0.0, 0), (0.2, 2), (0.4, 4)]
    assert shown(path, 5, start=1.0)[:2] == [(1.0, 10), (1.2, 12)]
    assert probe(str(path)).seconds == pytest.approx(2, abs=0.11)


@pytest.mark.parametrize("key_frames", [1, 7, 250])
@pytest.mark.parametrize("start", [0.1, 0.95, 1.9])
def test_a_part_of_a_video_is_what_reading_all_of_it_gives(
    tmp_path: Path, key_frames: int, start: float
) -> None:
    path = videos.write(
        tmp_path / "a.mp4", videos.grey(LEVELS), options={"g": str(key_frames), "bf": "2"}
    )
    every = [(time, number) for time, number in shown(path) if time >= start]
    assert shown(path, start=start) == every
    # At 10 per second from 0.95 s, the frame of 0.9 s is shown.
    assert shown(path, 10, start=start)[0] == (start, int(start * 10))
    frames = read_video(str(path), 10, start=start, frames=2)
    assert len(frames) == min(2, 20 - int(start * 10))


def test_a_start_beyond_the_end_is_one_line(tmp_path: Path) -> None:
    path = videos.write(tmp_path / "a.mp4", videos.grey(LEVELS))
    with pytest.raises(VideoError, match=r"a\.mp4: it ends before 9 s"):
        read_video(str(path), 5, start=9)


# Corners that the writer put at top left, top right, bottom left and bottom right.
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners(frames: torch.Tensor) -> list[tuple[int, ...]]:
    """Return the corners of the first frame, each value as 0 or 255."""
    image = (frames[0].int() > 127).int() * 255
    return [tuple(image[y, x].tolist()) for y, x in ((5, 5), (5, -5), (-5, 5), (-5, -5))]


# a, b, c, d: column p and row q are shown at column a p + c q and row b p + d q.
@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), [RED, GREEN, BLUE, WHITE]),
        ((0, 1, -1, 0), [BLUE, RED, WHITE, GREEN]),
        ((-1, 0, 0, -1), [WHITE, BLUE, GREEN, RED]),
        ((0, -1, 1, 0), [GREEN, WHITE, RED, BLUE]),
        ((-1, 0, 0, 1), [GREEN, RED, WHITE, BLUE]),
        ((1, 0, 0, -1), [BLUE, WHITE, RED, GREEN]),
        ((0, 1, 1, 0), [RED, BLUE, GREEN, WHITE]),
        ((0, -1, -1, 0), [WHITE, GREEN, BLUE, RED]),
    ],
    ids=["upright", "right", "half", "left", "mirrored", "upside-down", "transposed", "transverse"],
)
def test_the_rotation_of_phones_is_applied(
    tmp_path: Path, matrix: tuple[int, ...], expected: list[tuple[int, ...]]
) -> None:
    path = videos.write(tmp_path / "a.mp4", videos.corners(48, 64), matrix=matrix)
    frames = read_video(str(path))
    size = (48, 64) if matrix[0] else (64, 48)
    assert tuple(frames.shape[1:3]) == size
    assert corners(frames) == expected
    info = probe(str(path))
    assert (info.height, info.width) == size


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels", "tolerance"),
    [
        ("mp4", "libx264", "yuv420p", 3),
        ("mp4", "libx264", "yuv420p10le", 3),
        ("mkv", "libx264", "yuv444p", 3),
        ("avi", "mjpeg", "yuvj420p", 3),
        ("mov", "prores_ks", "yuv422p10le", 3),
        ("webm", "libvpx", "yuv420p", 3),
        ("mkv", "rawvideo", "nv12", 4),
        ("mkv", "rawvideo", "yuyv422", 4),
        ("mkv", "rawvideo", "rgba", 0),
        ("mkv", "ffv1", "bgra", 0),
        ("mkv", "ffv1", "rgb48le", 0),
        ("gif", "gif", "rgb8", 4),
    ],
)
def test_every_pixel_format_becomes_the_same_rgb(
    tmp_path: Path, suffix: str, codec: str, pixels: str, tolerance: int
) -> None:
    path = tmp_path / f"a.{suffix}"
    images = videos.corners()
    videos.write(path, images, 25, codec=codec, pixels=pixels)
    frames = read_video(str(path))
    # Away from the edges, where subsampled colours mix.
    for y, x in itertools.product((5, 40), (5, 55)):
        found = frames[:, y, x].int()
        assert (found - torch.from_numpy(images)[:, y, x].int()).abs().max() <= tolerance


@pytest.mark.parametrize("pixels", ["gray", "gray16le"])
def test_a_grey_video_has_three_equal_channels(tmp_path: Path, pixels: str) -> None:
    path = videos.write(tmp_path / "a.mkv", videos.grey(LEVELS), codec="ffv1", pixels=pixels)
    frames = read_video(str(path)).int()
    assert torch.equal(frames[..., 0], frames[..., 1])
    assert torch.equal(frames[..., 0], frames[..., 2])
    assert (frames[:, 0, 0, 0] - torch.tensor(LEVELS)).abs().max() <= 1


@pytest.mark.parametrize(("height", "width"), [(47, 63), (33, 100)])
def test_odd_sizes_keep_their_rows_and_columns(tmp_path: Path, height: int, width: int) -> None:
    images = videos.noise(3, height, width)
    path = videos.write(tmp_path / "a.mkv", images, codec="ffv1", pixels="bgr0")
    assert np.array_equal(read_video(str(path)).numpy(), images)


def test_a_size_that_changes_midway_is_scaled_to_the_first(tmp_path: Path) -> None:
    first = videos.write(tmp_path / "1.ts", videos.grey(LEVELS[:5], 48, 64), 25, codec="mpeg2video")
    second = videos.write(
        tmp_path / "2.ts", videos.grey(LEVELS[5:10], 96, 128), 25, codec="mpeg2video"
    )
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    frames = read_video(str(joined))
    assert tuple(frames.shape[1:]) == (48, 64, 3)
    assert abs(int(frames[-1, 4, 4, 0]) - LEVELS[9]) <= 3


def test_sound_beside_the_video_is_passed_over(tmp_path: Path) -> None:
    path = videos.write(tmp_path / "a.mkv", videos.grey(LEVELS), audio=True)
    assert len(read_video(str(path))) == 20


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos.write(tmp_path / "a.mp4", videos.grey(LEVELS)).rename(tmp_path / "concat:a.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(read_video("concat:a.mp4")) == 20


# Bad input: one line each.


def _cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def _folder(tmp_path: Path) -> Path:
    return tmp_path


def _missing(tmp_path: Path) -> Path:
    return tmp_path / "a.mp4"


def _empty(tmp_path: Path) -> Path:
    (tmp_path / "a.mp4").touch()
    return tmp_path / "a.mp4"


def _text(tmp_path: Path) -> Path:
    (tmp_path / "a.mp4").write_text("no video\n" * 100)
    return tmp_path / "a.mp4"


def _sound(tmp_path: Path) -> Path:
    return videos.write_sound(tmp_path / "a.wav")


def _without_frames(tmp_path: Path) -> Path:
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        container.start_encoding()
    return tmp_path / "a.avi"


def _cut_without_index(tmp_path: Path) -> Path:
    return _cut(videos.write(tmp_path / "a.mp4", videos.noise(30)), 0.6)


def _cut_with_index(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    return _cut(videos.write(path, videos.noise(30), muxer={"movflags": "faststart"}), 0.5)


def _cut_matroska(tmp_path: Path) -> Path:
    return _cut(videos.write(tmp_path / "a.mkv", videos.noise(30)), 0.5)


def _flipped_bits(tmp_path: Path) -> Path:
    path = videos.write(tmp_path / "a.mp4", videos.noise(30))
    content = bytearray(path.read_bytes())
    generator = np.random.default_rng(1)
    for place in generator.integers(1000, len(content) * 2 // 3, 300):
        content[place] ^= 0xFF
    path.write_bytes(content)
    return path


def _leap_in_time(tmp_path: Path) -> Path:
    return videos.write(tmp_path / "a.mkv", videos.grey(LEVELS[:3]), times=[0, 0.1, 90000.0])


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "folder": (_folder, "it is a folder, expected a video file"),
    "missing": (_missing, "no such file"),
    "empty": (_empty, "the file is empty"),
    "text": (_text, "Invalid data found when processing input; expected a video file"),
    "sound": (_sound, "no video in it, only audio"),
    "without-frames": (_without_frames, "no frames|Invalid data"),
    "cut-without-index": (_cut_without_index, "Invalid data .* is it one, and whole"),
    # Older releases of FFmpeg stop at the frame that is not whole.
    "cut-with-index": (_cut_with_index, r"cut short: \d\.\d s of 3\.0 s are there|damaged after"),
    "cut-matroska": (_cut_matroska, r"cut short: \d\.\d s of 3\.0 s are there"),
    "flipped-bits": (_flipped_bits, r"damaged (at its beginning|after \d\.\d s)"),
    "leap-in-time": (_leap_in_time, r"damaged after 0\.1 s: the time leaps by 90000 s"),
}


@pytest.mark.parametrize("fps", [None, 5])
@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_whole_video_is_one_line_that_names_it(
    tmp_path: Path, kind: str, fps: float | None
) -> None:
    make, message = BAD[kind]
    path = make(tmp_path)
    with pytest.raises(VideoError, match=f"^cannot read {path}: .*({message})") as raised:
        for _ in iterate_frames(str(path), fps):
            pass
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["a\0b.mp4", "x" * 300 + ".mp4"])
def test_a_name_that_no_file_system_has_is_a_user_error(name: str) -> None:
    with pytest.raises(VideoError, match=r"^cannot read "):
        read_video(name)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_a_user_error(fps: float) -> None:
    with pytest.raises(VideoError, match="expected a number above 0"):
        read_video("a.mp4", fps)


def test_missing_pyav_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoError, match=r"needs PyAV: pip install 'movinet-port\[video\]'"):
        read_video("a.mp4")


# Sources that are no files.


def test_a_url_is_read_like_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    path = videos.write(tmp_path / "a.mp4", videos.grey(LEVELS))
    server = HubServer()
    url = server.serve("/a.mp4", Answer(path.read_bytes(), "video/mp4"))
    with server.running():
        assert shown(url, 5) == shown(path, 5)
        with pytest.raises(VideoError, match=r"^cannot read http://.*/b\.mp4: .*404"):
            read_video(server.url + "/b.mp4")


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(VideoError) as raised:
        read_video("rtsp://user:secret@127.0.0.1:9/camera")
    assert str(raised.value).startswith("cannot read rtsp://127.0.0.1:9/camera: ")
    assert "secret" not in str(raised.value)


def test_a_camera_is_read_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    # FFmpeg's test picture in place of a camera: no machine of ours has one.
    monkeypatch.setitem(
        video._CAMERAS, sys.platform, ("lavfi", "testsrc=size=64x4{}:rate=10:duration=1")
    )
    frames = list(iterate_frames("webcam:8", 5))
    assert [round(frame.seconds, 3) for frame in frames] == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert frames[0].image.shape == (48, 64, 3)


def test_a_camera_that_is_not_there_is_one_line() -> None:
    with pytest.raises(VideoError, match=r"^cannot read webcam:97: .*is a camera there"):
        read_video("webcam:97")


# Writing.


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "gif"])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 63)])
def test_what_is_written_is_read_again(
    tmp_path: Path, suffix: str, height: int, width: int
) -> None:
    images = torch.from_numpy(videos.noise(12, height, width))
    path = tmp_path / f"a.{suffix}"
    write_video(str(path), images, 10)
    frames = read_video(str(path))[:, :height, :width]
    assert frames.shape == images.shape
    assert (frames.float() - images.float()).abs().mean() < 12
    assert probe(str(path)).frames_per_second == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("a.mp4", 0, "there are no frames"),
        ("a.avi", 1, r"expected a name that ends in \.mp4"),
        ("a", 1, r"expected a name that ends in \.mp4"),
        ("none/a.mp4", 1, "No such file or directory"),
    ],
)
def test_a_video_that_cannot_be_written_is_one_line_and_leaves_nothing(
    tmp_path: Path, name: str, count: int, message: str
) -> None:
    with pytest.raises(MovinetPortError, match=f"^cannot write .*{message}"):
        write_video(str(tmp_path / name), torch.from_numpy(videos.noise(count)), 10)
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_breaks_off_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def images() -> Any:
        yield from torch.from_numpy(videos.noise(2))
        raise VideoError("the source broke off")

    with pytest.raises(VideoError, match="broke off"):
        write_video(str(path), images(), 10)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.mp4", b"old")]
