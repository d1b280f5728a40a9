"""Frames to clips: bit for bit what the authors' evaluation makes of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from movinet_port.transforms import (
    ClipTransform,
    TransformError,
    clip_starts,
    crop_center,
    repeated,
    resize_smallest,
)

# Written by the reference, see `test_the_expected_file_is_the_references`.
EXPECTED = Path(__file__).parent / "data" / "preprocess.expected.npz"

# height, width, size, resize: enlarged, reduced, only cut, padded, not square; a0's and a5's.
CASES: list[tuple[int, int, int | tuple[int, int], int]] = [
    (47, 63, 40, 44),
    (63, 47, 40, 44),
    (47, 63, 60, 72),
    (48, 48, 40, 48),
    (47, 63, 64, 40),
    (45, 90, (32, 50), 37),
    (45, 90, (50, 32), 37),
    (9, 5, 12, 13),
]
LARGE_CASES: list[tuple[int, int, int | tuple[int, int], int]] = [
    (240, 320, 172, 192),
    (360, 640, 172, 192),
    (720, 1280, 224, 256),
    (340, 256, 256, 288),
    (191, 400, 290, 320),
    (1080, 1920, 320, 368),
    (101, 100, 320, 368),
]


def pictures(height: int, width: int) -> NDArray[np.uint8]:
    generator = np.random.default_rng(height * 10_000 + width)
    return generator.integers(0, 256, (2, height, width, 3), np.uint8)


def name_of(case: tuple[Any, ...]) -> str:
    return "-".join(str(part).replace(" ", "") for part in case)


def reference(frames: NDArray[np.uint8], size: int | tuple[int, int], resize: int) -> Any:
    """Return (frames, height, width, 3), float32, of the authors' evaluation."""
    import tensorflow as tf
    from official.vision.dataloaders.video_input import process_image

    crop = size if isinstance(size, tuple) else (size, size)
    return process_image(
        tf.constant(frames),
        is_training=False,
        num_frames=len(frames),
        stride=1,
        min_resize=resize,
        crop_size=crop,
    ).numpy()


def ours(frames: NDArray[np.uint8], size: int | tuple[int, int], resize: int) -> Any:
    clip = ClipTransform(size, resize)(torch.from_numpy(frames))
    assert clip.shape[:2] == (1, 3)
    assert clip.dtype == torch.float32
    return clip[0].permute(1, 2, 3, 0).numpy()


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_clips_are_bit_for_bit_those_of_the_reference(case: Any) -> None:
    with np.load(EXPECTED) as kept:
        frames, expected = kept[f"{name_of(case)}.frames"], kept[f"{name_of(case)}.bytes"]
    clip = ours(frames, *case[2:])
    assert np.array_equal(clip, (expected / 255).astype(np.float32))


@pytest.mark.reference
@pytest.mark.parametrize("case", CASES + LARGE_CASES, ids=name_of)
def test_clips_are_bit_for_bit_those_of_the_authors_code(case: Any) -> None:
    frames = pictures(*case[:2])
    assert np.array_equal(ours(frames, *case[2:]), reference(frames, *case[2:]))


@pytest.mark.reference
def test_the_expected_file_is_the_references() -> None:
    """With ``WRITE_EXPECTED=1`` in the environment the file is written first."""
    made = {}
    for case in CASES:
        frames = pictures(*case[:2])
        made[f"{name_of(case)}.frames"] = frames
        exact = reference(frames, *case[2:]) * 255
        made[f"{name_of(case)}.bytes"] = exact.round().astype(np.uint8)
    if os.environ.get("WRITE_EXPECTED"):
        np.savez_compressed(EXPECTED, **made)
    with np.load(EXPECTED) as kept:
        assert set(kept) == set(made)
        assert all(np.array_equal(kept[name], made[name]) for name in made)


