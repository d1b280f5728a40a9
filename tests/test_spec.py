"""The specs of the family are data, and any other spec is checked."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from movinet_port import (
    BlockSpec,
    HeadSpec,
    ModelSpec,
    MovinetPortError,
    SpecError,
    StemSpec,
    create_model,
    get_spec,
    list_models,
    variants,
)
from movinet_port.config import _C
from movinet_port.spec import make_divisible
from movinet_port.variants import family_name

# arXiv 2103.11511 and the authors' README: layers per block.
DEPTHS = {
    "a0": (1, 3, 3, 4, 4),
    "a1": (2, 4, 5, 6, 7),
    "a2": (3, 5, 5, 6, 7),
    "a3": (4, 6, 5, 8, 10),
    "a4": (6, 9, 9, 10, 13),
    "a5": (6, 11, 13, 11, 18),
    "t0": (1, 2, 3, 4, 4),
}
NAMES = list(DEPTHS)


def test_list_models_names_the_family_in_order() -> None:
    assert list_models() == NAMES


def test_list_models_takes_a_pattern() -> None:
    assert list_models("a[0-2]") == ["a0", "a1", "a2"]
    assert list_models("b*") == []


@pytest.mark.parametrize("mode", ["base", "stream"])
@pytest.mark.parametrize("name", NAMES)
class TestFamily:
    def test_depths_are_the_published_ones(self, name: str, mode: str) -> None:
        blocks = get_spec(name, mode).blocks
        assert tuple(len(block.expand_filters) for block in blocks) == DEPTHS[name]

    def test_strides_are_two_in_stem_and_blocks_0_1_2_and_4(self, name: str, mode: str) -> None:
        spec = get_spec(name, mode)
        assert spec.stem.strides == (1, 2, 2)
        strided = {
            (i, j)
            for i, block in enumerate(spec.blocks)
            for j, strides in enumerate(block.strides)
            if strides == (1, 2, 2)
        }
        assert strided == {(0, 0), (1, 0), (2, 0), (4, 0)}
        assert {s for block in spec.blocks for s in block.strides} == {(1, 1, 1), (1, 2, 2)}

    def test_has_600_classes_unless_told(self, name: str, mode: str) -> None:
        assert get_spec(name, mode).num_classes == 600
        assert get_spec(name, mode, 7).num_classes == 7
        assert get_spec(name, mode, num_classes=7).num_classes == 7

    def test_knows_its_own_name(self, name: str, mode: str) -> None:
        spec = get_spec(name, mode)
        assert (spec.name, spec.mode) == (name, mode)
        assert family_name(spec) == name
        wider = dataclasses.replace(spec.head, head_filters=spec.head.head_filters + 8)
        assert family_name(spec.replace(head=wider)) == "custom"

    def test_survives_json(self, name: str, mode: str) -> None:
        spec = get_spec(name, mode)
        again = ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
        assert again == spec
        assert hash(again) == hash(spec)


def test_members_differ_from_one_another() -> None:
    specs = {get_spec(name, mode) for name in NAMES for mode in ("base", "stream")}
    assert len(specs) == 2 * len(NAMES)


@pytest.mark.parametrize(
    ("name", "stem", "widths", "first_expansions", "project", "hidden"),
    [
        # BLOCK_SPECS of tf-models-official 2.20.0.
        ("a0", 8, (8, 32, 56, 56, 104), (24, 80, 184, 184, 384), 480, 2048),
        ("a1", 16, (16, 40, 64, 64, 136), (40, 96, 216, 216, 456), 600, 2048),
        ("a2", 16, (16, 40, 72, 72, 144), (40, 96, 240, 240, 480), 640, 2048),
        ("a3", 16, (16, 48, 80, 88, 168), (40, 112, 240, 264, 560), 744, 2048),
        ("a4", 24, (24, 56, 96, 96, 192), (64, 168, 320, 320, 640), 856, 2048),
        ("a5", 24, (24, 64, 112, 120, 224), (64, 192, 376, 376, 744), 992, 2048),
        ("t0", 8, (8, 32, 56, 56, 104), (16, 72, 112, 184, 344), 240, 1024),
    ],
)
def test_widths_are_the_published_ones(
    name: str,
    stem: int,
    widths: tuple[int, ...],
    first_expansions: tuple[int, ...],
    project: int,
    hidden: int,
) -> None:
    spec = get_spec(name)
    assert spec.stem == StemSpec(stem, (1, 3, 3), (1, 2, 2))
    assert tuple(block.base_filters for block in spec.blocks) == widths
    assert tuple(block.expand_filters[0] for block in spec.blocks) == first_expansions
    assert spec.head == HeadSpec(project, hidden)


@pytest.mark.parametrize("name", NAMES)
def test_published_base_networks_are_not_causal(name: str) -> None:
    spec = get_spec(name, "base")
    assert (spec.causal, spec.conv_type, spec.se_type) == (False, "3d", "3d")
    assert (spec.activation, spec.gate, spec.classifier_activation) == ("swish", "sigmoid", "swish")
    assert not spec.positional_encoding
    assert spec.norm_epsilon == 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_published_stream_networks_are_causal_2plus1d(name: str) -> None:
    spec = get_spec(name, "stream")
    assert (spec.causal, spec.conv_type, spec.se_type) == (True, "2plus1d", "2plus3d")
    assert (spec.activation, spec.gate) == ("hard_swish", "hard_sigmoid_keras")
    assert spec.classifier_activation == "swish"
    assert spec.causal_padding == "same"
    assert spec.positional_encoding is (name in ("a3", "a4", "a5"))


def test_stream_network_differs_from_base_in_no_width() -> None:
    for name in NAMES:
        base, stream = get_spec(name, "base"), get_spec(name, "stream")
        assert (base.stem, base.blocks, base.head) == (stream.stem, stream.blocks, stream.head)


def test_overrides_win_over_what_is_published() -> None:
    spec = get_spec("a3", "stream", positional_encoding=False, gate="hard_sigmoid_relu6")
    assert (spec.positional_encoding, spec.gate) == (False, "hard_sigmoid_relu6")
    assert spec.replace(positional_encoding=True, gate="hard_sigmoid_keras") == get_spec(
        "a3", "stream"
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2.0, 8),  # at least the divisor
        (20.0, 24),  # half way goes up
        (19.9, 24),  # 16 would be less than 90 %
        (18.0, 24),
        (17.5, 16),
        (28.0, 32),
        (46.0, 48),
        (70.0, 72),
        (86.0, 88),
        (96.0, 96),
        (99.9, 96),
        (100.0, 104),
    ],
)
def test_make_divisible_at_hand_computed_points(value: float, expected: int) -> None:
    assert make_divisible(value) == expected


@pytest.mark.parametrize(
    ("se_type", "pooled", "hidden"),
    [("3d", 184, 48), ("2d", 184, 48), ("2plus3d", 368, 96)],
)
def test_squeeze_excitation_width_follows_what_is_pooled(
    se_type: str, pooled: int, hidden: int
) -> None:
    spec = get_spec("a0", "stream", se_type=se_type)
    assert spec.se_pooled_filters(184) == pooled
    assert spec.se_hidden_filters(184) == hidden


def test_layers_carry_the_width_of_the_layer_before(mini_spec: Any) -> None:
    layers = list(mini_spec().layers())
    assert [layer.name for layer in layers] == [
        *["block0_layer0", "block1_layer0", "block1_layer1", "block2_layer0", "block2_layer1"],
        *["block3_layer0", "block3_layer1", "block4_layer0", "block4_layer1"],
    ]
    assert [layer.in_filters for layer in layers] == [8, 8, 16, 16, 16, 16, 24, 24, 32]
    assert [layer.out_filters for layer in layers] == [8, 16, 16, 16, 16, 24, 24, 32, 32]
    assert [layer.name for layer in layers if layer.has_skip_projection] == [
        *["block0_layer0", "block1_layer0", "block2_layer0", "block3_layer0", "block4_layer0"]
    ]
    assert [layer.name for layer in layers if layer.downsamples] == [
        *["block0_layer0", "block1_layer0", "block2_layer0", "block4_layer0"]
    ]


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        (lambda spec: spec, "num_classes", 3),
        (lambda spec: spec.stem, "filters", 3),
        (lambda spec: spec.blocks[0], "base_filters", 3),
        (lambda spec: spec.head, "head_filters", 3),
        (lambda spec: next(spec.layers()), "in_filters", 3),
    ],
)
def test_specs_cannot_be_changed_in_place(
    mini_spec: Any, part: Any, field: str, value: int
) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(part(mini_spec()), field, value)


def test_equal_specs_are_one_key_of_a_dict(mini_spec: Any) -> None:
    assert len({mini_spec("stream"): 1, mini_spec("stream"): 2, mini_spec("base"): 3}) == 2


def test_specs_copy_and_pickle(mini_spec: Any) -> None:
    spec = mini_spec("stream")
    assert copy.deepcopy(spec) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_replace_leaves_the_original_alone(mini_spec: Any) -> None:
    spec = mini_spec()
    assert spec.replace(num_classes=3).num_classes == 3
    assert spec.num_classes == 7


def test_lists_in_a_spec_count_as_tuples() -> None:
    def spec(sequence: Any) -> ModelSpec:
        block = BlockSpec(8, sequence([8]), sequence([sequence([3, 3, 3])]), sequence([(1, 2, 2)]))
        stem = StemSpec(8, kernel_size=sequence([1, 3, 3]), strides=sequence([1, 2, 2]))
        return ModelSpec("custom", stem, sequence([block]), HeadSpec(8, 8))

    assert spec(list) == spec(tuple)
    assert hash(spec(list)) == hash(spec(tuple))


# Random specs ---------------------------------------------------------------------------------

_width = st.integers(1, 64)
_kernel = st.tuples(st.sampled_from([1, 2, 3, 5]), st.integers(1, 5), st.integers(1, 5))
_strides = st.sampled_from([(1, 1, 1), (1, 2, 2)])


@st.composite
def _blocks(draw: st.DrawFn) -> BlockSpec:
    depth = draw(st.integers(1, 3))

    def one_per_layer(strategy: Any) -> Any:
        return tuple(draw(strategy) for _ in range(depth))

    return BlockSpec(
        draw(_width), one_per_layer(_width), one_per_layer(_kernel), one_per_layer(_strides)
    )


@st.composite
def _specs(draw: st.DrawFn) -> ModelSpec:
    causal = draw(st.booleans())
    conv_type = draw(st.sampled_from(["3d", "2plus1d", "3d_2plus1d"]))
    se_type = draw(st.sampled_from(["3d", "2d", "2plus3d", "none"]))
    activation = st.sampled_from(["swish", "hard_swish", "relu", "relu6"])
    return ModelSpec(
        name=draw(st.text(max_size=8)),
        stem=StemSpec(draw(_width), draw(_kernel), draw(_strides)),
        blocks=tuple(draw(st.lists(_blocks(), min_size=1, max_size=3))),
        head=HeadSpec(draw(_width), draw(_width)),
        num_classes=draw(st.integers(1, 1000)),
        causal=causal,
        conv_type=conv_type,
        se_type=se_type,
        activation=draw(activation),
        gate=draw(st.sampled_from(["sigmoid", "hard_sigmoid_keras", "hard_sigmoid_relu6"])),
        classifier_activation=draw(activation),
        positional_encoding=causal and se_type != "none" and draw(st.booleans()),
        causal_padding=draw(st.sampled_from(["same", "legacy"])),
        pool_counts_padding=draw(st.booleans()),
        norm_epsilon=draw(st.floats(1e-6, 0.1)),
    )


@settings(max_examples=200, deadline=None)
@given(_specs())
def test_any_spec_survives_json(spec: ModelSpec) -> None:
    again = ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.to_dict() == spec.to_dict()


@settings(max_examples=200, deadline=None)
@given(
    _specs(),
    st.data(),
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=4,
    ),
)
def test_damaged_spec_is_a_spec_error_or_a_spec(
    spec: ModelSpec, data: st.DataObject, junk: Any
) -> None:
    """Whatever stands in place of one value, nothing but a SpecError comes out."""
    plain = spec.to_dict()
    place: Any = plain
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner or data.draw(st.booleans()):
            place[key] = junk
            break
        place = inner
    try:
        again = ModelSpec.from_dict(plain)
    except SpecError as error:
        again, message = None, str(error)
    else:
        message = ""
        hash(again)
        assert json.loads(json.dumps(again.to_dict())) == json.loads(json.dumps(plain))
    assert "\n" not in message


# Errors -----------------------------------------------------------------------------------------


def _one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    return text


def test_spec_error_is_an_error_of_this_package_and_a_value_error() -> None:
    assert issubclass(SpecError, MovinetPortError)
    assert issubclass(SpecError, ValueError)


@pytest.mark.parametrize(
    ("field", "value", "suggestion"),
    [
        ("conv_type", "2plus1", "2plus1d"),
        ("se_type", "2plus3", "2plus3d"),
        ("activation", "hardswish", "hard_swish"),
        ("gate", "hard_sigmoid", "hard_sigmoid_keras"),
        ("classifier_activation", "swich", "swish"),
        ("causal_padding", "legasy", "legacy"),
    ],
)
def test_unknown_choice_names_the_nearest_one(
    mini_spec: Any, field: str, value: str, suggestion: str
) -> None:
    with pytest.raises(SpecError) as caught:
        mini_spec("stream", **{field: value})
    message = _one_line(caught.value)
    assert field in message
    assert repr(value) in message
    assert f"did you mean {suggestion!r}?" in message or (
        field == "gate" and "did you mean 'hard_sigmoid" in message
    )


def test_unknown_field_names_the_nearest_one(mini_spec: Any) -> None:
    with pytest.raises(SpecError, match="did you mean 'activation'") as caught:
        mini_spec(activations="swish")
    assert "norm_epsilon" in _one_line(caught.value)


@pytest.mark.parametrize(
    ("where", "misspelt", "field"),
    [
        ((), "num_class", "num_classes"),
        (("stem",), "filter", "filters"),
        (("blocks", 1), "expand_filter", "expand_filters"),
        (("head",), "head_filter", "head_filters"),
    ],
)
def test_unknown_field_in_a_dict_names_the_nearest_one(
    mini_spec: Any, where: tuple[Any, ...], misspelt: str, field: str
) -> None:
    plain = mini_spec().to_dict()
    part: Any = plain
    for key in where:
        part = part[key]
    part[misspelt] = part.pop(field)
    with pytest.raises(SpecError, match=f"did you mean '{field}'") as caught:
        ModelSpec.from_dict(plain)
    assert misspelt in _one_line(caught.value)


@pytest.mark.parametrize("field", ["name", "stem", "blocks", "head"])
def test_missing_field_in_a_dict_is_named(mini_spec: Any, field: str) -> None:
    plain = mini_spec().to_dict()
    del plain[field]
    with pytest.raises(SpecError, match=f"missing.*{field}|{field}.*missing") as caught:
        ModelSpec.from_dict(plain)
    _one_line(caught.value)


@pytest.mark.parametrize("data", [None, 5, "spec", ["spec"], [["stem", 1]], {}, b"spec"])
def test_spec_from_what_is_no_dict_is_a_spec_error(data: Any) -> None:
    with pytest.raises(SpecError) as caught:
        ModelSpec.from_dict(data)
    _one_line(caught.value)


BAD_VALUES: list[tuple[tuple[Any, ...], Any]] = [
    (("name",), 5),
    (("name",), None),
    (("stem",), 5),
    (("stem", "filters"), 0),
    (("stem", "filters"), -8),
    (("stem", "filters"), "8"),
    (("stem", "filters"), 8.5),
    (("stem", "filters"), True),
    (("stem", "kernel_size"), [1, 3]),
    (("stem", "kernel_size"), [1, 3, 0]),
    (("stem", "kernel_size"), [1, 3, "3"]),
    (("stem", "kernel_size"), [1, 3, 3.5]),
    (("stem", "kernel_size"), 3),
    (("stem", "strides"), [2, 2, 2]),
    (("stem", "strides"), [1, 2, 1]),
    (("stem", "strides"), [1, 2]),
    (("stem", "strides"), "122"),
    (("blocks",), []),
    (("blocks",), 5),
    (("blocks",), "blocks"),
    (("blocks", 0), 5),
    (("blocks", 1, "base_filters"), 0),
    (("blocks", 1, "base_filters"), "16"),
    (("blocks", 1, "base_filters"), None),
    (("blocks", 1, "expand_filters"), [24]),
    (("blocks", 1, "expand_filters"), []),
    (("blocks", 1, "expand_filters"), 24),
    (("blocks", 1, "expand_filters"), [24, "32"]),
    (("blocks", 1, "expand_filters"), [24, 0]),
    (("blocks", 1, "expand_filters"), [24, 32.5]),
    (("blocks", 1, "kernel_sizes"), [[3, 3, 3], [3, 3]]),
    (("blocks", 1, "kernel_sizes"), [[3, 3, 3], [0, 3, 3]]),
    (("blocks", 1, "kernel_sizes"), [[3, 3, 3], 3]),
    (("blocks", 1, "strides"), [[1, 2, 2], [2, 1, 1]]),
    (("blocks", 1, "strides"), [[1, 2, 2], [1, 3, 3]]),
    (("blocks", 1, "strides"), [[1, 2, 2], None]),
    (("head",), [48, 64]),
    (("head", "project_filters"), 0),
    (("head", "project_filters"), "48"),
    (("head", "head_filters"), None),
    (("num_classes",), 0),
    (("num_classes",), -1),
    (("num_classes",), "600"),
    (("num_classes",), 600.5),
    (("num_classes",), True),
    (("num_classes",), None),
    (("causal",), "false"),
    (("causal",), None),
    (("conv_type",), None),
    (("conv_type",), ["3d"]),
    (("se_type",), 3),
    (("activation",), {"swish": 1}),
    (("positional_encoding",), "yes"),
    (("norm_epsilon",), "0.001"),
    (("norm_epsilon",), None),
    (("norm_epsilon",), 0),
    (("norm_epsilon",), -0.001),
    (("norm_epsilon",), math.nan),
    (("norm_epsilon",), math.inf),
]


@pytest.mark.parametrize(
    ("where", "value"),
    BAD_VALUES,
    ids=lambda v: ".".join(map(str, v)) if type(v) is tuple else None,
)
def test_bad_value_in_a_dict_is_a_spec_error(
    mini_spec: Any, where: tuple[Any, ...], value: Any
) -> None:
    plain = mini_spec().to_dict()
    part: Any = plain
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    with pytest.raises(SpecError) as caught:
        ModelSpec.from_dict(plain)
    _one_line(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [(where[0], value) for where, value in BAD_VALUES if len(where) == 1],
)
def test_bad_value_in_replace_is_a_spec_error_that_names_the_field(
    mini_spec: Any, field: str, value: Any
) -> None:
    with pytest.raises(SpecError, match=field.rstrip("s")) as caught:
        mini_spec(**{field: value})
    _one_line(caught.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"positional_encoding": True}, "causal"),
        ({"causal": True, "positional_encoding": True, "se_type": "none"}, "squeeze-excitation"),
    ],
)
def test_combinations_that_are_no_movinet_are_refused(
    mini_spec: Any, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(SpecError, match=match) as caught:
        mini_spec(**changes)
    _one_line(caught.value)


@pytest.mark.parametrize("name", ["a6", "A0", "movinet_a0", "", "a0 "])
def test_unknown_member_lists_the_family(name: str) -> None:
    with pytest.raises(SpecError, match="a0, a1, a2, a3, a4, a5, t0") as caught:
        get_spec(name)
    _one_line(caught.value)


@pytest.mark.parametrize("mode", ["steam", "streaming", "BASE", None])
def test_unknown_mode_names_the_two(mode: Any) -> None:
    with pytest.raises(SpecError, match=r"(?=.*'base')(?=.*'stream')") as caught:
        get_spec("a0", mode)
    _one_line(caught.value)


def test_unknown_override_names_the_nearest_field() -> None:
    with pytest.raises(SpecError, match="did you mean 'gate'"):
        get_spec("a0", "stream", gates="sigmoid")


def test_config_has_a_node_for_every_member() -> None:
    assert [getattr(_C.MODEL, f"MoViNet{name.upper()}").variant for name in NAMES] == NAMES


def test_unknown_config_node_names_the_nearest_one() -> None:
    with pytest.raises(AttributeError, match="did you mean 'MoViNetA") as caught:
        _C.MODEL.MoViNetA7  # noqa: B018
    _one_line(caught.value)


def test_config_node_copies() -> None:
    assert copy.deepcopy(_C.MODEL).MoViNetA0.variant == "a0"


def test_a_new_variant_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = variants._Member(8, ((8, "16:15"), (16, "24:33 32:53")), project=32, hidden=64)
    monkeypatch.setitem(variants._FAMILY, "x9", entry)
    model = create_model("x9", "stream", 3).eval()
    assert model.layer_names == ("block0_layer0", "block1_layer0", "block1_layer1")
    assert model(torch.rand(1, 3, 2, 24, 24)).shape == (1, 3)
    assert family_name(model.spec) == "x9"
    assert "x9" in list_models()
