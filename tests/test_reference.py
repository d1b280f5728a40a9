"""The network against the authors' live code, every variable random.

Weights travel as a user's do: the authors' model -> TF2 checkpoint -> `converters`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import authors
import numpy as np
import pytest
import torch

from converters import convert
from movinet_port import MoViNet

pytestmark = [pytest.mark.reference, pytest.mark.usefixtures("one_thread")]

DATA = Path(__file__).parent / "data"

# Largest difference, as a share of the reference's largest magnitude.
TOLERANCE = 2e-5

NUM_CLASSES = 10
BATCH, FRAMES = 2, 6
WHOLE_CLIP = (FRAMES,)

FAMILY = ["a0", "a1", "a2", "a3", "a4", "a5", "t0"]
POSITIONAL_ENCODING = {"a3", "a4", "a5"}

# Small networks: what the authors' model is built with beyond its mode's settings, and what the
# converter is told, because a checkpoint does not say it.
Variation = tuple[dict[str, Any], dict[str, Any]]

SMALL_BASES: dict[str, Variation] = {
    "2plus1d": ({"conv_type": "2plus1d"}, {"causal": False}),
    "3d_2plus1d": ({"conv_type": "3d_2plus1d"}, {"causal": False}),
    "se-2d": ({"se_type": "2d"}, {"se_type": "2d"}),
    "se-none": ({"se_type": "none"}, {}),
    "se-2plus3d": ({"se_type": "2plus3d"}, {"causal": False}),
    "2plus1d-se-2plus3d": ({"conv_type": "2plus1d", "se_type": "2plus3d"}, {"causal": False}),
    "relu": ({"activation": "relu"}, {"activation": "relu"}),
}

GATE = {"gate": "hard_sigmoid_relu6"}
SMALL_STREAMS: dict[str, Variation] = {
    "3d_2plus1d": ({"conv_type": "3d_2plus1d"}, GATE),
    "3d_2plus1d-posenc": ({"conv_type": "3d_2plus1d", "positional_encoding": True}, GATE),
    "causal-3d": (
        {**authors.BASE, "causal": True},
        {"causal": True, "causal_padding": "same"},
    ),
    "causal-3d-posenc": (
        {"conv_type": "3d", "positional_encoding": True},
        {**GATE, "activation": "hard_swish", "causal_padding": "same"},
    ),
    # That it is causal no variable says: its squeeze-excitation is as wide as a base network's.
    "se-2d": ({"se_type": "2d"}, {**GATE, "se_type": "2d", "causal": True}),
    "se-2d-posenc": (
        {"se_type": "2d", "positional_encoding": True},
        {**GATE, "se_type": "2d"},
    ),
    "se-3d": ({"se_type": "3d"}, {**GATE, "causal": True}),
    "se-none": ({"se_type": "none"}, {}),
    "relu6": ({"activation": "relu6"}, {**GATE, "activation": "relu6"}),
    "keras-gate": (
        {"gating_activation": authors.keras_hard_sigmoid},
        {"gate": "hard_sigmoid_keras"},
    ),
}

SIZES = [(64, 72), (61, 83)]
CHUNKINGS = [WHOLE_CLIP, (1,) * FRAMES, (2, 1, 3)]
sizes = pytest.mark.parametrize("size", SIZES, ids=["64x72", "61x83"])

# Streams of which every size is cut in every way. Of the others each size and each way is run, but
# not each pair of them: TensorFlow compiles anew for every shape.
EVERY_PAIR = {"a0", "a3", "t0", "3d_2plus1d", "causal-3d-posenc", "keras-gate"}


def runs_of(network: str) -> list[tuple[tuple[int, int], tuple[int, ...]]]:
    """Sizes, and how the clip is cut."""
    if network in EVERY_PAIR:
        return list(itertools.product(SIZES, CHUNKINGS))
    return list(zip(itertools.cycle(SIZES), CHUNKINGS, strict=False))


@dataclasses.dataclass(frozen=True)
class Moment:
    """Logits and states after a chunk: TensorFlow's as they are, ours as numpy arrays."""

    their_logits: np.ndarray
    their_states: Mapping[str, np.ndarray]
    our_logits: np.ndarray
    our_states: Mapping[str, np.ndarray]


class Pair:
    """The authors' model and ours with the same weights."""

    def __init__(self, theirs: Any, ours: MoViNet) -> None:
        self.theirs = theirs
        self.ours = ours
        self._call_theirs = authors.traced(theirs)

    def run(self, size: tuple[int, int], chunks: tuple[int, ...]) -> list[Moment]:
        """Run both over the same video, and return what they say after each chunk."""
        height, width = size
        video = authors.sample_video(3, batch=BATCH, frames=FRAMES, height=height, width=width)
        theirs = authors.run(self.theirs, video, chunks, self._call_theirs)
        ours = run_ours(self.ours, video, chunks)
        return [Moment(*their, *our) for their, our in zip(theirs, ours, strict=True)]


