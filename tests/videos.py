"""Makes videos with PyAV directly: nothing of `movinet_port.video` is used."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]  # (frames, height, width, 3)


def noise(frames: int, height: int = 48, width: int = 64, seed: int = 0) -> Images:
    """Return coarse random pictures, which survive compression, a different one each."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (frames, -(-height // 8), -(-width // 8), 3), np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]


def grey(levels: Sequence[int], height: int = 48, width: int = 64) -> Images:
    """Return one even picture for each level, so that its brightness tells which frame it is."""
    return np.stack([np.full((height, width, 3), level, np.uint8) for level in levels])


def corners(height: int = 48, width: int = 64) -> Images:
    """Return ten times a picture whose corners are red, green, blue and white.

    In this order: top left, top right, bottom left, bottom right.
    """
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (255, 0, 0)
    image[: height // 2, width // 2 :] = (0, 255, 0)
    image[height // 2 :, : width // 2] = (0, 0, 255)
    image[height // 2 :, width // 2 :] = 255
    return np.stack([image] * 10)


def write(
    path: Path,
    images: Images,
    fps: int = 10,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: Sequence[float] | None = None,
    matrix: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    audio: bool = False,
) -> Path:
    """Encode a video.

    Args:
        times: seconds at which each frame is shown; by default one every 1 / fps.
        matrix: a, b, c, d of the display matrix: column p and row q go to a p + c q and b p + d q.
        options, muxer: of the encoder and of the container.
        audio: add a second of silence.
    """
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], pixels
        stream.options = options or {}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound: Any = container.add_stream("pcm_s16le", rate=8000) if audio else None
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _encode_silence(container, sound)
    if matrix is not None:
        _turn(path, matrix)
    return path


def _turn(path: Path, matrix: Sequence[int]) -> None:
    """Put a display matrix into an MP4's track header: no PyAV before 18 writes one."""
    content = path.read_bytes()
    place = content.index(b"tkhd") + 44

    def stored(a: int, b: int, c: int, d: int) -> bytes:
        return struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)

    upright = stored(1, 0, 0, 1)
    assert content[place : place + len(upright)] == upright
    a, b, c, d = matrix
    path.write_bytes(content[:place] + stored(a, b, c, d) + content[place + len(upright) :])


def write_sound(path: Path) -> Path:
    """Encode a second of silence and no video."""
    with av.open(str(path), "w") as container:
        _encode_silence(container, container.add_stream("pcm_s16le", rate=8000))
    return path


def _encode_silence(container: Any, stream: Any) -> None:
    silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
    silence.sample_rate = 8000
    container.mux(stream.encode(silence))
    container.mux(stream.encode(None))
