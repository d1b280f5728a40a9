"""Streams that share a network get the logits that each would get alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from movinet_port import MoViNet, StateError, optimize
from movinet_port.stream_pool import StreamPool

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (19, 26)


@pytest.fixture(scope="module", params=["readable", "optimised"])
def model(request: Any, mini_spec: Any, randomised: Any) -> Any:
    """A small stream network whose frames know their number."""
    readable = randomised(MoViNet(mini_spec("stream", positional_encoding=True))).double()
    return readable if request.param == "readable" else optimize(readable)


@pytest.fixture
def videos(video: Any) -> dict[str, Tensor]:
    """Four videos, (3, 7, height, width)."""
    return {name: video(batch=1, seed=ord(name))[0] for name in "abcd"}


def alone(model: MoViNet, clip: Tensor) -> Tensor:
    """Return the logits of a video by itself, all at once."""
    with torch.no_grad():
        return model.step(clip[None], model.init_state(1, *SIZE))[0][0]


def frames(videos: dict[str, Tensor], when: dict[str, int]) -> dict[str, Tensor]:
    return {name: videos[name][:, index : index + 1] for name, index in when.items()}


@pytest.mark.parametrize("slots", [None, 4, 6])
def test_each_stream_gets_its_own_logits(model: Any, videos: Any, slots: int | None) -> None:
    pool = StreamPool(model, *SIZE, slots=slots)
    for name in videos:
        pool.join(name)
    for index in range(7):
        logits = pool.step(frames(videos, dict.fromkeys(videos, index)))
        for name, clip in videos.items():
            torch.testing.assert_close(logits[name], alone(model, clip[:, : index + 1]))
    # The claim is empty if the streams look alike.
    assert (logits["a"] - logits["b"]).abs().max() > 1e-3


@pytest.mark.parametrize("slots", [None, 3])
def test_frame_that_is_not_finite_is_refused_and_nothing_changes(
    model: Any, videos: Any, slots: int | None
) -> None:
    pool = StreamPool(model, *SIZE, slots=slots, finite_only=True)
    pool.join("a")
    pool.join("b")
    pool.step(frames(videos, {"a": 0, "b": 0}))
    bad = frames(videos, {"a": 1, "b": 1})
    bad["b"] = bad["b"].clone()
    bad["b"][0, 0, 3, 5] = float("nan")
    with pytest.raises(StateError, match="stream 'b': the clip has values that are NaN"):
        pool.step(bad)
    logits = pool.step(frames(videos, {"a": 1, "b": 1}))
    for name in "ab":
        torch.testing.assert_close(logits[name], alone(model, videos[name][:, :2]))


# What happens at each tick: streams that join, streams that leave, and who has a frame.
TICKS = [
    ("ab", "", "ab"),
    ("", "", "b"),
    ("c", "", "ac"),
    ("", "a", "cb"),
    ("d", "", "dbc"),
    ("", "b", "d"),
    ("b", "", "bcd"),
    ("", "cd", "b"),
]


@pytest.mark.parametrize("slots", [None, 3, 5])
def test_streams_join_and_leave_mid_flight(model: Any, videos: Any, slots: int | None) -> None:
    pool, seen = StreamPool(model, *SIZE, slots=slots), {}
    for joined, left, active in TICKS:
        for name in left:
            pool.drop(name)
            del seen[name]
        for name in joined:
            pool.join(name)
            seen[name] = 0
        assert set(pool.streams) == set(seen)
        assert len(pool) == len(seen)
        logits = pool.step(frames(videos, {name: seen[name] for name in active}))
        assert list(logits) == list(active)
        for name in active:
            seen[name] += 1
            expected = alone(model, videos[name][:, : seen[name]])
            torch.testing.assert_close(logits[name], expected)


def test_streams_may_be_named_in_any_order(model: Any, videos: Any) -> None:
    pool = StreamPool(model, *SIZE)
    for name in "abc":
        pool.join(name)
    logits = pool.step(frames(videos, {"c": 0, "a": 0, "b": 0}))
    for name in "abc":
        torch.testing.assert_close(logits[name], alone(model, videos[name][:, :1]))


def test_clips_may_have_several_frames(model: Any, videos: Any) -> None:
    pool = StreamPool(model, *SIZE)
    for name in "ab":
        pool.join(name)
    pool.step({name: videos[name][:, :3] for name in "ab"})
    logits = pool.step({name: videos[name][:, 3:] for name in "ab"})
    for name in "ab":
        torch.testing.assert_close(logits[name], alone(model, videos[name]))


def test_a_stream_can_leave_with_its_state(model: Any, videos: Any) -> None:
    pool = StreamPool(model, *SIZE)
    for name in "ab":
        pool.join(name)
    pool.step(frames(videos, {"a": 0, "b": 0}))
    with torch.no_grad():
        logits, _ = model.step(videos["b"][None, :, 1:], pool.state("b"))
    torch.testing.assert_close(logits[0], alone(model, videos["b"]))


def test_step_without_clips_is_no_step(model: Any) -> None:
    assert StreamPool(model, *SIZE).step({}) == {}


def test_same_name_starts_afresh_after_a_drop(model: Any, videos: Any) -> None:
    for slots in (None, 1):
        pool = StreamPool(model, *SIZE, slots=slots)
        pool.join("a")
        pool.step(frames(videos, {"a": 0}))
        pool.drop("a")
        pool.join("a")
        logits = pool.step(frames(videos, {"a": 1}))
        torch.testing.assert_close(logits["a"], alone(model, videos["a"][:, 1:2]))


def test_what_cannot_be_done_is_one_clear_line(model: Any, videos: Any) -> None:
    pool = StreamPool(model, *SIZE, slots=1)
    pool.join("a")
    first = videos["a"][:, :1]
    for attempt, expected in [
        (lambda: pool.join("a"), "is in the pool already"),
        (lambda: pool.join(None), "is no name"),
        (lambda: pool.join("b"), "all 1 slots of the pool are taken"),
        (lambda: pool.drop("b"), "stream 'b' is not in the pool"),
        (lambda: pool.step({"b": first}), "streams: 'a'"),
        (lambda: pool.state("b"), "join() it first"),
        (lambda: pool.step({"a": first[None]}), "stream 'a': the clip has shape (1, 3, 1, 19, 26)"),
        (lambda: pool.step({"a": first[:, :0]}), "expected (3, frames, 19, 26)"),
        (lambda: pool.step({"a": first[..., 1:]}), "expected (3, frames, 19, 26)"),
        (lambda: StreamPool(model, *SIZE, slots=0), "slots is 0"),
    ]:
        with pytest.raises(StateError) as error:
            attempt()
        assert expected in str(error.value)
        assert "\n" not in str(error.value)


def test_clips_of_one_step_have_as_many_frames(model: Any, videos: Any) -> None:
    pool = StreamPool(model, *SIZE)
    for name in "ab":
        pool.join(name)
    with pytest.raises(StateError, match=r"stream 'b': .*expected \(3, 1, 19, 26\)"):
        pool.step({"a": videos["a"][:, :1], "b": videos["b"][:, :2]})


def test_base_network_is_refused(mini_spec: Any) -> None:
    with pytest.raises(StateError, match="is no stream network"):
        StreamPool(MoViNet(mini_spec()).eval(), *SIZE)
