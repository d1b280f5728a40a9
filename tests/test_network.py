"""The layers against direct loops, and the network's outside: shapes, names, errors."""

from __future__ import annotations

import itertools
import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from movinet_port import (
    BlockSpec,
    HeadSpec,
    ModelSpec,
    MoViNet,
    SpecError,
    StateError,
    StemSpec,
    create_model,
    get_spec,
    list_models,
)
from movinet_port.config import _C
from movinet_port.functions import ACTIVATIONS, GATES, Function
from movinet_port.layers import (
    AveragePool,
    ClipPool,
    Conv,
    CumulativePool,
    PositionalEncoding,
    legacy_padding,
    same_padding,
)
from movinet_port.spec import Activation, Gate

pytestmark = pytest.mark.usefixtures("one_thread")

# Direct loops ----------------------------------------------------------------------------------


def smallest_same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's definition: ceil(size / stride) outputs from the least padding that gives them,
    the odd cell after."""
    outputs = math.ceil(size / stride)
    for total in itertools.count():
        positions = [s for s in range(0, size + total - kernel + 1) if s % stride == 0]
        if len(positions) >= outputs:
            return total // 2, total - total // 2
    raise AssertionError


def windows(
    shape: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...], before: list[int]
) -> Any:
    """Yield each output cell with the (kernel cell, input cell) pairs inside the input."""
    outputs = [math.ceil(n / s) for n, s in zip(shape, strides, strict=True)]
    for out in np.ndindex(*outputs):
        pairs = []
        for tap in np.ndindex(*kernel):
            cell = tuple(
                o * s + t - b for o, s, t, b in zip(out, strides, tap, before, strict=True)
            )
            if all(0 <= c < n for c, n in zip(cell, shape, strict=True)):
                pairs.append((tap, cell))
        yield out, pairs


def direct_conv(
    x: np.ndarray, weight: np.ndarray, strides: tuple[int, ...], before: list[int], depthwise: bool
) -> np.ndarray:
    """Convolve (channels, frames, height, width) by the definition."""
    shape, kernel = x.shape[1:], weight.shape[2:]
    size = [math.ceil(n / s) for n, s in zip(shape, strides, strict=True)]
    result = np.zeros((weight.shape[0], *size))
    for out, pairs in windows(shape, kernel, strides, before):
        for tap, cell in pairs:
            w = weight[(slice(None), slice(None), *tap)]
            value = x[(slice(None), *cell)]
            result[(slice(None), *out)] += w[:, 0] * value if depthwise else w @ value
    return result


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_same_padding_is_the_least_that_gives_ceil_of_size_over_stride(
    kernel: int, stride: int
) -> None:
    for size in range(1, 40):
        assert same_padding(size, kernel, stride) == smallest_same_padding(size, kernel, stride)


@pytest.mark.parametrize(
    ("size", "kernel", "expected"), [(172, 3, (0, 1)), (181, 3, (1, 1)), (86, 5, (1, 2))]
)
def test_same_padding_at_stride_2_by_hand(
    size: int, kernel: int, expected: tuple[int, int]
) -> None:
    assert same_padding(size, kernel, 2) == expected


@pytest.mark.parametrize(
    ("kernel", "expected"), [(1, (0, 0)), (2, (0, 1)), (3, (1, 1)), (4, (1, 2)), (5, (2, 2))]
)
def test_legacy_padding_is_kernel_minus_one_with_floor_half_before(
    kernel: int, expected: tuple[int, int]
) -> None:
    assert legacy_padding(kernel) == expected


@pytest.mark.parametrize("size", [(3, 6, 7), (4, 1, 5), (2, 9, 4), (1, 2, 2)])
@pytest.mark.parametrize("strides", [(1, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 3, 3), (5, 3, 3), (1, 5, 5), (2, 2, 4)])
@pytest.mark.parametrize("depthwise", [False, True])
def test_convolution_pads_same_in_space_and_time(
    kernel: Any, strides: Any, size: tuple[int, ...], depthwise: bool
) -> None:
    torch.manual_seed(0)
    conv = Conv(3, 3 if depthwise else 4, kernel, strides, groups=3 if depthwise else 1).double()
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    before = [
        smallest_same_padding(n, k, s)[0] for n, k, s in zip(size, kernel, strides, strict=True)
    ]
    expected = direct_conv(
        x[0].numpy(), conv.weight.detach().numpy(), strides, before, depthwise=depthwise
    )
    np.testing.assert_allclose(conv(x)[0].detach().numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("size", [(6, 7), (5, 8)])
@pytest.mark.parametrize("strides", [(1, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 3, 3), (3, 5, 5)])
def test_causal_convolution_pads_time_before_only(
    kernel: Any, strides: Any, size: tuple[int, ...], legacy: bool
) -> None:
    torch.manual_seed(0)
    conv = Conv(2, 3, kernel, strides, causal=True, legacy=legacy).double()
    assert conv.frames_before == kernel[0] - 1
    x = torch.randn(1, 2, 4, *size, dtype=torch.float64)
    past = torch.zeros(1, 2, kernel[0] - 1, *size, dtype=torch.float64)
    before = [kernel[0] - 1] + [
        (k - 1) // 2 if legacy else smallest_same_padding(n, k, s)[0]
        for n, k, s in zip(size, kernel[1:], strides[1:], strict=True)
    ]
    expected = direct_conv(
        x[0].numpy(), conv.weight.detach().numpy(), strides, before, depthwise=False
    )
    found = conv(torch.cat([past, x], dim=2))[0].detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 2), (5, 5), (6, 5), (7, 8), (8, 8)])
def test_strided_average_pool_ignores_padding(size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=(2, *size))
    before = [smallest_same_padding(n, 3, 2)[0] for n in size]
    expected = np.zeros((2, math.ceil(size[0] / 2), math.ceil(size[1] / 2)))
    for out, pairs in windows(size, (3, 3), (2, 2), before):
        expected[(slice(None), *out)] = sum(x[(slice(None), *cell)] for _, cell in pairs)
        expected[(slice(None), *out)] /= len(pairs)
    # Two channels become two frames of one channel: frames must not be mixed.
    for shape in ((1, 2, 1), (1, 1, 2), (2, 1, 1)):
        found = AveragePool()(torch.from_numpy(x.reshape(*shape, *size))).numpy()
        assert found.shape == (*shape, *expected.shape[1:])
        np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 4)])
def test_pool_that_counts_its_padding_divides_by_nine(size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, *size))
    wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns = (math.ceil(n / 2) for n in size)
    expected = np.empty((2, 3, rows, columns))
    for row, column in itertools.product(range(rows), range(columns)):
        window = wide[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        expected[:, :, row, column] = window.sum((2, 3)) / 9
    found = AveragePool(counts_padding=True)(torch.from_numpy(x[None])).numpy()[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_average_pool_of_ones_is_ones() -> None:
    assert torch.equal(AveragePool()(torch.ones(1, 2, 3, 5, 8)), torch.ones(1, 2, 3, 3, 4))


def test_every_function_that_a_spec_can_name_is_in_the_table() -> None:
    assert set(ACTIVATIONS) == set(get_args(Activation))
    assert set(GATES) == set(get_args(Gate))


@pytest.mark.parametrize(
    "function",
    [f for f in (*ACTIVATIONS.values(), *GATES.values()) if f.line],
    ids=lambda f: f.module.__name__,
)
def test_clipped_line_is_what_the_module_computes(function: Function) -> None:
    x = torch.linspace(-9, 9, 1801, dtype=torch.float64)
    line = (function.line.slope * x + function.line.constant).clamp(0, function.line.limit)
    torch.testing.assert_close(function.module()(x), line, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("gate", "points"),
    [
        ("hard_sigmoid_keras", {-3: 0, -2.5: 0, -1: 0.3, 0: 0.5, 1: 0.7, 2.5: 1, 3: 1, 99: 1}),
        (
            "hard_sigmoid_relu6",
            {-99: 0, -3: 0, -1: 0.33334, 0: 0.50001, 1: 0.66668, 3: 1.00002, 99: 1.00002},
        ),
        ("sigmoid", {-1: 0.2689414213699951, 0: 0.5, 1: 0.7310585786300049}),
    ],
)
def test_gate_at_hand_computed_points(
    mini_spec: Any, gate: str, points: dict[float, float]
) -> None:
    model = MoViNet(mini_spec("stream", gate=gate))
    module = model.block1_layer0.squeeze_excitation.expand.activation
    assert isinstance(module, GATES[gate].module)
    x = torch.tensor(list(points), dtype=torch.float64)
    expected = torch.tensor(list(points.values()), dtype=torch.float64)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("activation", "points"),
    [
        ("hard_swish", {-4: 0, -3: 0, -1.5: -0.375, 0: 0, 1: 2 / 3, 3: 3, 5: 5}),
        ("swish", {-1: -0.2689414213699951, 0: 0, 1: 0.7310585786300049}),
        ("relu", {-2: 0, 0: 0, 7: 7}),
        ("relu6", {-2: 0, 0: 0, 3: 3, 7: 6}),
    ],
)
def test_activation_at_hand_computed_points(
    mini_spec: Any, activation: str, points: dict[float, float]
) -> None:
    model = MoViNet(mini_spec("stream", activation=activation))
    x = torch.tensor(list(points), dtype=torch.float64)
    expected = torch.tensor(list(points.values()), dtype=torch.float64)
    backbone = model.block1_layer0
    for block in (
        *(model.stem, model.head, backbone.expansion, backbone.depthwise),
        backbone.squeeze_excitation.reduce,
    ):
        torch.testing.assert_close(block.activation(x), expected, rtol=0, atol=1e-7)
    temporal = backbone.depthwise.temporal_activation
    torch.testing.assert_close(temporal(x), expected, rtol=0, atol=1e-7)


def test_classifier_keeps_swish_whatever_the_backbone_has() -> None:
    with torch.device("meta"):
        model = create_model("a0", mode="stream")
    assert isinstance(model.classifier.hidden.activation, nn.SiLU)
    assert model.classifier.hidden.norm is None
    assert model.classifier.output.activation is None


def test_projection_and_skip_have_no_activation(mini_spec: Any) -> None:
    model = MoViNet(mini_spec("stream"))
    assert model.block1_layer0.projection.activation is None
    assert model.block1_layer0.skip.activation is None
    assert model.block1_layer1.skip is None


@pytest.mark.parametrize("channels", [1, 6, 7])
def test_positional_encoding_is_all_sines_then_all_cosines(channels: int) -> None:
    frames, first, scale = 5, [0, 3, 10_000], 0.7
    x = np.random.default_rng(0).normal(size=(3, channels, frames))
    expected = x.copy()
    for b, t in np.ndindex(3, frames):
        waves = [
            (math.sin if c % 2 == 0 else math.cos)(
                (first[b] + t) / 10_000 ** (2 * (c // 2) / channels)
            )
            for c in [*range(0, channels, 2), *range(1, channels, 2)]
        ]
        expected[b, :, t] += scale * np.array(waves)
    encoding = PositionalEncoding().double()
    nn.init.constant_(encoding.scale, scale)
    found = encoding(torch.from_numpy(x)[..., None, None], torch.tensor(first))
    np.testing.assert_allclose(found[..., 0, 0].detach().numpy(), expected, rtol=0, atol=1e-9)


def test_positional_encoding_starts_at_nothing() -> None:
    x = torch.randn(1, 4, 3, 1, 1)
    assert torch.equal(PositionalEncoding()(x, torch.tensor([5])), x)


def test_cumulative_pool_is_the_mean_over_all_frames_so_far() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 4, 5))
    expected = np.stack([x[:, :, : t + 1].mean(axis=(2, 3, 4)) for t in range(6)], axis=2)
    pool, count = CumulativePool(), torch.zeros(2, dtype=torch.int64)
    buffer, found = None, []
    for clip in torch.from_numpy(x).split([1, 3, 2], dim=2):
        mean, buffer = pool(clip, buffer, count)
        count = count + clip.shape[2]
        found.append(mean)
    np.testing.assert_allclose(
        torch.cat(found, dim=2)[..., 0, 0].numpy(), expected, rtol=0, atol=1e-12
    )


def test_clip_pool_is_the_mean_over_all_frames_so_far() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 4, 5))
    pool, count, buffer = ClipPool(), torch.zeros(2, dtype=torch.int64), None
    seen = 0
    for clip in torch.from_numpy(x).split([1, 3, 2], dim=2):
        mean, buffer = pool(clip, buffer, count)
        count, seen = count + clip.shape[2], seen + clip.shape[2]
        expected = x[:, :, :seen].mean(axis=(2, 3, 4))
        np.testing.assert_allclose(mean[..., 0, 0, 0].numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pool", [CumulativePool(), ClipPool()])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mean_over_a_long_video_does_not_lose_count_in_half_precision(
    pool: nn.Module, dtype: torch.dtype
) -> None:
    count, buffer = torch.zeros(1, dtype=torch.int64), None
    for _ in range(40):
        mean, buffer = pool(torch.full((1, 2, 100, 3, 3), 1.5, dtype=dtype), buffer, count)
        count = count + 100
    assert mean.dtype == dtype
    assert torch.equal(mean[:, :, -1:], torch.full((1, 2, 1, 1, 1), 1.5, dtype=dtype))


# Squeeze-excitation, by the definition ---------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("se_type", ["3d", "2d", "2plus3d"])
def test_squeeze_excitation_gates_by_what_its_type_pools(
    mini_spec: Any, randomised: Any, se_type: str, causal: bool
) -> None:
    """Base pools over the whole clip, causal over the frames so far; 3-D comes before 2-D."""
    spec = mini_spec("base", se_type=se_type, causal=causal)
    se = randomised(MoViNet(spec)).double().block1_layer0.squeeze_excitation
    x = np.random.default_rng(0).normal(size=(24, 4, 3, 5))
    space = x.mean(axis=(2, 3))
    time = [x[:, : t + 1 if causal else None].mean(axis=(1, 2, 3)) for t in range(4)]
    pooled = {
        "3d": np.stack(time, axis=1),
        "2d": space,
        "2plus3d": np.concatenate([np.stack(time, axis=1), space]),
    }[se_type]
    weights = {name: value.detach().numpy() for name, value in se.state_dict().items()}
    hidden = weights["reduce.conv.weight"][:, :, 0, 0, 0] @ pooled
    hidden += weights["reduce.conv.bias"][:, None]
    hidden = hidden / (1 + np.exp(-hidden))
    gate = weights["expand.conv.weight"][:, :, 0, 0, 0] @ hidden
    gate += weights["expand.conv.bias"][:, None]
    expected = x / (1 + np.exp(-gate))[:, :, None, None]
    found, _ = se(torch.from_numpy(x)[None], None, torch.zeros(1, dtype=torch.int64))
    np.testing.assert_allclose(found[0].detach().numpy(), expected, rtol=0, atol=1e-10)


# The whole network -----------------------------------------------------------------------------


# Trainable parameters of tf-models-official 2.20.0, counted there (base, stream).
PARAMETERS = {
    "a0": (3_111_799, 3_748_031),
    "a1": (4_690_296, 6_447_352),
    "a2": (5_249_562, 7_326_962),
    "a3": (7_397_545, 10_986_618),
    "a4": (11_349_463, 18_136_182),
    "a5": (18_650_523, 31_495_934),
    "t0": (1_727_414, 2_368_958),
}


@pytest.mark.parametrize("mode", ["base", "stream"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_as_many_parameters_as_the_authors(name: str, mode: str) -> None:
    with torch.device("meta"):
        model = create_model(name, mode=mode)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == PARAMETERS[name][mode == "stream"]


@pytest.mark.parametrize("mode", ["base", "stream"])
@pytest.mark.parametrize("name", list_models())
def test_every_member_builds(name: str, mode: str) -> None:
    with torch.device("meta"):
        model = create_model(name, mode=mode, num_classes=600)
        clip = torch.empty(1, 3, 2, 64, 64)
        assert model(clip).shape == (1, 600)
    assert model.spec == get_spec(name, mode)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["a0", "a1", "a2", "a3", "a4", "a5"])
def test_config_node_builds_the_published_network(name: str, causal: bool) -> None:
    node = getattr(_C.MODEL, f"MoViNet{name.upper()}")
    with torch.device("meta"):
        model = MoViNet(node, 600, causal=causal)
        same = MoViNet(node, causal=causal, num_classes=600)
    assert model.spec == same.spec == get_spec(name, "stream" if causal else "base")


def test_config_node_and_name_build_the_same_weights() -> None:
    torch.manual_seed(0)
    by_node = MoViNet(_C.MODEL.MoViNetA0, 5, causal=True)
    torch.manual_seed(0)
    by_name = create_model("a0", mode="stream", num_classes=5)
    expected = by_name.state_dict()
    assert by_node.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in by_node.state_dict().items())


def test_node_without_causal_is_the_stream_network_as_in_the_first_port() -> None:
    with torch.device("meta"):
        assert MoViNet(_C.MODEL.MoViNetA0, 600).spec == get_spec("a0", "stream")
        assert MoViNet(_C.MODEL.MoViNetA0, 600, causal=False).spec == get_spec("a0", "base")


def test_second_argument_is_the_number_of_classes() -> None:
    with torch.device("meta"):
        assert MoViNet(_C.MODEL.MoViNetA0, 11).classifier.output.conv.out_channels == 11
    with pytest.raises(SpecError, match=r"MoViNet\(cfg, 600, causal=True\)"):
        MoViNet(_C.MODEL.MoViNetA0, True)


@pytest.mark.parametrize("number", [0, -1, "600", 1.5])
def test_number_of_classes_that_is_none_is_a_spec_error(tiny_spec: Any, number: Any) -> None:
    with pytest.raises(SpecError, match="num_classes"):
        create_model("a0", num_classes=number)
    with pytest.raises(SpecError, match="num_classes"):
        MoViNet(_C.MODEL.MoViNetA0, number)
    model = MoViNet(tiny_spec())
    with pytest.raises(SpecError, match="num_classes"):
        model.reset_classifier(number)
    assert model.spec == tiny_spec()


@pytest.mark.parametrize("rates", [{"dropout": 1.5}, {"stochastic_depth": -0.1}])
def test_rate_outside_0_and_1_is_a_spec_error(tiny_spec: Any, rates: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=next(iter(rates))):
        MoViNet(tiny_spec(), **rates)


@pytest.mark.parametrize("thing", ["a0", None, 5, {"variant": "a0"}, _C.MODEL])
def test_network_from_what_is_no_spec_says_what_it_wants(thing: Any) -> None:
    with pytest.raises((SpecError, AttributeError), match=r"_C\.MODEL") as caught:
        MoViNet(thing)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["base", "stream"])
@pytest.mark.parametrize(
    ("frames", "height", "width"), [(1, 32, 32), (1, 1, 1), (3, 17, 40), (8, 45, 33), (2, 3, 64)]
)
def test_any_size_and_number_of_frames(
    mini_spec: Any, randomised: Any, video: Any, mode: str, frames: int, height: int, width: int
) -> None:
    model = randomised(MoViNet(mini_spec(mode)))
    logits = model(video(2, frames, height, width, dtype=torch.float32))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert logits[0].ne(logits[1]).any()


@pytest.mark.parametrize("mode", ["base", "stream"])
def test_videos_of_a_batch_do_not_see_each_other(
    mini_spec: Any, randomised: Any, video: Any, mode: str
) -> None:
    model = randomised(MoViNet(mini_spec(mode))).double()
    clip = video(3)
    together = model.features(clip)
    for index in range(3):
        alone = model.features(clip[index : index + 1])
        for name, value in alone.items():
            torch.testing.assert_close(value[0], together[name][index], rtol=0, atol=1e-10)


@pytest.mark.parametrize("se_type", ["3d", "2plus3d", "2d", "none"])
@pytest.mark.parametrize("conv_type", ["3d", "2plus1d"])
def test_stream_network_does_not_look_ahead(
    mini_spec: Any, randomised: Any, video: Any, conv_type: str, se_type: str
) -> None:
    model = randomised(MoViNet(mini_spec("stream", conv_type=conv_type, se_type=se_type))).double()
    clip = video(1)
    other = clip.clone()
    other[:, :, 4:] = 1 - other[:, :, 4:]
    one, two = model.features(clip), model.features(other)
    for name in model.layer_names:
        torch.testing.assert_close(one[name][:, :, :4], two[name][:, :, :4], rtol=0, atol=1e-12)
        assert one[name][:, :, 4].ne(two[name][:, :, 4]).any()


@pytest.mark.parametrize("conv_type", ["3d", "2plus1d"])
def test_base_network_looks_ahead(
    mini_spec: Any, randomised: Any, video: Any, conv_type: str
) -> None:
    model = randomised(MoViNet(mini_spec(conv_type=conv_type, se_type="none"))).double()
    clip = video(1)
    other = clip.clone()
    other[:, :, 1:] = 1 - other[:, :, 1:]
    last = model.layer_names[-1]
    assert model.features(clip)[last][:, :, 0].ne(model.features(other)[last][:, :, 0]).any()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("stem", [(1, 3, 3), (3, 3, 3), (5, 2, 4)])
def test_2plus1d_and_3d_2plus1d_are_one_function_of_one_state_dict(
    mini_spec: Any, randomised: Any, video: Any, stem: Any, causal: bool
) -> None:
    spec = mini_spec("stream", causal=causal, stem=StemSpec(8, stem), conv_type="2plus1d")
    flat = randomised(MoViNet(spec))
    cubic = MoViNet(spec.replace(conv_type="3d_2plus1d")).eval()
    cubic.load_state_dict(flat.state_dict())
    clip = video(dtype=torch.float32)
    assert torch.equal(flat(clip), cubic(clip))


@pytest.mark.parametrize(("conv_type", "parts"), [("3d", 1), ("2plus1d", 2), ("3d_2plus1d", 2)])
@pytest.mark.parametrize("causal", [False, True])
def test_stem_with_several_frames_matches_direct_loops(
    mini_spec: Any, randomised: Any, conv_type: str, parts: int, causal: bool
) -> None:
    spec = mini_spec(causal=causal, conv_type=conv_type, stem=StemSpec(4, (3, 3, 3)))
    model = randomised(MoViNet(spec)).double()
    clip = torch.rand(1, 3, 4, 5, 6, dtype=torch.float64)
    weights = {name: value.numpy() for name, value in model.stem.state_dict().items()}

    def norm_and_swish(x: np.ndarray, prefix: str) -> np.ndarray:
        mean, var, gamma, beta = (
            weights[f"{prefix}norm.{leaf}"][:, None, None, None]
            for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / np.sqrt(var + 1e-3) * gamma + beta
        return x / (1 + np.exp(-x))

    time = 2 if causal else 1
    space = [smallest_same_padding(5, 3, 2)[0], smallest_same_padding(6, 3, 2)[0]]
    before = [time if parts == 1 else 0, *space]
    x = direct_conv(clip[0].numpy(), weights["conv.weight"], (1, 2, 2), before, depthwise=False)
    x = norm_and_swish(x, "")
    if parts == 2:
        kernel = weights["temporal_conv.weight"]
        x = direct_conv(x, kernel, (1, 1, 1), [time, 0, 0], depthwise=False)
        x = norm_and_swish(x, "temporal_")
    found = model.features(clip)["stem"][0].detach().numpy()
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", ["base", "stream"])
def test_every_norm_has_the_specs_epsilon_and_the_published_momentum(
    mini_spec: Any, mode: str
) -> None:
    model = MoViNet(mini_spec(mode, norm_epsilon=0.004))
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    # One behind every convolution without a bias, and there only.
    assert len(norms) == sum(m.bias is None for m in model.modules() if isinstance(m, nn.Conv3d))
    assert {(norm.eps, norm.momentum) for norm in norms} == {(0.004, 0.01)}


@pytest.mark.parametrize("mode", ["base", "stream"])
def test_rezero_and_positional_encoding_start_at_0_and_everything_else_does_not(
    mini_spec: Any, mode: str
) -> None:
    model = MoViNet(mini_spec(mode, positional_encoding=mode == "stream"))
    for name, parameter in model.named_parameters():
        starts_at_0 = name.endswith((".scale", ".bias"))
        assert parameter.eq(0).all() if starts_at_0 else parameter.ne(0).all(), name


_sizes = st.integers(1, 24)
_kernels = st.tuples(st.sampled_from([1, 2, 3, 5]), st.integers(1, 5), st.integers(1, 5))
_strides = st.sampled_from([(1, 1, 1), (1, 2, 2)])


@st.composite
def _any_spec(draw: st.DrawFn) -> ModelSpec:
    def block() -> BlockSpec:
        depth = draw(st.integers(1, 2))
        layers = [(draw(_sizes), draw(_kernels), draw(_strides)) for _ in range(depth)]
        return BlockSpec(draw(_sizes), *zip(*layers, strict=True))

    se_type = draw(st.sampled_from(["3d", "2d", "2plus3d", "none"]))
    causal = draw(st.booleans())
    return ModelSpec(
        name="custom",
        stem=StemSpec(draw(_sizes), draw(_kernels), draw(_strides)),
        blocks=tuple(block() for _ in range(draw(st.integers(1, 3)))),
        head=HeadSpec(draw(_sizes), draw(_sizes)),
        num_classes=draw(_sizes),
        causal=causal,
        conv_type=draw(st.sampled_from(["3d", "2plus1d", "3d_2plus1d"])),
        se_type=se_type,
        activation=draw(st.sampled_from(["swish", "hard_swish", "relu", "relu6"])),
        positional_encoding=causal and se_type != "none" and draw(st.booleans()),
    )


@settings(max_examples=25, deadline=None)
@given(_any_spec(), st.integers(1, 4), st.integers(1, 20), st.integers(1, 20))
def test_any_widths_depths_and_kernels_build_and_run(
    spec: ModelSpec, frames: int, height: int, width: int
) -> None:
    model = MoViNet(spec).eval()
    clip = torch.rand(2, 3, frames, height, width)
    assert model(clip).shape == (2, spec.num_classes)
    widths = {layer.name: layer.out_filters for layer in spec.layers()}
    endpoints = model.features(clip)
    assert list(endpoints) == ["stem", *widths, "head"]
    for name, filters in widths.items():
        assert endpoints[name].shape[:3] == (2, filters, frames)


# Features and fine-tuning ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["base", "stream"])
def test_features_have_the_resolution_of_their_stage(
    mini_spec: Any, randomised: Any, video: Any, mode: str
) -> None:
    model = randomised(MoViNet(mini_spec(mode))).double()
    shapes = {
        name: tuple(value.shape) for name, value in model.features(video(2, 3, 45, 70)).items()
    }
    assert shapes == {
        "stem": (2, 8, 3, 23, 35),
        "block0_layer0": (2, 8, 3, 12, 18),
        "block1_layer0": (2, 16, 3, 6, 9),
        "block1_layer1": (2, 16, 3, 6, 9),
        "block2_layer0": (2, 16, 3, 3, 5),
        "block2_layer1": (2, 16, 3, 3, 5),
        "block3_layer0": (2, 24, 3, 3, 5),
        "block3_layer1": (2, 24, 3, 3, 5),
        "block4_layer0": (2, 32, 3, 2, 3),
        "block4_layer1": (2, 32, 3, 2, 3),
        "head": (2, 48, 1, 1, 1),
    }


@pytest.mark.parametrize("mode", ["base", "stream"])
def test_features_are_what_the_logits_come_from(
    mini_spec: Any, randomised: Any, video: Any, mode: str
) -> None:
    model = randomised(MoViNet(mini_spec(mode))).double()
    endpoints = model.features(video())
    assert torch.equal(model.classifier(endpoints["head"]), model(video()))
    pooled = model.head(endpoints["block4_layer1"]).mean(dim=(2, 3, 4), keepdim=True)
    torch.testing.assert_close(endpoints["head"], pooled, rtol=0, atol=1e-12)


def test_features_leave_the_video_in_flight_alone(
    mini_spec: Any, randomised: Any, video: Any
) -> None:
    model = randomised(MoViNet(mini_spec("stream"))).double()
    expected = model(video())
    model.clean_activation_buffers()
    first, second = video().split([3, 4], dim=2)
    model(first)
    model.features(video(1, 2, 32, 32))
    torch.testing.assert_close(model(second), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", ["base", "stream"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_reset_classifier_replaces_the_last_layer_only(
    mini_spec: Any, randomised: Any, video: Any, mode: str, dtype: torch.dtype
) -> None:
    model = randomised(MoViNet(mini_spec(mode))).to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.reset_classifier(3)
    after = model.state_dict()
    assert model.spec == mini_spec(mode, num_classes=3)
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"classifier.output.conv.weight", "classifier.output.conv.bias"}
    assert after["classifier.output.conv.weight"].shape == (3, 64, 1, 1, 1)
    assert {value.dtype for name, value in after.items() if "num_batches" not in name} == {dtype}
    assert after["classifier.output.conv.weight"].ne(0).all()
    assert after["classifier.output.conv.bias"].eq(0).all()
    again = MoViNet(model.spec).to(dtype).eval()
    again.load_state_dict(after)
    clip = video(1, 2, 32, 32, dtype=torch.float32)
    if dtype == torch.float64:
        assert torch.equal(model(clip.double()), again(clip.double()))


def test_reset_classifier_leaves_the_video_in_flight_alone(
    mini_spec: Any, randomised: Any, video: Any
) -> None:
    model = randomised(MoViNet(mini_spec("stream"))).double()
    first, second = video().split([3, 4], dim=2)
    model(first)
    model.reset_classifier(3)
    endpoints = model.features(video())
    torch.testing.assert_close(
        model(second), model.classifier(endpoints["head"]), rtol=0, atol=1e-10
    )


# Errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["forward", "features", "step"])
@pytest.mark.parametrize("mode", ["base", "stream"])
@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((1, 4, 32, 32, 3), r"\(1, 4, 32, 32, 3\).*permute\(0, 4, 1, 2, 3\)"),
        ((3, 4, 32, 32), r"\(3, 4, 32, 32\)"),
        ((1, 1, 4, 32, 32), r"\(1, 1, 4, 32, 32\)"),
        ((1, 3, 0, 32, 32), "no frames"),
    ],
)
def test_clip_of_another_layout_is_refused(
    tiny_spec: Any, mode: str, call: str, shape: tuple[int, ...], match: str
) -> None:
    if (mode, call) == ("base", "step"):
        pytest.skip("a base network has no step")
    model = MoViNet(tiny_spec(mode)).eval()
    state = (model.init_state(1, 32, 32),) if call == "step" else ()
    with pytest.raises(StateError, match=match) as caught:
        getattr(model, call)(torch.zeros(shape), *state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["base", "stream"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64], ids=str)
def test_clip_of_whole_numbers_is_refused_with_what_to_do(
    tiny_spec: Any, mode: str, dtype: torch.dtype
) -> None:
    """As videos are decoded: bytes from 0 to 255."""
    model = MoViNet(tiny_spec(mode)).eval()
    with pytest.raises(StateError, match=r"int.*\[0, 1\]") as caught:
        model(torch.zeros(1, 3, 2, 32, 32, dtype=dtype))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, clip: model.init_state(1, 32, 32),
        lambda model, clip: model.step(clip, {}),
    ],
)
def test_base_network_has_no_state(tiny_spec: Any, call: Any) -> None:
    model = MoViNet(tiny_spec()).eval()
    with pytest.raises(StateError, match="mode='stream'"):
        call(model, torch.rand(1, 3, 1, 32, 32))
    model.clean_activation_buffers()


def test_base_network_remembers_nothing(mini_spec: Any, randomised: Any, video: Any) -> None:
    model = randomised(MoViNet(mini_spec())).double()
    expected = model(video())
    model(video(1, 3, 32, 40, seed=1))
    assert torch.equal(model(video()), expected)
