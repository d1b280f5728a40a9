"""A stream network gives for a video in pieces what it gives for the whole, called either way."""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from movinet_port import MoViNet, StateError, StemSpec, create_model, optimize

pytestmark = pytest.mark.usefixtures("one_thread")

# Every combination of temporal convolution, squeeze-excitation and positional encoding there is.
SPLIT = [("2plus1d", "same"), ("3d_2plus1d", "same"), ("2plus1d", "legacy")]
CONVOLUTIONS = [("3d", "same"), ("3d", "legacy"), *SPLIT]
ATTENTION = [
    *itertools.product(["3d", "2d", "2plus3d"], [False, True]),
    ("none", False),
]
CHUNKS = {
    "frames": [1] * 7,
    "uneven": [3, 1, 2, 1],
    "longer_than_every_kernel": [1, 6],
}


@pytest.fixture(scope="module")
def stream(mini_spec: Any, randomised: Any) -> Any:
    """Factory: a small stream network in float64 with random weights, and any changes."""

    def build(**changes: Any) -> MoViNet:
        return randomised(MoViNet(mini_spec("stream", **changes))).double()

    return build


@pytest.fixture(scope="module")
def tiny_stream(tiny_spec: Any, randomised: Any) -> Any:
    """Factory: as `stream`, of three layers, for what the compiler has to trace."""

    def build(**changes: Any) -> MoViNet:
        return randomised(MoViNet(tiny_spec("stream", **changes))).double()

    return build


def step_through(model: MoViNet, video: Tensor, sizes: list[int]) -> tuple[Tensor, Any]:
    state = model.init_state(video.shape[0], *video.shape[3:])
    for clip in video.split(sizes, dim=2):
        logits, state = model.step(clip, state)
    return logits, state


