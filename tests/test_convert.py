"""What the converter makes of SavedModels: their logits, and every variable used once."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import damage
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import converters
import movinet_port
import weights
from converters import ConversionError, VerificationError
from converters.deviations import era
from converters.verify import require, verify_saved_model
from movinet_port import ModelSpec, MoViNet
from movinet_port.agreement import LOGIT_BOUND, Agreement
from movinet_port.checkpoint import Checkpoint
from movinet_port.errors import MovinetPortError

DATA = Path(__file__).parent / "data"
SAMPLE = Path(weights.__file__).parent / "samples/movinet_mini_stream.tar.gz"
# The published widths, too large for this repository.
SHARED = Path(__file__).parents[2] / "shared/fixtures"

# Relative to the largest logit.
BOUND = 2e-5

PLAIN = {
    "causal": False,
    "conv_type": "3d",
    "se_type": "3d",
    "activation": "swish",
    "gate": "sigmoid",
    "classifier_activation": "swish",
    "positional_encoding": False,
    "causal_padding": "same",
    "norm_epsilon": 0.001,
}
ERA_1_STREAM = {**PLAIN, "causal": True, "causal_padding": "legacy"}
ERA_2_STREAM = {
    **PLAIN,
    "causal": True,
    "conv_type": "2plus1d",
    "se_type": "2plus3d",
    "activation": "hard_swish",
    "gate": "hard_sigmoid_keras",
}
ENCODED = {"positional_encoding": True}

K15, K33, K53 = (1, 5, 5), (3, 3, 3), (5, 3, 3)
# (filters, expanded filters, kernels, stride of the first layer)
MINI = (
    (8, (16,), (K15,), 2),
    (16, (24, 32), (K33, K33), 2),
    (16, (40, 24), (K53, K33), 2),
    (24, (40, 40), (K53, K33), 1),
    (32, (56, 48), (K53, K15), 2),
)
# The paper's table 7.
A0 = (
    (8, (24,), (K15,), 2),
    (32, (80, 80, 80), (K33, K33, K33), 2),
    (56, (184, 112, 184), (K53, K33, K33), 2),
    (56, (184, 184, 184, 184), (K53, K33, K33, K33), 1),
    (104, (384, 280, 280, 344), (K53, K15, K15, K15), 2),
)


@dataclasses.dataclass(frozen=True)
class Fixture:
    """A SavedModel of a past release, and what is known about it."""

    era: int
    fields: Mapping[str, Any]
    archive: Path
    expected: Path
    name: str = "custom"
    classes: int = 5
    blocks: tuple[Any, ...] = MINI


def _fixture(name: str, era: int, fields: Mapping[str, Any]) -> tuple[str, Fixture]:
    mini = "mini" in name
    folder = DATA if mini else SHARED
    known: dict[str, Any] = {} if mini else {"name": "a0", "classes": 10, "blocks": A0}
    archive, expected = folder / f"{name}.tar.gz", folder / f"{name}.expected.npz"
    return name, Fixture(era, fields, archive, expected, **known)


FIXTURES = dict(
    [
        _fixture("era1_mini_base", 1, PLAIN),
        _fixture("era1_mini_stream", 1, ERA_1_STREAM),
        _fixture("era2_mini_stream", 2, ERA_2_STREAM),
        _fixture("era2_mini_stream_posenc", 2, {**ERA_2_STREAM, **ENCODED}),
        _fixture("era3_mini_base", 3, PLAIN),
        _fixture("era3_mini_stream", 3, {**ERA_2_STREAM, **ENCODED, "gate": "hard_sigmoid_relu6"}),
        _fixture("era1_a0_base", 1, PLAIN),
        _fixture("era1_a0_stream", 1, ERA_1_STREAM),
        _fixture("era2_a0_stream", 2, ERA_2_STREAM),
    ]
)
FIXTURES["era3_mini_stream"] = dataclasses.replace(FIXTURES["era3_mini_stream"], archive=SAMPLE)


@functools.cache
def converted(name: str) -> converters.Conversion:
    fixture = FIXTURES[name]
    if not fixture.archive.exists() and fixture.archive.parent == SHARED:
        pytest.skip(f"{fixture.archive} is not on this machine")
    return converters.convert_source(fixture.archive, verify=False)


@functools.cache
def expected(name: str) -> Mapping[str, NDArray[np.float32]]:
    return {
        key: value.astype(np.float32) for key, value in np.load(FIXTURES[name].expected).items()
    }


def clip_of(name: str) -> torch.Tensor:
    """The fixture's video in PyTorch's layout."""
    return torch.from_numpy(expected(name)["video"]).permute(0, 4, 1, 2, 3)


def distance(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Largest difference relative to the largest logit."""
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@torch.inference_mode()
def whole_video_distance(name: str, model: MoViNet) -> float:
    return distance(model(clip_of(name)).numpy(), expected(name)["logits"])


