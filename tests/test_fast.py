"""The optimised networks: the readable one's outputs and states, by other arithmetic."""

from __future__ import annotations

import copy
import dataclasses
import gc
import itertools
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import movinet_port
from movinet_port import ModelSpec, MoViNet, StemSpec, optimize
from movinet_port.errors import SpecError, StateError
from movinet_port.fast import FastMoViNet, choice, extension, kernels
from movinet_port.fast.agreement import agreement
from movinet_port.fast.backends import inductor, onednn
from movinet_port.fast.choice import Case, Row
from movinet_port.fast.optimize import fold_network
from movinet_port.fast.state import StateLayout, StreamState
from movinet_port.layers import AveragePool

pytestmark = pytest.mark.usefixtures("one_thread")

# The largest logit's share that rounding may change.
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-12}

BASE = [{"conv_type": c, "se_type": s} for c in ("3d", "2plus1d") for s in ("3d", "2plus3d")]
BASE += [{"conv_type": "3d_2plus1d", "se_type": "2d"}, {"se_type": "none"}]
# The first PyTorch port, with tf_like=False.
PORT: dict[str, Any] = {"causal_padding": "legacy", "pool_counts_padding": True}
BASE += [PORT, {**PORT, "conv_type": "2plus1d"}]
BASE += [{"activation": activation} for activation in ("hard_swish", "relu", "relu6")]
STREAM: list[dict[str, Any]] = [
    {},
    {"positional_encoding": True},
    {"conv_type": "3d", "se_type": "3d", "activation": "swish", "gate": "sigmoid"},
    {"conv_type": "3d", "causal_padding": "legacy"},
    PORT,
    {"conv_type": "3d_2plus1d", "se_type": "2d", "positional_encoding": True},
    {"se_type": "none", "activation": "relu"},
    {"gate": "hard_sigmoid_relu6", "activation": "relu6"},
    {"stem": StemSpec(filters=8, kernel_size=(3, 3, 3))},
    {"stem": StemSpec(filters=8, kernel_size=(3, 3, 3)), "conv_type": "3d"},
]
ARCHITECTURES = [("base", c) for c in BASE] + [("stream", c) for c in STREAM]
# Of these every combination of what else a test varies; of the others each value of everything.
EVERY_COMBINATION = (BASE[0], BASE[3], BASE[4], STREAM[0], STREAM[2], STREAM[4])


def _name(value: Any) -> str:
    if isinstance(value, dict):
        return "-".join(v if isinstance(v, str) else k for k, v in value.items()) or "published"
    return str(value)


def combined(architectures: list[tuple[str, dict[str, Any]]], **varied: list[Any]) -> Any:
    """Parametrize a test by mode, changes, and the values that `varied` has for each argument."""
    columns, found = list(varied.values()), []
    for number, (mode, changes) in enumerate(architectures):
        rows = list(itertools.product(*columns))
        if changes not in EVERY_COMBINATION:
            # Beside other values in each architecture.
            rows = [
                tuple(of[(row + place * number) % len(of)] for place, of in enumerate(columns))
                for row in range(max(map(len, columns)))
            ]
        found += [(mode, changes, *row) for row in rows]
    return pytest.mark.parametrize(("mode", "changes", *varied), found, ids=_name)


@pytest.fixture(scope="module")
def build(
    mini_spec: Callable[..., ModelSpec], randomised: Callable[..., Any]
) -> Callable[..., MoViNet]:
    """Factory: a mini network with random values everywhere, in eval mode."""

    def make(mode: str = "stream", **changes: Any) -> MoViNet:
        model: MoViNet = randomised(MoViNet(mini_spec(mode, **changes)))
        return model

    return make


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def watch(model: Any, video: torch.Tensor, parts: tuple[int, ...]) -> list[torch.Tensor]:
    """Return the logits after each part of a video that starts now."""
    model.clean_activation_buffers()
    return [model(clip) for clip in video.split(parts, dim=2)]


def record_rows(monkeypatch: pytest.MonkeyPatch, *first: Row) -> list[Row]:
    """Put rows before those of the table; return a list that grows by each row that is chosen."""
    chosen: list[Row] = []

    def recorded(row: Row) -> Row:
        return dataclasses.replace(
            row, make=lambda part, case: (chosen.append(row), row.make(part, case))[1]
        )

    monkeypatch.setattr(choice, "TABLE", [*map(recorded, (*first, *choice.TABLE))])
    return chosen