def run_ours(
    model: MoViNet, video: np.ndarray, chunks: tuple[int, ...]
) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    clips = torch.from_numpy(video).permute(0, 4, 1, 2, 3).split(list(chunks), dim=2)
    with torch.inference_mode():
        if not model.spec.causal:
            return [(model(clip).numpy(), {}) for clip in clips]
        state = model.init_state(*clips[0].shape[:1], *clips[0].shape[3:])
        results = []
        for clip in clips:
            logits, state = model.step(clip, state)
            results.append((logits.numpy(), {name: t.numpy() for name, t in state.items()}))
        return results


def buffers(states: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """TensorFlow's buffers under our names: "state_stem_stream_buffer" is "stem.stream_buffer"."""
    renamed = {}
    for name, value in states.items():
        match = re.fullmatch(r"state_(.+)_(stream_buffer|pool_buffer)", name)
        if match:
            renamed["{}.{}".format(*match.groups())] = value.transpose(0, 4, 1, 2, 3)
    return renamed


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def assert_equal(pair: Pair, size: tuple[int, int], chunks: tuple[int, ...]) -> None:
    """The logits, the states and the counts of frames, after each chunk."""
    moments = pair.run(size, chunks)
    for moment, frames in zip(moments, np.cumsum(chunks), strict=True):
        assert relative_difference(moment.our_logits, moment.their_logits) <= TOLERANCE
        theirs = buffers(moment.their_states)
        count = {"frame_count"} if pair.ours.spec.causal else set()
        assert moment.our_states.keys() == theirs.keys() | count
        differences = {
            name: relative_difference(moment.our_states[name], theirs[name]) for name in theirs
        }
        # Written so that a NaN counts as too far.
        assert {name: d for name, d in differences.items() if not d <= TOLERANCE} == {}
        if count:
            # One stands for all of the authors'.
            counts = [v for n, v in moment.their_states.items() if n.endswith("frame_count")]
            assert {int(number) for value in counts for number in value} == {frames}
            assert moment.our_states["frame_count"].tolist() == [frames] * BATCH


@contextlib.contextmanager
def paired(folder: Path, network: Any, settings: Mapping[str, Any], **given: Any) -> Iterator[Pair]:
    theirs = authors.build(network, num_classes=NUM_CLASSES, **settings)
    authors.randomise(theirs, seed=5)
    prefix = authors.save_checkpoint(theirs, folder)
    pair = Pair(theirs, convert(prefix, verify=False, **given).build())
    del theirs
    yield pair
    # pytest keeps the pair for a while, and A5's graphs take memory.
    del pair.theirs, pair._call_theirs
    authors.forget()
    gc.collect()


@pytest.fixture(scope="module", params=FAMILY)
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    with paired(folder, request.param, authors.BASE) as pair:
        yield pair


@pytest.fixture(scope="module", params=FAMILY)
def stream(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    positional_encoding = request.param in POSITIONAL_ENCODING
    settings = {**authors.STREAM, "positional_encoding": positional_encoding}
    with paired(folder, request.param, settings, **GATE) as pair:
        yield request.param, pair


@pytest.fixture(scope="module", params=SMALL_BASES)
def small_base(request, tmp_path_factory):
    settings, given = SMALL_BASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    with paired(folder, authors.MINI, {**authors.BASE, **settings}, **given) as pair:
        yield pair


@pytest.fixture(scope="module", params=SMALL_STREAMS)
def small_stream(request, tmp_path_factory):
    settings, given = SMALL_STREAMS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    with paired(folder, authors.MINI, {**authors.STREAM, **settings}, **given) as pair:
        yield request.param, pair


@sizes
def test_base_logits_equal_the_authors(base, size):
    assert_equal(base, size, WHOLE_CLIP)


@sizes
def test_small_base_logits_equal_the_authors(small_base, size):
    assert_equal(small_base, size, WHOLE_CLIP)


def test_stream_logits_and_states_equal_the_authors(stream):
    network, pair = stream
    for size, chunks in runs_of(network):
        assert_equal(pair, size, chunks)


def test_small_stream_logits_and_states_equal_the_authors(small_stream):
    network, pair = small_stream
    for size, chunks in runs_of(network):
        assert_equal(pair, size, chunks)


@pytest.mark.parametrize("mode", ["stream", "base"])
def test_sample_is_what_its_script_makes(mode):
    _, made = authors.sample(mode)
    with np.load(DATA / f"era3_mini_{mode}.expected.npz") as kept:
        assert set(kept) == set(made)
        for name in kept:
            assert relative_difference(made[name], kept[name]) <= TOLERANCE