def test_a_batch_is_its_videos_one_by_one() -> None:
    batch = torch.stack(
        [torch.from_numpy(pictures(20, 30)), torch.from_numpy(pictures(20, 30)) // 2]
    )
    transform = ClipTransform(16, 18)
    whole = transform(batch)
    assert tuple(whole.shape) == (2, 3, 2, 16, 16)
    assert torch.equal(whole, torch.cat([transform(video) for video in batch]))


def test_without_a_resize_as_little_as_can_be_is_cut() -> None:
    frames = torch.from_numpy(pictures(20, 20))
    assert torch.equal(ClipTransform(20)(frames)[0].permute(1, 2, 3, 0) * 255, frames.float())


def test_frames_of_the_right_size_are_not_touched() -> None:
    frames = torch.from_numpy(pictures(20, 31))
    assert resize_smallest(frames, 20) is frames


@pytest.mark.parametrize(("size", "left"), [(4, 0), (3, 0), (2, 1), (1, 1), (6, -1), (7, -1)])
def test_the_cut_is_central_and_what_is_missing_is_black(size: int, left: int) -> None:
    frames = torch.arange(1, 5, dtype=torch.uint8).reshape(1, 1, 4, 1).expand(1, 4, 4, 3)
    row = crop_center(frames, (size, size))[0, size // 2, :, 0].tolist()
    expected = [column + left + 1 for column in range(size)]
    assert row == [value if 1 <= value <= 4 else 0 for value in expected]


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(2, 3, 20, 20, dtype=torch.uint8),
        torch.zeros(2, 20, 20, 3),
        torch.zeros(20, 20, 3, dtype=torch.uint8),
        torch.zeros(0, 20, 20, 3, dtype=torch.uint8),
    ],
    ids=["channels-first", "float", "one-image", "none"],
)
def test_frames_of_another_form_are_refused(frames: torch.Tensor) -> None:
    with pytest.raises(TransformError, match=r"frames of shape \("):
        ClipTransform(16)(frames)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, (16, 0)])
def test_sizes_are_whole_numbers_above_zero(size: Any) -> None:
    with pytest.raises(TransformError, match="expected whole numbers above 0"):
        ClipTransform(size)


def test_one_clip_is_from_the_middle_and_more_are_spread_evenly() -> None:
    assert clip_starts(30, 10) == [10]
    assert clip_starts(30, 10, 3) == [0, 10, 20]
    assert clip_starts(30, 10, 2) == [0, 20]
    assert clip_starts(7, 10) == [0]
    assert clip_starts(7, 10, 3) == [0, 0, 0]


@pytest.mark.reference
@pytest.mark.parametrize("clips", [1, 2, 3, 10])
@pytest.mark.parametrize("frames", [50, 51, 251, 500])
def test_clips_begin_where_the_authors_begin(frames: int, clips: int) -> None:
    import tensorflow as tf
    from official.vision.ops import preprocess_ops_3d

    sequence = tf.range(frames)
    if clips == 1:
        expected = [preprocess_ops_3d.sample_sequence(sequence, 50, False, 1).numpy()[0]]
    else:
        windows = preprocess_ops_3d.sample_linspace_sequence(sequence, clips, 50, 1).numpy()
        expected = windows[::50].tolist()
    # At one frame per second; the frame shown at a time is the one that began by then.
    assert [int(start) for start in clip_starts(frames, 50, clips)] == expected


@pytest.mark.parametrize("frames", [1, 3, 4, 7, 8])
def test_a_short_clip_starts_over(frames: int) -> None:
    clip = torch.arange(4.0).reshape(1, 1, 4, 1, 1).expand(1, 3, 4, 2, 2)
    assert repeated(clip, frames)[0, 0, :, 0, 0].tolist() == [n % 4 for n in range(frames)]


@pytest.mark.reference
@pytest.mark.parametrize("frames", [1, 3, 7, 20])
def test_a_short_video_starts_over_as_the_authors_do(frames: int) -> None:
    import tensorflow as tf
    from official.vision.ops import preprocess_ops_3d

    expected = preprocess_ops_3d.sample_sequence(tf.range(frames), 20, False, 1).numpy().tolist()
    clip = torch.arange(float(frames)).reshape(1, 1, frames, 1, 1)
    assert repeated(clip, 20).flatten().tolist() == expected