@pytest.mark.parametrize("mode", ["base", "stream"])
def test_a_backend_is_a_row_of_the_table(
    build: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []

    def multiply(block: Any, case: Case) -> Callable[[torch.Tensor], torch.Tensor]:
        def compute(x: torch.Tensor) -> torch.Tensor:
            computed.append(len(x) == case.rows)
            y = torch.nn.functional.linear(x, block.weight, block.constant)
            return y if block.activation is None else block.activation(y)

        return compute

    toy = Row(choice.PRODUCT, "toy", lambda block, case: not case.watched, multiply)
    # Only what would be computed by nothing else at once.
    whole = [row for row in choice.TABLE if row.stage not in (choice.LAYER, choice.CONVOLVE)]
    staged = [row for row in choice.TABLE if row not in whole and row.backend == "operations"]
    monkeypatch.setattr(choice, "TABLE", [*whole, *staged])
    chosen = record_rows(monkeypatch, toy)
    model = build(mode)
    fast, clip = optimize(model), torch.rand(1, 3, 3, 30, 37)
    expected = model(clip).detach()
    assert error(fast(clip), expected) < ROUNDING[torch.float32]
    assert all(computed)
    assert len(computed) > 3 * len(fast.bottlenecks)
    assert {row.backend for row in chosen if row.stage == choice.PRODUCT} == {"toy"}
    # Asked once.
    asked, count = len(chosen), len(computed)
    fast.clean_activation_buffers()
    fast(clip)
    assert (len(chosen), len(computed)) == (asked, 2 * count)
    # What it does not take is left to the others.
    state = StreamState.of(fast.init_state(1, 30, 37)) if mode == "stream" else None
    watched, _ = fast.run(clip, state, lambda name, value: value)
    assert error(watched, expected) < ROUNDING[torch.float32]
    assert len(computed) == 2 * count


@pytest.mark.usefixtures("either")
@combined(
    ARCHITECTURES,
    dtype=[torch.float32, torch.float64],
    clips=[(1, (33, 46), (1, 1, 3)), (2, (32, 32), (2, 1))],
)
def test_eager_gives_the_logits_of_the_readable_network(
    build: Any, mode: str, changes: dict[str, Any], dtype: Any, clips: tuple[int, Any, Any]
) -> None:
    batch, size, parts = clips
    model = build(mode, **changes).to(dtype)
    video = torch.rand(batch, 3, sum(parts), *size, dtype=dtype)
    fast = optimize(model)
    found, expected = watch(fast, video, parts), watch(model, video, parts)
    assert max(map(error, found, expected)) < ROUNDING[dtype]


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("changes", STREAM, ids=_name)
def test_either_network_goes_on_from_the_states_of_the_other(
    build: Any, changes: dict[str, Any]
) -> None:
    model = build(**changes)
    fast = optimize(model)
    video = torch.rand(2, 3, 6, 30, 37)
    whole = watch(model, video, (1,) * 6)
    state = model.init_state(2, 30, 37)
    for frame, network_, expected in zip(
        video.split(1, dim=2), (fast, model, fast, fast, model, model), whole, strict=True
    ):
        with torch.no_grad():
            logits, state = network_.step(frame, state)
        assert error(logits, expected) < ROUNDING[torch.float32]
    alone = model.init_state(2, 30, 37)
    for name, value in state.items():
        assert (value.shape, value.dtype) == (alone[name].shape, alone[name].dtype)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("clip", [1, 4])
def test_threads_share_a_network(build: Any, clip: int) -> None:
    model = build()
    fast = optimize(model)
    videos = [torch.rand(1, 3, 12, *size) for size in ((33, 46), (33, 46), (20, 31), (33, 46))]

    def logits(network_: Any, video: torch.Tensor) -> torch.Tensor:
        state = model.init_state(1, *video.shape[3:])
        found = []
        for part in video.split(clip, dim=2):
            with torch.no_grad():
                one, state = network_.step(part, state)
            found.append(one)
        return torch.cat(found)

    with ThreadPoolExecutor(len(videos)) as threads:
        found = list(threads.map(lambda video: logits(fast, video), videos))
    for video, one in zip(videos, found, strict=True):
        assert error(one, logits(model, video)) < ROUNDING[torch.float32]


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(("mode", "changes"), ARCHITECTURES, ids=_name)
@pytest.mark.parametrize("frames", [1, 5])
def test_what_is_returned_stays_as_it_is(
    build: Any, mode: str, changes: dict[str, Any], frames: int
) -> None:
    fast = optimize(build(mode, **changes))
    state = StreamState.of(fast.init_state(1, 20, 24)) if mode == "stream" else None
    logits, after = fast.run(torch.rand(1, 3, frames, 20, 24), state)
    kept = [logits, *(after.flat() if after else ())]
    before = [value.clone() for value in kept]
    for value in (0.0, 1.0):
        fast.run(torch.full((1, 3, frames, 20, 24), value), state)
    assert all(map(torch.equal, kept, before))


@pytest.mark.usefixtures("either")
def test_a_frame_is_computed_with_the_present_weights_at_any_size(build: Any) -> None:
    model = build()
    fast = optimize(model)
    sizes = [(20, 24 + i) for i in range(3)]
    for size in (*sizes, *sizes):
        frame = torch.rand(1, 3, 1, *size)
        assert error(*(watch(n, frame, (1,))[0] for n in (fast, model))) < ROUNDING[torch.float32]
    copied = copy.deepcopy(fast)
    expected = watch(model.double(), frame.double(), (1,))[0]
    fast.double()
    assert error(watch(fast, frame.double(), (1,))[0], expected) < ROUNDING[torch.float32]
    for single in (copied, fast.float()):
        assert error(watch(single, frame, (1,))[0], expected) < ROUNDING[torch.float32]


@pytest.mark.usefixtures("either")
def test_a_network_that_nobody_holds_is_gone(build: Any) -> None:
    fast = optimize(build())
    fast(torch.rand(1, 3, 1, 20, 24))
    gone = weakref.ref(fast)
    gc.disable()
    try:
        del fast
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("either")
def test_defaults_of_the_caller_do_not_matter(build: Any) -> None:
    model = build()
    fast = optimize(model)
    video = torch.rand(1, 3, 2, 20, 24)
    expected = watch(model, video, (1, 1))
    torch.set_default_dtype(torch.float64)
    try:
        found = watch(fast, video, (1, 1))
    finally:
        torch.set_default_dtype(torch.float32)
    assert max(map(error, found, expected)) < ROUNDING[torch.float32]


@pytest.mark.usefixtures("either")
def test_loaded_weights_are_those_that_are_used(build: Any, randomised: Callable[..., Any]) -> None:
    model = build()
    fast = optimize(model)
    videos = torch.rand(1, 3, 3, 20, 24), torch.rand(1, 3, 1, 20, 24)
    for video in videos:
        watch(fast, video, (video.shape[2],))
    fast.load_state_dict(optimize(randomised(model, 5)).state_dict())
    for video in videos:
        frames = (video.shape[2],)
        found, expected = (watch(n, video, frames)[0] for n in (fast, model))
        assert error(found, expected) < ROUNDING[torch.float32]


def test_a_state_of_the_fast_network_takes_part_in_gradients(build: Any) -> None:
    model = build()
    frame = torch.rand(1, 3, 1, 32, 32)
    _, state = optimize(model).step(frame, model.init_state(1, 32, 32))
    model.step(frame, state)[0].sum().backward()
    assert model.stem.conv.weight.grad is not None


@pytest.mark.usefixtures("either")
def test_a_step_leaves_the_state_that_it_was_given(build: Any) -> None:
    fast = optimize(build())
    frame = torch.rand(1, 3, 1, 32, 32)
    _, state = fast.step(frame, fast.init_state(1, 32, 32))
    before = {name: value.clone() for name, value in state.items()}
    first, _ = fast.step(frame, state)
    again, _ = fast.step(frame, state)
    assert torch.equal(first, again)
    assert all(torch.equal(value, before[name]) for name, value in state.items())


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("frames", [1, 3])
def test_a_state_may_be_of_another_type_and_layout(build: Any, frames: int) -> None:
    model = build()
    fast = optimize(model)
    before, clip = torch.rand(2, 1, 3, frames, 30, 37)
    with torch.no_grad():
        _, state = model.step(before, model.init_state(1, 30, 37))
        expected, _ = model.step(clip, state)
        # Every other number of a larger tensor.
        apart = {
            k: v.double()[..., None].repeat_interleave(2, -1)[..., 0] for k, v in state.items()
        }
        apart["frame_count"] = state["frame_count"]
        found, _ = fast.step(clip, apart)
    assert error(found, expected) < ROUNDING[torch.float32]


def test_a_state_on_another_device_is_refused(build: Any) -> None:
    model = build()
    clip, state = torch.rand(1, 3, 1, 30, 37), model.init_state(1, 30, 37)
    for network_ in (model, optimize(model)):
        with pytest.raises(StateError, match="is on meta, the clip on cpu"):
            network_.step(clip, {name: value.to("meta") for name, value in state.items()})


@pytest.mark.usefixtures("operations")
@pytest.mark.skipif(not onednn.HAS_VOLUMES, reason="oneDNN has no such convolution here")
@pytest.mark.parametrize("changes", BASE, ids=_name)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("piece", [20_000, 100_000])
def test_a_long_clip_in_pieces_gives_the_same_logits(
    build: Any, changes: dict[str, Any], batch: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "CACHED_BYTES", piece)
    monkeypatch.setattr(onednn, "HEAVY", 100_000)
    chosen = record_rows(monkeypatch)
    model = build("base", **changes)
    fast = optimize(model)
    clip = torch.rand(batch, 3, 11, 29, 34)
    with torch.no_grad():
        assert error(fast(clip), model(clip)) < ROUNDING[torch.float32]
    assert {row.backend for row in chosen if row.stage == choice.CONVOLVE} == {"onednn"}


@settings(deadline=None)  # four networks each, on however busy a machine
@given(
    size=st.tuples(*[st.integers(1, 40)] * 2),
    kernel=st.sampled_from([(3, 3), (5, 5), (3, 5), (1, 3), (1, 1)]),
    stride=st.sampled_from([1, 2]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    batch=st.integers(1, 2),
)
def test_turned_frames_give_the_same_logits(
    tiny_spec: Any,
    randomised: Any,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    dtype: torch.dtype,
    batch: int,
) -> None:
    spec = tiny_spec("base")
    stem = dataclasses.replace(spec.stem, kernel_size=(1, *kernel[::-1]))
    block = dataclasses.replace(
        spec.blocks[0],
        kernel_sizes=((3, *kernel), (1, *kernel)),
        strides=((1, stride, stride), (1, 1, 1)),
    )
    model = randomised(MoViNet(spec.replace(stem=stem, blocks=(block,)))).to(dtype)
    clip = torch.rand(batch, 3, 3, *size, dtype=dtype)
    fast = fold_network(model)
    # The stem has stride 2.
    assert fast.turned == (min(kernel) > 1)
    expected = model(clip)
    networks = [fast, fold_network(model, turn=False)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extension, "libraries", lambda: ())
        networks += [fold_network(model), fold_network(model, turn=False)]
        by_operations = [network_(clip) for network_ in networks[2:]]
    for found in (*by_operations, *(network_(clip) for network_ in networks[:2])):
        assert error(found, expected) < ROUNDING[dtype]


def test_an_even_kernel_is_not_turned(build: Any) -> None:
    model = build("base", stem=StemSpec(filters=8, kernel_size=(1, 4, 3)))
    fast = fold_network(model)
    assert not fast.turned
    clip = torch.rand(1, 3, 3, 21, 24)
    assert error(fast(clip), model(clip)) < ROUNDING[torch.float32]


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("size", [(21, 24), (24, 21), (23, 23), (24, 24)], ids=_name)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_tap_sees_and_replaces_frames_as_they_were(
    build: Any, size: tuple[int, int], batch: int
) -> None:
    model = build("base")
    clip = torch.rand(batch, 3, 3, *size)

    def values(network_: FastMoViNet, replaced: str = "") -> dict[str, torch.Tensor]:
        seen = {}

        def tap(name: str, value: torch.Tensor) -> torch.Tensor:
            seen[name] = value.clone()
            if name != replaced:
                return value
            ramp = torch.linspace(0.5, 2, value[0].numel()).view(value.shape[1:])
            return value * ramp

        network_.run(clip, None, tap)
        return seen

    turned, upright = fold_network(model), fold_network(model, turn=False)
    assert (turned.turned, upright.turned) == (True, False)
    expected = values(upright)
    for replaced in ("", *expected):
        found, expected = values(turned, replaced), values(upright, replaced)
        assert found.keys() == expected.keys()
        assert all(error(found[name], expected[name]) < 1e-4 for name in expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 2), (5, 5), (6, 5), (7, 8), (8, 8)])
