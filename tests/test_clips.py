"""A clip in pieces gives the logits of the whole clip, in memory for a piece."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from movinet_port import MoViNet, MovinetPortError, StateError, StemSpec, optimize

pytestmark = pytest.mark.usefixtures("one_thread")

BASES = {
    "published": {},
    "split": {"conv_type": "2plus1d"},
    "pools_each_frame": {"se_type": "2d"},
    "pools_both": {"se_type": "2plus3d", "conv_type": "3d_2plus1d"},
    "pools_nothing": {"se_type": "none"},
    "stem_over_time": {"stem": StemSpec(8, (4, 3, 3), (1, 2, 2))},
    "padded": {"causal_padding": "legacy", "pool_counts_padding": True},
    "hard": {"activation": "hard_swish", "gate": "hard_sigmoid_keras"},
}
HOW = {"kept": {}, "recomputed": {"recompute": True}, "spilt": {"spill": True}}


@pytest.fixture
def how(request: Any, tmp_path: Path) -> dict[str, Any]:
    """What a base network keeps between two passes over a layer."""
    chosen = dict(HOW[request.param])
    return {**chosen, "spill": tmp_path} if chosen.get("spill") else chosen


@pytest.fixture(scope="module")
def network(mini_spec: Any, randomised: Any) -> Any:
    """Factory: a small network in float64 with random weights, and any changes."""

    def build(mode: str = "base", *, optimised: bool = False, **changes: Any) -> Any:
        model = randomised(MoViNet(mini_spec(mode, **changes))).double()
        return optimize(model) if optimised else model

    return build


BOTH = pytest.mark.parametrize("optimised", [False, True], ids=["readable", "optimised"])


@BOTH
@pytest.mark.parametrize("how", HOW, indirect=True)
@pytest.mark.parametrize("changes", BASES.values(), ids=BASES)
def test_base_clip_in_pieces_gives_the_logits_of_the_whole(
    network: Any, video: Any, changes: dict[str, Any], how: dict[str, Any], optimised: bool
) -> None:
    model = network(optimised=optimised, **changes)
    with torch.no_grad():
        whole = model(video())
        half = model(video()[:, :, :3])
    # Shorter than a temporal kernel, not a divisor, the clip itself, longer than it.
    for chunk in (1, 2, 3, 7, 50):
        found = model.predict_clip(video(), chunk, **how)
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-10)
    # The claim is empty if the frames do not matter.
    assert (half - whole).abs().max() > 1e-3


@BOTH
@pytest.mark.parametrize("how", HOW, indirect=True)
@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 3])
def test_clip_shorter_than_the_temporal_kernel(
    network: Any, video: Any, batch: int, frames: int, how: dict[str, Any], optimised: bool
) -> None:
    model = network(optimised=optimised)
    clip = video(batch=batch, frames=frames)
    with torch.no_grad():
        expected = model(clip)
    for chunk in (1, 3):
        torch.testing.assert_close(model.predict_clip(clip, chunk, **how), expected)


@BOTH
@pytest.mark.parametrize("conv_type", ["3d", "2plus1d"])
def test_stream_video_in_pieces_gives_the_logits_of_the_whole(
    network: Any, video: Any, conv_type: str, optimised: bool
) -> None:
    model = network("stream", conv_type=conv_type, positional_encoding=True, optimised=optimised)
    with torch.no_grad():
        whole, _ = model.step(video(), model.init_state(2, 19, 26))
    for chunk in (1, 2, 7, 50):
        found = model.predict_clip(video(), chunk)
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-10)


def test_a_stream_in_flight_is_left_alone(network: Any, video: Any) -> None:
    model = network("stream")
    with torch.no_grad():
        model(video(frames=3))
        expected = model(video(frames=2, seed=1))
        model.clean_activation_buffers()
        model(video(frames=3))
        model.predict_clip(video(seed=2), 2)
        assert torch.equal(model(video(frames=2, seed=1)), expected)


@pytest.mark.parametrize("mode", ["base", "stream"])
def test_frames_may_come_one_by_one_or_in_any_pieces(network: Any, video: Any, mode: str) -> None:
    model = network(mode)
    expected = model.predict_clip(video(), 3)
    for sizes in ([1] * 7, [2, 5], [6, 1]):
        pieces: Iterator[Tensor] = iter(video().split(sizes, dim=2))
        assert torch.equal(model.predict_clip(pieces, 3), expected)


def test_pieces_are_read_as_they_are_needed(network: Any, video: Any) -> None:
    model = network("stream")
    read, computed = [], []
    model.stem.register_forward_hook(lambda *_: computed.append(len(read)))

    def pieces() -> Iterator[Tensor]:
        for piece in video().split(1, dim=2):
            read.append(piece.shape)
            yield piece

    model.predict_clip(pieces(), 2)
    assert computed == [2, 4, 6, 7]


def test_pieces_take_the_type_of_the_network(network: Any, video: Any) -> None:
    model = network()
    clip = video(dtype=torch.float32)
    assert torch.equal(model.predict_clip(clip, 2), model.predict_clip(clip.double(), 2))


def test_half_precision_is_kept_on_disk_too(network: Any, video: Any, tmp_path: Path) -> None:
    model = network().bfloat16()
    expected = model.predict_clip(video(), 2)
    assert torch.equal(model.predict_clip(video(), 2, spill=tmp_path), expected)


def test_nothing_is_left_in_the_folder(network: Any, video: Any, tmp_path: Path) -> None:
    network().predict_clip(video(), 2, spill=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        ([], "no frames"),
        (torch.zeros(1, 3, 0, 8, 8), "no frames"),
        (torch.zeros(1, 4, 8, 8, 3), "expected (batch, 3, frames, height, width)"),
        (torch.zeros(1, 3, 4, 8, 8, dtype=torch.uint8), "torch.uint8"),
        ([torch.zeros(1, 3, 1, 8, 8), torch.zeros(1, 3, 1, 8, 9)], "(1, 8, 8)"),
    ],
    ids=["no_piece", "no_frame", "tensorflow_layout", "bytes", "another_size"],
)
@pytest.mark.parametrize("mode", ["base", "stream"])
def test_what_is_no_clip_is_one_clear_line(
    network: Any, mode: str, clip: Any, expected: str
) -> None:
    with pytest.raises(StateError) as error:
        network(mode).predict_clip(clip)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("chunk", [0, -1, 2.5, True])
def test_chunk_is_a_positive_number_of_frames(network: Any, video: Any, chunk: Any) -> None:
    with pytest.raises(MovinetPortError, match=r"predict_clip: chunk is .*expected a number"):
        network().predict_clip(video(), chunk)


def test_training_mode_is_refused(network: Any, video: Any) -> None:
    with pytest.raises(MovinetPortError, match=r"call model\.eval\(\)"):
        network().train().predict_clip(video())


def test_missing_folder_is_one_clear_line(network: Any, video: Any, tmp_path: Path) -> None:
    with pytest.raises(MovinetPortError, match="name an existing folder with spill="):
        network().predict_clip(video(), spill=tmp_path / "missing")


# Memory -----------------------------------------------------------------------------------------

PEAK = """
import itertools, resource, sys, torch
from movinet_port import BlockSpec, HeadSpec, ModelSpec, MoViNet, StemSpec