@torch.inference_mode()
def frames_distance(name: str, model: MoViNet) -> float:
    frames = clip_of(name).split(1, dim=2)
    logits = [model(frame).numpy() for frame in frames]
    return distance(np.stack(logits, axis=1), expected(name)["frame_logits"])


STREAMS = [name for name in FIXTURES if "stream" in name]


# Logits


@pytest.mark.parametrize("name", FIXTURES)
def test_logits_of_the_whole_video_are_tensorflows(name: str) -> None:
    model = converted(name).checkpoint.build()
    assert whole_video_distance(name, model) <= BOUND


@pytest.mark.parametrize("name", STREAMS)
def test_logits_after_each_frame_are_tensorflows(name: str) -> None:
    model = converted(name).checkpoint.build()
    assert frames_distance(name, model) <= BOUND


def _add(amount: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor + amount


def _first_channel(factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: torch.cat([tensor[:1] * factor, tensor[1:]])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("era1_mini_base", {"gate": "hard_sigmoid_keras"}),
        ("era1_mini_base", {"activation": "hard_swish"}),
        ("era1_mini_base", {"norm_epsilon": 1e-5}),
        ("era1_mini_stream", {"gate": "hard_sigmoid_relu6"}),
        ("era1_mini_stream", {"causal_padding": "same"}),
        ("era2_mini_stream", {"gate": "hard_sigmoid_relu6"}),
        ("era2_mini_stream", {"gate": "sigmoid"}),
        ("era2_mini_stream", {"classifier_activation": "hard_swish"}),
        ("era2_mini_stream_posenc", {"gate": "hard_sigmoid_relu6"}),
        ("era3_mini_stream", {"gate": "hard_sigmoid_keras"}),
    ],
)
def test_no_other_spec_gives_the_logits(name: str, changes: dict[str, Any]) -> None:
    checkpoint = converted(name).checkpoint
    model = Checkpoint(checkpoint.spec.replace(**changes), checkpoint.state_dict).build()
    assert whole_video_distance(name, model) > 5 * BOUND