@pytest.mark.parametrize("backend", ["native", "operations"])
@pytest.mark.parametrize("turn", [False, True])
def test_a_pool_of_a_skip_is_the_readable_one(
    build: Any, size: tuple[int, int], backend: str, turn: bool
) -> None:
    # A layer that pools 8 channels.
    layer = fold_network(build("base"), turn=turn).bottlenecks[0]
    case = Case(1, 3, *size, torch.float32, "cpu")
    (row,) = (row for row in choice.TABLE if (row.stage, row.backend) == (choice.POOL, backend))
    if not row.takes(layer, case):
        pytest.skip(f"no {backend} here")
    x = torch.rand(3, *size, 8)
    expected = AveragePool()(x.permute(3, 0, 1, 2)[None])[0].permute(1, 2, 3, 0)
    average = row.make(layer, case)
    found = average(x.flip(1, 2)).flip(1, 2) if turn else average(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=_name)
def test_the_mode_and_the_later_training_of_the_model_do_not_matter(build: Any, dtype: Any) -> None:
    model = build("base").to(dtype)
    clip = torch.rand(1, 3, 3, 32, 32, dtype=dtype)
    expected = model(clip)
    fast = optimize(model.train())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert error(fast(clip), expected) < ROUNDING[dtype]


def test_the_fast_network_has_no_gradients(build: Any) -> None:
    fast = optimize(build("base"))
    assert not list(fast.parameters())
    assert not fast(torch.rand(1, 3, 2, 32, 32, requires_grad=True)).requires_grad