torch.set_num_threads(1)
mode, frames, spill = sys.argv[1], int(sys.argv[2]), sys.argv[3] or None
block = BlockSpec(8, (64, 64, 64), ((3, 3, 3),) * 3, ((1, 2, 2), (1, 1, 1), (1, 1, 1)))
spec = ModelSpec("custom", StemSpec(8), (block,), HeadSpec(16, 16), 3, causal=mode == "stream")
model = MoViNet(spec).eval()
piece = torch.rand(1, 3, 1, 128, 128)
how = {"spill": spill} if spill else {}
model.predict_clip(itertools.repeat(piece, 8), 4, **how)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model.predict_clip(itertools.repeat(piece, frames), 4, **how)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
MIB_PER_FRAME = 64 * 32 * 32 * 4 / 2**20


@pytest.mark.parametrize(("mode", "spills"), [("stream", False), ("base", True)])
def test_memory_does_not_grow_with_the_video(mode: str, spills: bool, tmp_path: Path) -> None:
    frames = 150
    done = subprocess.run(
        [sys.executable, "-c", PEAK, mode, str(frames), str(tmp_path) if spills else ""],
        check=True,
        capture_output=True,
        text=True,
        env={"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    # What a single depthwise output of all the frames would take.
    assert float(done.stdout) < 0.3 * frames * MIB_PER_FRAME


@pytest.mark.parametrize("recompute", [False, True])
def test_widest_activation_is_never_there_as_a_whole(
    network: Any, video: Any, recompute: bool
) -> None:
    model = network()
    longest: dict[str, int] = {}

    def watch(name: str, module: torch.nn.Module) -> None:
        def note(*call: Any) -> None:
            longest[name] = max(longest.get(name, 0), call[2].shape[2])

        module.register_forward_hook(note)

    for name in model.layer_names:
        watch(name, model.get_submodule(f"{name}.expansion"))
    model.predict_clip(video(frames=20), 4, recompute=recompute)
    assert longest == dict.fromkeys(model.layer_names, 4)