def assert_same_state(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert (found[name] - value).abs().max() <= 1e-10, name


# Chunks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("se_type", "positional_encoding"), ATTENTION)
@pytest.mark.parametrize(("conv_type", "causal_padding"), CONVOLUTIONS)
def test_video_in_pieces_gives_the_logits_of_the_whole(
    stream: Any,
    video: Any,
    conv_type: str,
    causal_padding: str,
    se_type: str,
    positional_encoding: bool,
) -> None:
    model = stream(
        conv_type=conv_type,
        causal_padding=causal_padding,
        se_type=se_type,
        positional_encoding=positional_encoding,
    )
    whole, last_state = step_through(model, video(), [7])
    for sizes in CHUNKS.values():
        logits, state = step_through(model, video(), sizes)
        torch.testing.assert_close(logits, whole, rtol=0, atol=1e-10)
        assert_same_state(state, last_state)
    # The claim is empty if nothing is carried over.
    forgetful, _ = step_through(model, video()[:, :, -1:], [1])
    assert (forgetful - whole).abs().max() > 1e-3


@pytest.mark.parametrize("kernel", [(2, 3, 3), (3, 3, 3), (5, 3, 3)])
@pytest.mark.parametrize(("conv_type", "causal_padding"), CONVOLUTIONS)
def test_stem_may_look_at_several_frames(
    stream: Any, video: Any, conv_type: str, causal_padding: str, kernel: tuple[int, int, int]
) -> None:
    model = stream(
        conv_type=conv_type, causal_padding=causal_padding, stem=StemSpec(8, kernel, (1, 2, 2))
    )
    # In front of a 3-D stem the input, in front of a temporal one what the spatial one made of it.
    expected = (3, 19, 26) if conv_type == "3d" else (8, 10, 13)
    buffer = model.init_state(2, 19, 26)["stem.stream_buffer"]
    assert buffer.shape == (2, expected[0], kernel[0] - 1, *expected[1:])
    whole, _ = step_through(model, video(), [7])
    for sizes in CHUNKS.values():
        logits, _ = step_through(model, video(), sizes)
        torch.testing.assert_close(logits, whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sizes", CHUNKS.values(), ids=CHUNKS)
def test_stateful_calls_give_what_step_gives(stream: Any, video: Any, sizes: list[int]) -> None:
    model = stream(positional_encoding=True)
    state = model.init_state(2, 19, 26)
    for clip in video().split(sizes, dim=2):
        expected, state = model.step(clip, state)
        assert torch.equal(model(clip), expected)


@pytest.mark.parametrize("name", ["a0", "a3"])
def test_published_network_gives_for_frames_the_logits_of_the_clip(
    randomised: Any, video: Any, name: str
) -> None:
    model = randomised(create_model(name, mode="stream", num_classes=5)).double()
    clip = video(1, 6, 37, 50)
    with torch.no_grad():
        whole, _ = step_through(model, clip, [6])
        for sizes in ([1] * 6, [2, 4]):
            logits, _ = step_through(model, clip, sizes)
            torch.testing.assert_close(logits, whole, rtol=1e-10, atol=1e-10)


def test_videos_at_different_frames_can_share_a_batch(stream: Any, video: Any) -> None:
    model = stream(positional_encoding=True)
    one, two = video(1, 8, seed=1), video(1, 8, seed=2)
    _, state_one = step_through(model, one[:, :, :3], [3])
    _, state_two = step_through(model, two[:, :, :5], [5])
    together = {name: torch.cat([state_one[name], state_two[name]]) for name in state_one}
    clips = torch.cat([one[:, :, 3:5], two[:, :, 5:7]])
    logits, state = model.step(clips, together)
    expected = [
        step_through(model, one[:, :, :5], [5])[0],
        step_through(model, two[:, :, :7], [7])[0],
    ]
    torch.testing.assert_close(logits, torch.cat(expected), rtol=0, atol=1e-10)
    assert state["frame_count"].tolist() == [5, 7]


# State -----------------------------------------------------------------------------------------


def test_state_has_the_canonical_names_shapes_and_types(mini_spec: Any) -> None:
    model = MoViNet(mini_spec("stream", positional_encoding=True)).half()
    state = model.init_state(3, 45, 70)
    widths = [16, 24, 32, 32, 24, 40, 32, 48, 40]
    frames = [0, 2, 2, 4, 2, 4, 2, 4, 0]
    sizes = [(12, 18), (6, 9), (6, 9), *[(3, 5)] * 4, *[(2, 3)] * 2]
    expected: dict[str, Any] = {"frame_count": ((3,), torch.int64)}
    expected["head.pool_buffer"] = ((3, 48, 1, 1, 1), torch.float32)
    for name, width, kept, size in zip(model.layer_names, widths, frames, sizes, strict=True):
        expected[f"{name}.pool_buffer"] = ((3, width, 1, 1, 1), torch.float32)
        if kept:
            expected[f"{name}.stream_buffer"] = ((3, width, kept, *size), torch.float16)
    assert {name: (tuple(v.shape), v.dtype) for name, v in state.items()} == expected
    assert all(value.eq(0).all() for value in state.values())


def test_state_of_3d_convolutions_is_at_the_input_resolution(mini_spec: Any) -> None:
    state = MoViNet(mini_spec("stream", conv_type="3d")).init_state(1, 45, 70)
    assert state["block1_layer0.stream_buffer"].shape == (1, 24, 2, 12, 18)
    assert state["block1_layer1.stream_buffer"].shape == (1, 32, 2, 6, 9)
    assert state["block3_layer0.stream_buffer"].shape == (1, 40, 4, 3, 5)


@pytest.mark.parametrize(("conv_type", "causal_padding"), CONVOLUTIONS)
def test_state_after_a_step_is_like_the_one_before(
    stream: Any, video: Any, conv_type: str, causal_padding: str
) -> None:
    model = stream(conv_type=conv_type, causal_padding=causal_padding)
    before = model.init_state(2, 19, 26)
    _, after = model.step(video(), before)
    assert {name: (v.shape, v.dtype, v.device) for name, v in after.items()} == {
        name: (v.shape, v.dtype, v.device) for name, v in before.items()
    }
    assert after["frame_count"].tolist() == [7, 7]


def test_step_changes_neither_its_state_nor_the_network(stream: Any, video: Any) -> None:
    model = stream(positional_encoding=True)
    _, state = step_through(model, video(), [7])
    kept = {name: value.clone() for name, value in state.items()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    versions = {name: value._version for name, value in state.items()}
    one, after = model.step(video(seed=1), state)
    two, _ = model.step(video(seed=1), state)
    assert torch.equal(one, two)
    assert state.keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in state.items())
    assert {name: value._version for name, value in state.items()} == versions
    assert all(torch.equal(v, weights[name]) for name, v in model.state_dict().items())
    pointers = {value.untyped_storage().data_ptr() for value in state.values()}
    assert pointers.isdisjoint(value.untyped_storage().data_ptr() for value in after.values())
    # And no video is in flight now.
    model(video(1, 1, 30, 30))


def test_step_leaves_the_video_in_flight_alone(stream: Any, video: Any) -> None:
    model = stream()
    expected, _ = step_through(model, video(), [3, 4])
    first, second = video().split([3, 4], dim=2)
    model(first)
    step_through(model, video(1, 2, 30, 30), [1, 1])
    assert torch.equal(model(second), expected)


@pytest.mark.parametrize(("conv_type", "causal_padding"), CONVOLUTIONS)
def test_gradient_flows_through_every_state(
    stream: Any, video: Any, conv_type: str, causal_padding: str
) -> None:
    model = stream(conv_type=conv_type, causal_padding=causal_padding, positional_encoding=True)
    _, state = step_through(model, video(), [7])
    leaves = {
        name: value.detach().requires_grad_(value.is_floating_point())
        for name, value in state.items()
    }
    logits, _ = model.step(video(seed=1), leaves)
    (logits**2).sum().backward()
    for name, leaf in leaves.items():
        if name != "frame_count":
            assert leaf.grad is not None, name
            assert leaf.grad.ne(0).any(), name


def test_gradient_of_steps_is_the_gradient_of_the_whole(stream: Any, video: Any) -> None:
    model = stream(positional_encoding=True)
    gradients = []
    for sizes in ([7], [1] * 7, [3, 4]):
        clip = video().requires_grad_()
        model.zero_grad()
        (step_through(model, clip, sizes)[0] ** 2).sum().backward()
        gradients.append([clip.grad, *(p.grad.clone() for p in model.parameters())])
    assert gradients[0][0][:, :, 0].ne(0).any()
    for found in gradients[1:]:
        for one, other in zip(gradients[0], found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


# Memory ----------------------------------------------------------------------------------------


def owned_bytes(state: dict[str, Tensor]) -> int:
    """Bytes that the state keeps alive, views counted with all they are views of."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.values()
    }
    return sum(storages.values())


@pytest.mark.parametrize("frames", [1, 3, 20])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("conv_type", "causal_padding"), CONVOLUTIONS)
@pytest.mark.parametrize("se_type", ["3d", "2plus3d"])
def test_state_keeps_nothing_alive_but_itself(
    stream: Any,
    video: Any,
    conv_type: str,
    causal_padding: str,
    se_type: str,
    batch: int,
    frames: int,
) -> None:
    model = stream(conv_type=conv_type, causal_padding=causal_padding, se_type=se_type)
    clip = video(batch, frames)
    with torch.no_grad():
        _, state = model.step(clip, model.init_state(batch, 19, 26))
        model(clip)
    for values in (state, model.snapshot().state):
        for name, value in values.items():
            size = value.numel() * value.element_size()
            assert value.untyped_storage().nbytes() == size, name


@pytest.mark.parametrize("gradients", [False, True])
def test_memory_does_not_grow_with_the_number_of_frames(
    stream: Any, video: Any, gradients: bool
) -> None:
    model = stream()
    sizes = set()
    with torch.set_grad_enabled(gradients):
        for index in range(30):
            model(video(1, 1 + index % 3, seed=index))
            sizes.add(owned_bytes(model.snapshot().state))
            assert all(value.grad_fn is None for value in model.snapshot().state.values())
    assert len(sizes) == 1


# A video in flight -----------------------------------------------------------------------------


def test_clean_activation_buffers_starts_a_new_video(stream: Any, video: Any) -> None:
    model = stream(positional_encoding=True)
    first = model(video())
    assert (model(video()) - first).abs().max() > 1e-6
    model.clean_activation_buffers()
    assert torch.equal(model(video()), first)
    model.clean_activation_buffers()
    model.clean_activation_buffers()
    assert torch.equal(model(video()), first)


@pytest.mark.parametrize(
    ("batch", "height", "width"), [(1, 19, 26), (3, 19, 26), (2, 20, 26), (2, 19, 25), (2, 26, 19)]
)
def test_another_batch_or_size_without_cleaning_is_an_error(
    stream: Any, video: Any, batch: int, height: int, width: int
) -> None:
    model = stream()
    first, second = video().split([3, 4], dim=2)
    model(first)
    with pytest.raises(StateError, match=r"clean_activation_buffers\(\)") as caught:
        model(video(batch, 2, height, width))
    message = str(caught.value)
    assert "\n" not in message
    assert str((batch, height, width)) in message
    assert str((2, 19, 26)) in message
    # The video goes on where it was.
    torch.testing.assert_close(
        model(second), step_through(model, video(), [7])[0], rtol=0, atol=1e-10
    )
    model.clean_activation_buffers()
    assert model(video(batch, 2, height, width)).shape == (batch, 7)


def test_clip_that_failed_is_not_part_of_the_video(stream: Any, video: Any) -> None:
    model = stream()
    with pytest.raises(RuntimeError):
        model(video(dtype=torch.float32))  # the network is float64
    # So a video of another size may start.
    assert model(video(1, 2, 24, 24)).shape == (1, 7)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda state: state.pop("frame_count"), "frame_count"),
        (lambda state: state.pop("block1_layer0.stream_buffer"), "block1_layer0.stream_buffer"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra"),
        (
            lambda state: state.update({"head.pool_buffer": torch.zeros(1, 48, 1, 1, 1)}),
            "head.pool_buffer",
        ),
        (lambda state: state.update(frame_count=torch.zeros((), dtype=torch.int64)), "frame_count"),
        (lambda state: state.clear(), "init_state"),
    ],
)
def test_state_that_does_not_fit_is_named(stream: Any, video: Any, damage: Any, match: str) -> None:
    model = stream()
    state = model.init_state(2, 19, 26)
    damage(state)
    with pytest.raises(StateError, match=match) as caught:
        model.step(video(), state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 7, 19, 26), (2, 7, 40, 26)])
def test_state_of_another_batch_or_size_is_named(
    stream: Any, video: Any, shape: tuple[int, int, int, int]
) -> None:
    model = stream()
    with pytest.raises(StateError, match=r"init_state\(\)"):
        model.step(video(*shape), model.init_state(2, 19, 26))


def test_deep_copy_takes_the_video_along(stream: Any, video: Any) -> None:
    model = stream(positional_encoding=True)
    expected, _ = step_through(model, video(), [7])
    first, second = video().split([3, 4], dim=2)
    model(first)
    twin = copy.deepcopy(model)
    model(video(seed=1))  # must not reach the copy
    torch.testing.assert_close(twin(second), expected, rtol=0, atol=1e-10)
    twin.clean_activation_buffers()
    model(video(seed=2))


def test_saving_the_module_takes_the_video_along(stream: Any, video: Any) -> None:
    model = stream()
    expected, _ = step_through(model, video(), [7])
    first, second = video().split([3, 4], dim=2)
    model(first)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twin = torch.load(file, weights_only=False)
    torch.testing.assert_close(twin(second), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("level", [None, "eager"])
def test_network_goes_on_from_a_snapshot(stream: Any, video: Any, level: str | None) -> None:
    model = stream(positional_encoding=True)
    first, second = video().split([3, 4], dim=2)
    expected, _ = step_through(model, video(), [7])
    network = model if level is None else optimize(model, level)
    assert network.snapshot() is None
    network(first)
    snapshot = network.snapshot()
    for _ in range(2):
        torch.testing.assert_close(network(second), expected, rtol=0, atol=1e-10)
        network.restore(snapshot)
    # Either kind of network goes on where the other stopped.
    model.restore(snapshot)
    torch.testing.assert_close(model(second), expected, rtol=0, atol=1e-10)
    wrong = dataclasses.replace(snapshot, shape=(2, 19, 40))
    with pytest.raises(StateError, match=r"stream_buffer' has shape .* at 19 x 40"):
        network.restore(wrong)
    network.restore(None)
    assert network.snapshot() is None


@pytest.mark.parametrize("level", [None, "eager"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_frame_that_would_poison_the_stream_is_refused_if_wanted(
    stream: Any, video: Any, level: str | None, value: float
) -> None:
    model = stream()
    network = model if level is None else optimize(model, level)
    first, second = video().split([3, 4], dim=2)
    expected, _ = step_through(model, video(), [7])
    bad = second.clone()
    bad[1, 2, 3, 5, 7] = value
    network.finite_only = True
    network(first)
    with pytest.raises(StateError, match="NaN or infinite"):
        network(bad)
    torch.testing.assert_close(network(second), expected, rtol=0, atol=1e-10)
    network.clean_activation_buffers()
    network.finite_only = False
    network(first)
    network(bad)
    assert not network(second)[1].isfinite().all()


@pytest.mark.parametrize(
    "shape", [(0, 3, 2, 8, 8), (1, 3, 2, 0, 8), (1, 3, 2, 8, 0), (1, 3, 0, 8, 8)]
)
@pytest.mark.parametrize("mode", ["base", "stream"])
@pytest.mark.parametrize("level", [None, "eager", "compile"])
def test_clip_of_nothing_is_one_line_at_every_level(
    mini_spec: Any, randomised: Any, level: str | None, mode: str, shape: tuple[int, ...]
) -> None:
    model = randomised(MoViNet(mini_spec(mode)))
    network = model if level is None else optimize(model, level)
    clip = torch.zeros(shape)
    calls = [network]
    if mode == "stream":
        state = model.init_state(1, 8, 8)
        calls.append(lambda clip: network.step(clip, state))
    elif level != "compile":
        calls.append(network.predict_clip)
    for call in calls:
        with pytest.raises(StateError, match="expected at least one") as caught:
            call(clip)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("level", [None, "eager"])
def test_video_is_forgotten_before_and_after_its_context(
    stream: Any, video: Any, level: str | None
) -> None:
    model = stream()
    network = model if level is None else optimize(model, level)
    expected, _ = step_through(model, video(), [7])
    network(video(seed=1))
    with network.video():
        for clip in video().split([3, 4], dim=2):
            logits = network(clip)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    assert network.snapshot() is None

    def failing() -> None:
        with network.video():
            network(video())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert network.snapshot() is None


def test_state_dict_holds_no_video_and_loads_beside_one(
    stream: Any, video: Any, mini_spec: Any
) -> None:
    model = stream()
    names = list(model.state_dict())
    expected, _ = step_through(model, video(), [7])
    first, second = video().split([3, 4], dim=2)
    model(first)
    assert list(model.state_dict()) == names
    twin = MoViNet(mini_spec("stream")).double().eval()
    twin(first)  # with other weights
    twin.load_state_dict(model.state_dict())
    assert twin.snapshot() is not None
    twin.clean_activation_buffers()
    torch.testing.assert_close(twin(video()), expected, rtol=0, atol=1e-10)
    model.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(second), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_network_changes_type_with_a_video_in_flight(
    stream: Any, video: Any, dtype: torch.dtype
) -> None:
    model = stream(positional_encoding=True)
    expected, _ = step_through(model, video(), [7])
    first, second = video().split([3, 4], dim=2)
    model(first)
    assert model.to(dtype) is model
    logits = model(second.to(dtype))
    assert logits.dtype == dtype
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4}.get(dtype, 0.15)
    scale = expected.abs().max()
    assert (logits.double() - expected).abs().max() <= tolerance * scale
    for name, value in model.snapshot().state.items():
        wide = torch.promote_types(dtype, torch.float32)
        is_sum = name.endswith("pool_buffer")
        if name != "frame_count":
            assert value.dtype == (wide if is_sum else dtype), name
    assert model.snapshot().state["frame_count"].tolist() == [7, 7]
    model.clean_activation_buffers()
    assert model(second.to(dtype)).isfinite().all()


@pytest.mark.parametrize("mode", ["base", "stream"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_near_float64(
    mini_spec: Any, randomised: Any, video: Any, dtype: torch.dtype, mode: str
) -> None:
    model = randomised(MoViNet(mini_spec(mode))).double()
    expected = model(video())
    model.clean_activation_buffers()
    found = model.to(dtype)(video().to(dtype))
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() <= 0.15 * expected.abs().max()


@pytest.mark.parametrize("mode", ["base", "stream"])
def test_autocast_is_near_float64(mini_spec: Any, randomised: Any, video: Any, mode: str) -> None:
    model = randomised(MoViNet(mini_spec(mode)))
    clip = video(dtype=torch.float32)
    expected = model(clip)
    model.clean_activation_buffers()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for piece in clip.split([3, 4] if mode == "stream" else 7, dim=2):
            found = model(piece)
    assert (found - expected).abs().max() <= 0.15 * expected.abs().max()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_network_changes_device_with_a_video_in_flight(stream: Any, video: Any) -> None:
    model = stream(positional_encoding=True)
    expected, _ = step_through(model, video(), [7])
    first, second = video().split([3, 4], dim=2)
    model(first)
    model.to("cuda")
    assert {value.device.type for value in model.snapshot().state.values()} == {"cuda"}
    torch.testing.assert_close(model(second.cuda()).cpu(), expected, rtol=1e-8, atol=1e-8)


def test_to_meta_takes_the_video_along(stream: Any, video: Any) -> None:
    """The one other device that every machine has."""
    model = stream(positional_encoding=True)
    model(video())
    model.to("meta")
    assert {value.device.type for value in model.snapshot().state.values()} == {"meta"}
    assert model(video().to("meta")).shape == (2, 7)


def test_part_of_another_network_moves_with_its_video(stream: Any, video: Any) -> None:
    model = stream()
    expected, _ = step_through(model, video(), [7])
    first, second = video().split([3, 4], dim=2)
    model(first)
    nn.Sequential(model, nn.Softmax(dim=1)).float()
    found = model(second.float())
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_inference_mode_and_back(stream: Any, video: Any) -> None:
    model = stream()
    expected, _ = step_through(model, video(), [7])
    first, second = video().split([3, 4], dim=2)
    with torch.inference_mode():
        model(first)
    logits = model(second)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    logits.sum().backward()


# Compiled and exported -------------------------------------------------------------------------


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class CountingBackend:
    """Runs what it is given as it is, and counts how often it is given something."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_step_is_one_graph_and_equals_eager(tiny_stream: Any, video: Any) -> None:
    model = tiny_stream(positional_encoding=True)
    step = torch.compile(model.step, backend="aot_eager", fullgraph=True)
    state, expected_state = model.init_state(2, 19, 26), model.init_state(2, 19, 26)
    with torch.no_grad():
        for clip in video().split([3, 3, 1], dim=2):
            logits, state = step(clip, state)
            expected, expected_state = model.step(clip, expected_state)
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
            assert_same_state(state, expected_state)


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_network_carries_its_video_and_is_not_compiled_for_every_frame(
    tiny_stream: Any, video: Any
) -> None:
    model = tiny_stream(positional_encoding=True)
    backend = CountingBackend()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for seed in range(2):
        graphs = []
        with torch.no_grad():
            for clip in video(seed=seed).split(1, dim=2):
                logits = compiled(clip)
                graphs.append(backend.graphs)
        expected, _ = step_through(model, video(seed=seed), [7])
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
        compiled.clean_activation_buffers()
        # One for the first frame, one for the others.
        assert graphs[-1] <= 2


@pytest.mark.usefixtures("_fresh_compiler")
def test_network_with_a_video_in_flight_can_be_compiled(tiny_stream: Any, video: Any) -> None:
    model = tiny_stream()
    expected, _ = step_through(model, video(), [7])
    first, second = video().split([3, 4], dim=2)
    model(first)
    with torch.no_grad():
        logits = torch.compile(model, backend="aot_eager")(second)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


class Step(nn.Module):
    """`torch.export` takes a module's forward."""

    def __init__(self, model: MoViNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, clip: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.model.step(clip, state)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("conv_type", "causal_padding"), [("3d", "legacy"), ("2plus1d", "same")])
def test_exported_step_equals_eager(
    tiny_stream: Any, video: Any, conv_type: str, causal_padding: str, strict: bool
) -> None:
    model = tiny_stream(
        conv_type=conv_type, causal_padding=causal_padding, positional_encoding=True
    ).requires_grad_(False)
    clips = video().split([2, 2, 2, 1], dim=2)[:3]
    state, expected_state = model.init_state(2, 19, 26), model.init_state(2, 19, 26)
    program = torch.export.export(Step(model), (clips[0], state), strict=strict).module()
    for clip in clips:
        logits, state = program(clip, state)
        expected, expected_state = model.step(clip, expected_state)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
        assert_same_state(state, expected_state)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_step_takes_any_batch_and_number_of_frames(
    tiny_stream: Any, video: Any, strict: bool
) -> None:
    model = tiny_stream(positional_encoding=True).requires_grad_(False)
    batch, frames = torch.export.Dim("batch", max=64), torch.export.Dim("frames", max=64)
    example = (video(2, 3), model.init_state(2, 19, 26))
    shapes = ({0: batch, 2: frames}, {name: {0: batch} for name in example[1]})
    exported = torch.export.export(Step(model), example, dynamic_shapes=shapes, strict=strict)
    program = exported.module()
    for size, sizes in ((1, [1, 6]), (3, [2, 2, 3])):
        state = model.init_state(size, 19, 26)
        for clip in video(size).split(sizes, dim=2):
            logits, state = program(clip, state)
        expected, expected_state = step_through(model, video(size), sizes)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
        assert_same_state(state, expected_state)


def test_exported_step_survives_a_file(tiny_stream: Any, video: Any) -> None:
    model = tiny_stream().requires_grad_(False)
    state = model.init_state(2, 19, 26)
    file = io.BytesIO()
    torch.export.save(torch.export.export(Step(model), (video(), state)), file)
    file.seek(0)
    logits, _ = torch.export.load(file).module()(video(), state)
    torch.testing.assert_close(logits, model.step(video(), state)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("frames", [1, 4])
def test_base_network_exports(mini_spec: Any, randomised: Any, video: Any, frames: int) -> None:
    model = randomised(MoViNet(mini_spec())).double().requires_grad_(False)
    count = torch.export.Dim("frames", min=2, max=64)
    dynamic = {"video": {2: count}} if frames > 1 else None
    program = torch.export.export(model, (video(2, frames),), dynamic_shapes=dynamic).module()
    for number in (frames, 9 if frames > 1 else 1):
        clip = video(2, number)
        torch.testing.assert_close(program(clip), model(clip), rtol=0, atol=1e-10)