def test_another_size_needs_a_new_video(build: Any) -> None:
    fast = optimize(build())
    fast(torch.rand(1, 3, 1, 32, 32))
    with pytest.raises(StateError, match="clean_activation_buffers"):
        fast(torch.rand(1, 3, 1, 48, 32))
    fast.clean_activation_buffers()
    fast(torch.rand(1, 3, 1, 48, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": "fastest"}, "level is 'fastest'"),
        ({"level": "aot"}, "movinet-port compile"),
        ({"quantize": "int4"}, "quantize is 'int4'"),
        ({"quantize": "int8", "level": "compile"}, "level 'eager'"),
        ({"quantize": "int8", "dtype": torch.bfloat16}, "float32"),
    ],
)
def test_what_a_level_cannot_do_is_one_line(
    build: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        optimize(build(), **arguments)
    assert "\n" not in str(caught.value)


def test_a_network_without_weights_is_refused(mini_spec: Any) -> None:
    with torch.device("meta"):
        model = MoViNet(mini_spec())
    with pytest.raises(SpecError, match="no weights"):
        optimize(model)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(
    ("options", "largest"),
    [({"dtype": torch.bfloat16}, 0.2), ({"quantize": "int8"}, 0.2)],
    ids=["bfloat16", "int8"],
)
@pytest.mark.parametrize("mode", ["base", "stream"])
def test_lower_precision_stays_near_and_is_not_the_default(
    build: Any, mode: str, options: dict[str, Any], largest: float
) -> None:
    model = build(mode)
    low = agreement(model, optimize(model, **options), clips=4, size=(32, 32))
    plain = agreement(model, optimize(model), clips=4, size=(32, 32))
    assert plain.logits < ROUNDING[torch.float32]
    assert plain.top1 == 1.0
    assert 10 * plain.rms < low.rms < largest


def test_load_optimises(build: Any, tmp_path: Path) -> None:
    model = build("base")
    checkpoint = movinet_port.Checkpoint(model.spec, model.state_dict(), labels=tuple("abcdefg"))
    movinet_port.save(checkpoint, tmp_path / "mini.pt")
    fast = movinet_port.load(tmp_path / "mini.pt", optimize="eager")
    assert isinstance(fast, FastMoViNet)
    assert fast.labels == tuple("abcdefg")
    clip = torch.rand(1, 3, 2, 32, 32)
    assert error(fast(clip), model(clip)) < ROUNDING[torch.float32]


@combined(ARCHITECTURES, strip=[None, 900], turn=[False, True])
def test_what_a_compiler_is_given_computes_the_same(
    build: Any,
    mode: str,
    changes: Any,
    strip: int | None,
    turn: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(mode, **changes)
    fast = fold_network(model, turn=turn)
    if strip is not None:
        monkeypatch.setattr(inductor, "STRIP_BYTES", strip)
    chosen = record_rows(monkeypatch)
    video = torch.rand(1, 3, 5, 37, 30)
    # Single frames, which a base network takes too, and more at once.
    clips = video.split((4, 1) if mode == "base" else (1, 1, 3), dim=2)
    expected = [model(clip).detach() for clip in clips]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert max(map(error, map(fast, clips), expected)) < ROUNDING[torch.float32]
    used = {(row.stage, row.backend) for row in chosen}
    assert ((choice.CONVOLVE, "inductor") in used) == (strip is not None)
    assert not {"native", "onednn"} & {backend for _, backend in used}


@pytest.mark.parametrize("clip", [1, 2, 3, 9])
def test_a_state_moves_on_in_order_like_one_taken_apart(build: Any, clip: int) -> None:
    state = StreamState.of(build().init_state(1, 20, 24))
    layout = StateLayout.of(state)
    frames = {name: tuple(torch.rand(1, 2) for _ in held) for name, held in state.frames.items()}
    fresh = {name: tuple(torch.rand(1, 2) for _ in range(clip)) for name in frames}
    pools = {name: torch.rand(1, 2) for name in state.pools}
    count = torch.tensor([7])
    new = [t for n, held in frames.items() for t in fresh[n][-min(clip, len(held)) :]]
    before = StreamState(frames, state.pools, state.count).flat()
    after = layout.lazily(layout.advance(clip)([*before, *new, *pools.values(), count]))
    for name, held in frames.items():
        kept = (*held, *fresh[name])[-len(held) :]
        assert all(a is b for a, b in zip(after.frames[name], kept, strict=True))
    assert all(after.pools[name] is pool for name, pool in pools.items())
    assert after.count is count


@given(m=st.integers(1, 20_000), n=st.integers(1, 700), threads=st.integers(1, 16))
@pytest.mark.parametrize("lanes", [8, 16])
def test_a_product_is_computed_in_blocks_that_fit_and_share_the_work(
    m: int, n: int, threads: int, lanes: int
) -> None:
    block = kernels.best_block(m, n, threads, lanes)
    assert block in kernels.blocks(lanes)
    least = m * n / lanes / 2 / threads
    assert kernels.steps(m, n, threads, *block, lanes) >= least
    for other in kernels.blocks(lanes):
        assert kernels.steps(m, n, threads, *block, lanes) <= 1.02 * kernels.steps(
            m, n, threads, *other, lanes
        )


def test_inductors_own_kernels_are_back_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    with kernels.own_products():
        from torch._inductor.codegen import cpp_micro_gemm

        during = dict(cpp_micro_gemm.micro_gemm_configs)
    before = dict(cpp_micro_gemm.micro_gemm_configs)
    assert during != before
    with pytest.raises(KeyboardInterrupt), kernels.own_products():
        raise KeyboardInterrupt
    assert cpp_micro_gemm.micro_gemm_configs == before
    monkeypatch.delattr(cpp_micro_gemm, "CppMicroGemmFP32Vec")
    with kernels.own_products():
        assert cpp_micro_gemm.micro_gemm_configs == before


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("mode", ["base", "stream"])
@pytest.mark.parametrize("name", movinet_port.list_models())
def test_every_member_of_the_family_is_optimised_exactly(
    name: str, mode: str, randomised: Callable[..., Any]
) -> None:
    with torch.device("meta"):
        model = movinet_port.create_model(name, mode, num_classes=11)
    model = randomised(model.to_empty(device="cpu"))
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm3d):
            # Random statistics would let the activations of a hundred layers grow without bound.
            norm.running_mean.zero_()
            norm.running_var.fill_(1.0)
    video = torch.rand(1, 3, 3, 33, 38, generator=torch.Generator().manual_seed(0))
    parts = (3,) if mode == "base" else (1, 2)
    fast = optimize(model)
    assert isinstance(fast, FastMoViNet)
    assert fast.turned == (mode == "base")
    # In float64, because the readable network rounds as much as the fast one.
    found, expected = watch(fast, video, parts), watch(model.double(), video.double(), parts)
    assert all(bool(torch.isfinite(logits).all()) for logits in expected)
    assert max(map(error, found, expected)) < ROUNDING[torch.float32]