@pytest.mark.parametrize(
    ("name", "parameter", "change"),
    [
        ("era1_mini_base", "block2_layer1.projection.norm.running_mean", _first_channel(2.0)),
        ("era1_mini_stream", "block1_layer0.depthwise.norm.running_var", _first_channel(2.0)),
        ("era2_mini_stream", "block1_layer0.depthwise.temporal_norm.weight", _first_channel(2.0)),
        ("era2_mini_stream", "block3_layer1.rezero.scale", _add(0.01)),
        (
            "era2_mini_stream_posenc",
            "block2_layer0.squeeze_excitation.positional_encoding.scale",
            _add(0.01),
        ),
        (
            "era3_mini_stream",
            "block4_layer1.squeeze_excitation.positional_encoding.scale",
            _add(0.01),
        ),
    ],
)
def test_no_other_weights_give_the_logits(
    name: str, parameter: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    checkpoint = converted(name).checkpoint
    state_dict = dict(checkpoint.state_dict)
    state_dict[parameter] = change(state_dict[parameter])
    model = Checkpoint(checkpoint.spec, state_dict).build()
    assert whole_video_distance(name, model) > 3 * BOUND


def test_positional_encodings_of_two_blocks_cannot_be_swapped() -> None:
    # All of them have the full name "scale".
    name = "era2_mini_stream_posenc"
    checkpoint = converted(name).checkpoint
    one, other = (
        f"{layer}.squeeze_excitation.positional_encoding.scale"
        for layer in ("block1_layer0", "block3_layer0")
    )
    state_dict = dict(checkpoint.state_dict)
    state_dict[one], state_dict[other] = state_dict[other], state_dict[one]
    model = Checkpoint(checkpoint.spec, state_dict).build()
    assert frames_distance(name, model) > 3 * BOUND


def test_stream_logits_depend_on_the_frames_before() -> None:
    name = "era2_mini_stream"
    model = converted(name).checkpoint.build()
    with torch.inference_mode():
        last = model(clip_of(name)[:, :, -1:]).numpy()
    assert distance(last, expected(name)["frame_logits"][:, -1]) > 100 * BOUND


# What is recognised


@pytest.mark.parametrize("name", FIXTURES)
def test_spec_is_recognised(name: str) -> None:
    fixture, spec = FIXTURES[name], converted(name).checkpoint.spec
    assert {field: getattr(spec, field) for field in fixture.fields} == fixture.fields
    assert (spec.name, spec.num_classes) == (fixture.name, fixture.classes)
    assert spec.mode == ("stream" if fixture.fields["causal"] else "base")
    assert (spec.stem.filters, spec.stem.kernel_size, spec.stem.strides) == (
        8,
        (1, 3, 3),
        (1, 2, 2),
    )
    blocks = [
        (block.base_filters, block.expand_filters, block.kernel_sizes, block.strides[0][1])
        for block in spec.blocks
    ]
    assert tuple(blocks) == fixture.blocks
    for block in spec.blocks:
        assert block.strides[0][0] == 1
        assert block.strides[0][1] == block.strides[0][2]
        assert set(block.strides[1:]) <= {(1, 1, 1)}
    head = (480, 2048) if fixture.name == "a0" else (48, 64)
    assert (spec.head.project_filters, spec.head.head_filters) == head


@pytest.mark.parametrize("name", FIXTURES)
def test_era_is_recognised(name: str) -> None:
    assert converted(name).era == FIXTURES[name].era


@pytest.mark.parametrize(
    ("gate", "later_names", "number"),
    [
        ("hard_sigmoid_keras", False, 2),
        ("hard_sigmoid_keras", True, 2),
        ("hard_sigmoid_relu6", False, 3),
        ("sigmoid", False, 2),
        ("sigmoid", True, 3),
    ],
)
def test_gate_decides_the_era_and_names_where_it_does_not(
    gate: str, later_names: bool, number: int
) -> None:
    spec = converted("era2_mini_stream").checkpoint.spec.replace(gate=gate)
    assert era(spec, False, later_names) == number


@pytest.mark.parametrize("name", FIXTURES)
def test_nothing_is_assumed_where_there_is_a_graph(name: str) -> None:
    conversion = converted(name)
    assert {finding.how for finding in conversion.findings} == {"read"}
    assert {finding.field for finding in conversion.findings} == {*PLAIN}
    assert all(finding.where for finding in conversion.findings)
    assert conversion.checkpoint.provenance["assumed"] == {}


# Every variable once


@pytest.mark.parametrize("name", ["era1_mini_base", "era2_mini_stream_posenc", "era3_mini_stream"])
def test_every_variable_of_the_network_is_used_once(name: str, tmp_path: Path) -> None:
    conversion = converted(name)
    folder = damage.unpack(FIXTURES[name].archive, tmp_path)
    stored = damage.read_variables(folder / "variables/variables").tensors
    assert len(set(conversion.used)) == len(conversion.used)
    assert not set(conversion.used) & set(conversion.outside)
    assert len(conversion.used) + len(conversion.outside) == len(stored)
    # Every value is in the state dict, and nothing else is.
    ours = sum(t.numel() for n, t in conversion.checkpoint.state_dict.items() if "batches" not in n)
    total = sum(np.size(value) for value in stored.values())
    assert ours == total - len(conversion.outside)  # what is outside are scalars
    assert conversion.checkpoint.build().state_dict().keys() == (
        conversion.checkpoint.state_dict.keys()
    )


def test_optimizer_and_metrics_are_listed_and_left_out() -> None:
    assert any("optimizer" in path for path in converted("era1_mini_base").outside)
    assert any("metrics" in path for path in converted("era1_mini_base").outside)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The folder of a base SavedModel, to be damaged."""
    return damage.unpack(FIXTURES["era1_mini_base"].archive, tmp_path / "model")


def refusal(source: Path | str, **options: Any) -> str:
    """Return the one line that a source is refused with."""
    with pytest.raises(MovinetPortError) as caught:
        converters.convert(source, **{"verify": False, **options})
    text = str(caught.value)
    assert "\n" not in text
    assert str(source) in text
    return text


BETA = "b1/l0/bneck/expansion/bn/beta"
KERNEL = "b2/l0/bneck/feature/conv3d/kernel"


def _set(value: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def change(array: NDArray[Any]) -> NDArray[Any]:
        array.flat[2] = value
        return array

    return change


@pytest.mark.parametrize(
    ("harm", "listed"),
    [
        (lambda v: v.drop(BETA), ["block1_layer0.expansion.norm.bias"]),
        (lambda v: v.drop_value(BETA), [BETA, "not in the index"]),
        (
            lambda v: (v.drop(BETA), v.drop("b4/l1/scale")),
            ["block1_layer0.expansion.norm.bias", "block4_layer1.rezero.scale"],
        ),
        (lambda v: v.drop("stem/stem/conv3d/kernel"), ["stem.conv.weight"]),
        (lambda v: v.add("_surprise/weight", "surprise/weight", np.ones(3)), ["surprise/weight"]),
        (
            lambda v: v.add("_conv/bias", "b2/l0/extra/bias", np.ones(24, np.float32), KERNEL),
            ["block2_layer0.depthwise.conv.bias"],
        ),
        (
            lambda v: v.change(BETA, lambda a: a[:-1]),
            [BETA, "(23,)", "(24,)", "block1_layer0.expansion.norm.bias"],
        ),
        (lambda v: v.change(KERNEL, lambda a: a[0, 0]), [KERNEL, "rank"]),
        (
            lambda v: v.change("head/project/conv3d/kernel", lambda a: a[..., :-1]),
            ["47", "48", "head.norm.weight"],
        ),
        (lambda v: v.change(BETA, _set(np.nan)), [BETA, "1 of 24", "NaN"]),
        (lambda v: v.change(KERNEL, _set(np.inf)), [KERNEL, "1 of 1800", "infinite"]),
        (lambda v: v.change(KERNEL, _set(-np.inf)), [KERNEL, "1 of 1800", "infinite"]),
        (lambda v: v.change(BETA, lambda a: a.astype(np.int32)), [BETA, "int32", "floating"]),
        (
            lambda v: v.change(BETA, lambda a: a.astype(np.float64) * 1e300),
            [BETA, "24 of 24", "float32"],
        ),
    ],
    ids=[
        "missing",
        "missing_value",
        "missing_two",
        "missing_stem",
        "unknown",
        "extra",
        "shape",
        "rank",
        "width",
        "nan",
        "inf",
        "minus_inf",
        "integers",
        "too_large",
    ],
)
def test_damaged_variable_is_listed_by_name(
    base: Path, harm: Callable[[damage.Variables], object], listed: list[str]
) -> None:
    damage.rewrite(base, harm)
    text = refusal(base)
    for part in listed:
        assert part in text


def test_variables_written_back_unchanged_are_accepted(base: Path) -> None:
    damage.rewrite(base, lambda variables: None)
    found = converters.convert(base, verify=False).state_dict
    for name, tensor in converted("era1_mini_base").checkpoint.state_dict.items():
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floating_point_types_are_accepted(base: Path, dtype: Any) -> None:
    damage.rewrite(base, lambda v: v.change(BETA, lambda a: a.astype(dtype)))
    found = converters.convert(base, verify=False).state_dict["block1_layer0.expansion.norm.bias"]
    wanted = converted("era1_mini_base").checkpoint.state_dict["block1_layer0.expansion.norm.bias"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


# What the caller asks for


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"model": "a0"}, ["expected a0", "other widths (8, 16, 16, 24, 32)"]),
        ({"mode": "stream"}, ["is a base network", "expected stream"]),
        ({"gate": "hard_sigmoid_keras"}, ["gate", "hard_sigmoid_keras", "sigmoid", "Sigmoid)"]),
        ({"activation": "relu"}, ["activation", "relu", "swish"]),
        ({"causal_padding": "legacy"}, ["causal_padding", "legacy", "same"]),
        ({"num_classes": 600}, ["num_classes", "600", "5"]),
        ({"norm_epsilon": 1e-5}, ["norm_epsilon", "1e-05", "0.001"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_source_that_is_not_what_was_asked_for_is_refused(
    options: dict[str, Any], parts: list[str]
) -> None:
    text = refusal(FIXTURES["era1_mini_base"].archive, **options)
    for part in parts:
        assert part in text


@pytest.mark.parametrize("name", ["era1_mini_base", "era1_mini_stream", "era3_mini_stream"])
def test_source_that_is_what_was_asked_for_is_accepted(name: str) -> None:
    fields = FIXTURES[name].fields
    asked = {field: fields[field] for field in ("gate", "activation", "causal_padding")}
    mode = "stream" if fields["causal"] else "base"
    archive = FIXTURES[name].archive
    found = converters.convert(archive, mode=mode, verify=False, **asked)
    assert found.spec == converted(name).checkpoint.spec


@pytest.mark.parametrize(
    ("options", "part"),
    [({"mode": "streaming"}, "'base' or 'stream'"), ({"gates": "sigmoid"}, "'gates'")],
)
def test_unknown_option_is_refused_before_the_source_is_read(
    options: dict[str, Any], part: str
) -> None:
    with pytest.raises(ConversionError, match=part):
        converters.convert("nowhere", **options)


# What comes out


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_converted_checkpoint_is_the_one_that_is_saved(tmp_path: Path, suffix: str) -> None:
    checkpoint = converters.convert(FIXTURES["era2_mini_stream"].archive, verify=False)
    assert isinstance(checkpoint, Checkpoint)
    path = tmp_path / f"movinet{suffix}"
    movinet_port.save(checkpoint, path)
    read = movinet_port.load_checkpoint(path)
    assert read.spec == checkpoint.spec
    assert read.provenance == checkpoint.provenance
    assert read.state_dict.keys() == checkpoint.state_dict.keys()
    assert all(torch.equal(read.state_dict[n], t) for n, t in checkpoint.state_dict.items())
    assert whole_video_distance("era2_mini_stream", movinet_port.load(path)) <= BOUND


def test_provenance_says_what_was_read_when_and_with_what(base: Path) -> None:
    provenance = converters.convert(base, verify=False).provenance
    assert provenance["source"] == str(base)
    names = sorted(["saved_model.pb", damage.DATA, damage.INDEX])
    lines = [f"{hashlib.sha256((base / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    assert provenance["sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert provenance["date"].startswith("20")
    assert provenance["tools"]["torch"] == torch.__version__
    assert provenance["tools"].keys() == {"movinet-port", "torch", "python"}


def test_steps_are_reported() -> None:
    steps: list[str] = []
    converters.convert(FIXTURES["era1_mini_base"].archive, verify=False, progress=steps.append)
    assert any("variables" in step for step in steps)
    assert not any("both sides" in step for step in steps)


# The comparison of both sides


def test_conversion_is_compared_with_its_source() -> None:
    steps: list[str] = []
    archive = FIXTURES["era3_mini_base"].archive
    verification = converters.convert_source(archive, progress=steps.append).verification
    assert verification
    # Both sides in float64.
    assert 0 < verification.difference <= 1e-12 * verification.magnitude
    assert verification.bound == 1e-12
    assert any("both sides" in step for step in steps)


def test_conversion_is_compared_with_its_source_in_tensorflow() -> None:
    archive = FIXTURES["era3_mini_base"].archive
    verification = converters.convert_source(archive, engine="tensorflow").verification
    assert verification
    assert 1e-12 * verification.magnitude < verification.difference
    assert verification.bound == LOGIT_BOUND == BOUND


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("classifier.output.conv.bias", lambda t: t + 1e-3),
        ("block2_layer1.expansion.norm.running_var", lambda t: t * 1.01),
        ("classifier.output.conv.bias", lambda t: t * np.nan),
        ("head.conv.weight", lambda t: t * np.inf),
        ("block2_layer1.rezero.scale", lambda t: t + 1e-6),
    ],
    ids=["bias", "statistic", "nan", "inf", "rezero"],
)
def test_weights_that_do_not_give_the_logits_are_no_conversion(
    parameter: str, value: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    state_dict = dict(converted("era3_mini_base").checkpoint.state_dict)
    state_dict[parameter] = value(state_dict[parameter])

    def fill(spec: ModelSpec, located: Any) -> dict[str, torch.Tensor]:
        return state_dict

    monkeypatch.setattr(sys.modules["converters.convert"], "fill", fill)
    archive = FIXTURES["era3_mini_base"].archive
    with pytest.raises(VerificationError, match="logits differ") as caught:
        converters.convert(archive)
    assert str(archive) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert converters.convert(archive, verify=False).spec.num_classes == 5


def test_networks_of_other_classes_are_no_match(tmp_path: Path) -> None:
    folder = damage.unpack(FIXTURES["era3_mini_base"].archive, tmp_path)
    spec = converted("era3_mini_base").checkpoint.spec.replace(num_classes=4)
    with pytest.raises(VerificationError, match=r"shape \(2, 5\).*\(2, 4\)"):
        verify_saved_model(folder, MoViNet(spec).eval())


def test_source_whose_graph_computes_something_else_is_no_conversion(tmp_path: Path) -> None:
    # What no recogniser looks at: the residual is subtracted in one layer.
    folder = damage.unpack(FIXTURES["era3_mini_base"].archive, tmp_path)

    def edit(meta_graph: Any) -> None:
        for node in damage.nodes(meta_graph, r"movinet/block2_layer1/bneck/add$"):
            assert node.op == "AddV2"
            node.op = "Sub"

    damage.edit_graph(folder, edit)
    assert converters.convert(folder, verify=False)
    with pytest.raises(VerificationError, match="logits differ"):
        converters.convert(folder)


def _signature(folder: Path, rank: int, results: int) -> Path:
    """Save a SavedModel whose signature takes an image of some rank."""
    from converters.tensorflow import import_tensorflow

    tf = import_tensorflow()
    module = tf.Module()
    image = tf.TensorSpec([None] * (rank - 1) + [3], tf.float32, name="image")

    def call(image: Any) -> dict[str, Any]:
        return {f"out{n}": tf.reduce_sum(image, axis=[1, 2, 3]) for n in range(results)}

    function = tf.function(call, input_signature=[image])
    tf.saved_model.save(module, str(folder), signatures={"serving_default": function})
    return folder


def test_signature_that_takes_no_video_cannot_be_compared(tmp_path: Path) -> None:
    folder = _signature(tmp_path / "model", rank=4, results=1)
    with pytest.raises(
        ConversionError, match=r"expected image \(batch, frames, height, width, 3\)"
    ):
        verify_saved_model(folder, converted("era3_mini_base").checkpoint.build())


def test_signature_of_several_results_cannot_be_compared(tmp_path: Path) -> None:
    folder = _signature(tmp_path / "model", rank=5, results=2)
    with pytest.raises(ConversionError, match=r"returns out0, out1; expected one tensor"):
        verify_saved_model(folder, converted("era3_mini_base").checkpoint.build())


@pytest.mark.parametrize(
    ("difference", "magnitude", "agrees"),
    [
        (0.0, 1.0, True),
        (2e-5, 1.0, True),
        (2.1e-5, 1.0, False),
        (1e-4, 10.0, True),
        (float("nan"), 1.0, False),
        (0.0, float("nan"), False),
        (float("inf"), float("inf"), False),
        (1e-9, 0.0, False),
    ],
)
def test_difference_counts_relative_to_the_largest_logit(
    difference: float, magnitude: float, agrees: bool
) -> None:
    verification = Agreement(((2, 2, 61, 83),), difference, magnitude)
    assert bool(verification) is agrees
    if not agrees:
        with pytest.raises(VerificationError):
            require(verification)
