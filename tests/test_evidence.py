"""What a graph says is read off what it computes, whoever wrote it and however."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import damage
import numpy as np
import pytest
from numpy.typing import NDArray

import converters
from converters import ConversionError
from converters.graph import load_graph
from converters.graph_evidence import GraphEvidence
from converters.interpreter.graph import Graph
from converters.tensorflow import import_tensorflow

DATA = Path(__file__).parent / "data"

Layer = Callable[..., Any]


def export(
    folder: Path, layer: Layer, variables: Mapping[str, NDArray[Any]], rank: int = 4
) -> dict[str, int]:
    """Save a SavedModel that applies `layer` to an image; return the variables' numbers in it."""
    tf = import_tensorflow()
    module = tf.Module()
    for name, value in variables.items():
        setattr(module, name, tf.Variable(value.astype(np.float32)))
    image = tf.TensorSpec([None] * (rank - 1) + [3], tf.float32, name="image")

    def call(image: Any) -> dict[str, Any]:
        return {"out": layer(image, *(getattr(module, name) for name in variables))}

    function = tf.function(call, input_signature=[image])
    tf.saved_model.save(module, str(folder), signatures={"serving_default": function})
    numbers: dict[str, int] = {}

    def look(meta_graph: Any) -> None:
        for child in meta_graph.object_graph_def.nodes[0].children:
            numbers[child.local_name] = child.node_id

    damage.edit_graph(folder, look)
    return {name: numbers[name] for name in variables}


@pytest.fixture
def evidence(tmp_path: Path) -> Callable[..., GraphEvidence]:
    """Factory: the evidence of a SavedModel that applies a function of TensorFlow's."""

    def build(layer: Layer, rank: int = 4, **variables: NDArray[Any]) -> GraphEvidence:
        numbers = export(tmp_path, layer, variables, rank)
        graph = load_graph(tmp_path)
        return GraphEvidence(graph, {name: graph.captured[n] for name, n in numbers.items()})

    return build


def tf() -> Any:
    return import_tensorflow()


BIAS = np.array([0.1, 0.2, 0.3])

# name in a spec -> how it may be written
ACTIVATIONS: list[tuple[str, Layer]] = [
    ("linear", lambda x: x),
    ("linear", lambda x: tf().identity(x)),
    ("relu", lambda x: tf().nn.relu(x)),
    ("relu", lambda x: tf().maximum(x, 0.0)),
    ("relu6", lambda x: tf().nn.relu6(x)),
    ("relu6", lambda x: tf().clip_by_value(x, 0.0, 6.0)),
    ("swish", lambda x: tf().nn.silu(x)),
    ("swish", lambda x: x * tf().sigmoid(x)),
    ("swish", lambda x: 0.5 * x * (1.0 + tf().tanh(0.5 * x))),
    ("hard_swish", lambda x: x * tf().nn.relu6(x + 3.0) * (1.0 / 6.0)),
    ("hard_swish", lambda x: x * (tf().nn.relu6(3.0 + x) / 6.0)),
    ("hard_swish", lambda x: tf().minimum(tf().nn.relu(x + 3.0), 6.0) * x / 6.0),
]
GATES: list[tuple[str, Layer]] = [
    ("sigmoid", lambda x: tf().sigmoid(x)),
    ("sigmoid", lambda x: 0.5 * tf().tanh(0.5 * x) + 0.5),
    ("hard_sigmoid_keras", lambda x: tf().keras.activations.hard_sigmoid(x)),
    ("hard_sigmoid_keras", lambda x: tf().clip_by_value(0.2 * x + 0.5, 0.0, 1.0)),
    ("hard_sigmoid_relu6", lambda x: tf().nn.relu6(x + 3.0) * 0.16667),
    ("hard_sigmoid_relu6", lambda x: 0.16667 * tf().nn.relu6(3.0 + x)),
]


@pytest.mark.parametrize(("name", "function"), ACTIVATIONS)
def test_activation_is_known_by_what_it_computes(
    name: str, function: Layer, evidence: Callable[..., GraphEvidence]
) -> None:
    found = evidence(lambda x, bias: function(tf().nn.bias_add(x, bias)), bias=BIAS)
    assert found.activation("bias").value == name


@pytest.mark.parametrize(("name", "function"), GATES)
def test_gate_is_known_by_what_it_computes(
    name: str, function: Layer, evidence: Callable[..., GraphEvidence]
) -> None:
    # The gate multiplies what it gates: that is no part of it.
    found = evidence(lambda x, bias: x * function(tf().nn.bias_add(x, bias)), bias=BIAS)
    assert found.gate("bias").value == name


@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf().tanh(x),
        lambda x: tf().nn.relu(x) + 0.01,
        lambda x: x * tf().sigmoid(1.702 * x),
        lambda x: x * tf().nn.relu6(x + 3.0) * 0.16,
        lambda x: tf().clip_by_value(x, 0.0, 5.0),
        lambda x: tf().nn.elu(x),
        lambda x: tf().nn.softplus(x),
        lambda x: tf().nn.leaky_relu(x),
        lambda x: tf().nn.leaky_relu(x, 0.01),
        lambda x: x * tf().math.erf(x),
        lambda x: x * tf().tanh(tf().nn.softplus(x)),
        lambda x: tf().nn.selu(x),
        lambda x: x / (1.0 + tf().exp(-x)) + tf().square(x) ** 2.0 - x**4.0 + 0.001,
    ],
    ids=[
        "tanh",
        "shifted",
        "gelu",
        "scaled",
        "relu5",
        "elu",
        "softplus",
        "leaky",
        "leakier",
        "erf",
        "mish",
        "selu",
        "exp",
    ],
)
def test_unknown_activation_is_not_taken_for_a_known_one(
    function: Layer, evidence: Callable[..., GraphEvidence]
) -> None:
    found = evidence(lambda x, bias: function(tf().nn.bias_add(x, bias)), bias=BIAS)
    with pytest.raises(ConversionError, match="none of swish, hard_swish, relu"):
        found.activation("bias")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: tf().tanh(x),
        lambda x: tf().clip_by_value(0.25 * x + 0.5, 0.0, 1.0),
        lambda x: tf().nn.relu6(x + 3.0) * 0.1667,
        lambda x: tf().nn.relu6(x + 3.0) / 6.0,
        lambda x: tf().sigmoid(1.01 * x),
        lambda x: tf().nn.relu6(x + 3.0),
        lambda x: tf().nn.softsign(x),
        lambda x: x,
    ],
    ids=["tanh", "steeper", "rounded", "sixth", "sigmoid", "unscaled", "softsign", "none"],
)
def test_unknown_gate_is_not_taken_for_a_known_one(
    function: Layer, evidence: Callable[..., GraphEvidence]
) -> None:
    found = evidence(lambda x, bias: x * function(tf().nn.bias_add(x, bias)), bias=BIAS)
    with pytest.raises(ConversionError, match=r"none of sigmoid, hard_sigmoid_keras"):
        found.gate("bias")


def test_unknown_function_is_described(evidence: Callable[..., GraphEvidence]) -> None:
    found = evidence(
        lambda x, bias: x * tf().clip_by_value(0.25 * tf().nn.bias_add(x, bias) + 0.5, 0.0, 1.0),
        bias=BIAS,
    )
    with pytest.raises(ConversionError, match=r"f\(-2\) = 0, f\(1\) = 0\.75, f\(4\) = 1$"):
        found.gate("bias")


ONES = np.ones(3)
NORM = {"gamma": ONES, "beta": ONES, "mean": ONES, "variance": ONES}


def fused_norm(epsilon: float) -> Layer:
    def norm(x: Any, gamma: Any, beta: Any, mean: Any, variance: Any) -> Any:
        return tf().compat.v1.nn.fused_batch_norm(
            x, gamma, beta, mean, variance, epsilon, is_training=False
        )[0]

    return norm


def plain_norm(epsilon: float) -> Layer:
    def norm(x: Any, gamma: Any, beta: Any, mean: Any, variance: Any) -> Any:
        return tf().nn.batch_normalization(x, mean, variance, beta, gamma, epsilon)

    return norm


@pytest.mark.parametrize("norm", [fused_norm, plain_norm])
@pytest.mark.parametrize("epsilon", [1e-3, 1e-4, 1e-5, 0.00123])
def test_epsilon_is_read(
    norm: Callable[[float], Layer], epsilon: float, evidence: Callable[..., GraphEvidence]
) -> None:
    found = evidence(norm(epsilon), **NORM)
    assert found.epsilon("variance") == epsilon


@pytest.mark.parametrize("norm", [fused_norm, plain_norm])
def test_activation_behind_a_normalisation_is_read(
    norm: Callable[[float], Layer], evidence: Callable[..., GraphEvidence]
) -> None:
    def layer(x: Any, *variables: Any) -> Any:
        x = norm(1e-3)(x, *variables)
        return x * tf().nn.relu6(x + 3.0) / 6.0

    assert evidence(layer, **NORM).activation("beta").value == "hard_swish"


KERNEL = np.zeros((3, 3, 3, 4))
KERNEL_5 = np.zeros((5, 5, 3, 4))
KERNEL_3D = np.zeros((3, 3, 3, 3, 4))


def convolution(strides: int, padding: str, *pads: tuple[int, int]) -> Layer:
    def layer(x: Any, kernel: Any) -> Any:
        if pads:
            x = tf().pad(x, [(0, 0), *pads, (0, 0)])
        return tf().nn.conv2d(x, kernel, strides, padding)

    return layer


@pytest.mark.parametrize(
    ("layer", "kernel", "strides", "paddings"),
    [
        (convolution(1, "SAME"), KERNEL, 1, {"same", "legacy"}),
        (convolution(2, "SAME"), KERNEL, 2, {"same"}),
        (convolution(2, "SAME"), KERNEL_5, 2, {"same"}),
        (convolution(2, "VALID", (1, 1), (1, 1)), KERNEL, 2, {"legacy"}),
        (convolution(2, "VALID", (2, 2), (2, 2)), KERNEL_5, 2, {"legacy"}),
        (convolution(1, "VALID", (1, 1), (1, 1)), KERNEL, 1, {"same", "legacy"}),
        # What TensorFlow's SAME does at an even size.
        (convolution(2, "VALID", (0, 1), (0, 1)), KERNEL, 2, {"same"}),
        (convolution(2, "VALID", (1, 2), (1, 2)), KERNEL_5, 2, {"same"}),
    ],
)
def test_strides_and_padding_of_a_convolution_are_read(
    layer: Layer,
    kernel: NDArray[Any],
    strides: int,
    paddings: set[str],
    evidence: Callable[..., GraphEvidence],
) -> None:
    size = kernel.shape[0]
    # Frames are an axis of images, as in a (2+1)-D network; pad works on height and width.
    found = evidence(layer, kernel=kernel).convolution("kernel", (1, size, size))
    assert found.strides == (1, strides, strides)
    assert found.paddings == paddings
    assert not found.causal


@pytest.mark.parametrize("pads", [((0, 0), (0, 0)), ((2, 2), (2, 2)), ((1, 1), (0, 1))])
def test_padding_by_no_known_rule_is_refused(
    pads: tuple[tuple[int, int], ...], evidence: Callable[..., GraphEvidence]
) -> None:
    found = evidence(convolution(2, "VALID", *pads), kernel=KERNEL)
    with pytest.raises(ConversionError, match=r"expected \[\(0, 1\), \(0, 1\)\] \(SAME\) or"):
        found.convolution("kernel", (1, 3, 3))


def test_convolution_behind_a_buffer_is_causal(evidence: Callable[..., GraphEvidence]) -> None:
    def layer(x: Any, kernel: Any) -> Any:
        x = tf().concat([tf().zeros_like(x[:, :2]), x], 1)
        x = tf().pad(x, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)])
        return tf().nn.conv3d(x, kernel, [1, 1, 2, 2, 1], "VALID")

    found = evidence(layer, rank=5, kernel=KERNEL_3D).convolution("kernel", (3, 3, 3))
    assert found.causal
    assert found.strides == (1, 2, 2)
    assert found.paddings == {"legacy"}


def test_convolution_over_the_clip_is_not_causal(evidence: Callable[..., GraphEvidence]) -> None:
    def layer(x: Any, kernel: Any) -> Any:
        return tf().nn.conv3d(x, kernel, [1, 1, 2, 2, 1], "SAME")

    found = evidence(layer, rank=5, kernel=KERNEL_3D).convolution("kernel", (3, 3, 3))
    assert not found.causal
    assert found.paddings == {"same"}


def test_kernel_of_two_convolutions_is_refused(evidence: Callable[..., GraphEvidence]) -> None:
    def layer(x: Any, kernel: Any) -> Any:
        twice = [tf().nn.conv2d(x, kernel, strides, "SAME") for strides in (1, 2)]
        return tf().reduce_sum(twice[0]) + tf().reduce_sum(twice[1])

    found = evidence(layer, kernel=KERNEL)
    with pytest.raises(ConversionError, match="kernel: 2 convolutions of the graph use it"):
        found.convolution("kernel", (1, 3, 3))


def reduced(axes: list[int]) -> Layer:
    def layer(x: Any, kernel: Any) -> Any:
        x = tf().reduce_mean(x, axes, keepdims=True)
        return tf().nn.conv3d(x, kernel, [1] * 5, "SAME")

    return layer


def running(x: Any, kernel: Any) -> Any:
    x = tf().cumsum(tf().reduce_mean(x, [2, 3], keepdims=True), axis=1)
    return tf().nn.conv3d(x, kernel, [1] * 5, "SAME")


@pytest.mark.parametrize(
    ("layer", "value"),
    [(reduced([1, 2, 3]), "time"), (reduced([2, 3]), "space"), (running, "time")],
)
def test_what_a_squeeze_pools_is_read(
    layer: Layer, value: str, evidence: Callable[..., GraphEvidence]
) -> None:
    found = evidence(layer, rank=5, kernel=np.zeros((1, 1, 1, 3, 4)))
    assert found.pooled_over_time("kernel").value == value


def test_squeeze_without_a_pool_is_refused(evidence: Callable[..., GraphEvidence]) -> None:
    found = evidence(convolution(1, "SAME"), kernel=KERNEL)
    with pytest.raises(ConversionError, match="kernel: nothing is pooled"):
        found.pooled_over_time("kernel")


def pooled(window: int, strides: int, padding: str) -> Layer:
    def layer(x: Any, kernel: Any) -> Any:
        return tf().nn.conv2d(tf().nn.avg_pool2d(x, window, strides, padding), kernel, 1, "SAME")

    return layer


def test_average_pool_of_a_skip_is_found(evidence: Callable[..., GraphEvidence]) -> None:
    assert evidence(pooled(3, 2, "SAME"), kernel=KERNEL).average_pool("kernel") is not None


def test_no_average_pool_is_found_where_there_is_none(
    evidence: Callable[..., GraphEvidence],
) -> None:
    assert evidence(convolution(1, "SAME"), kernel=KERNEL).average_pool("kernel") is None


@pytest.mark.parametrize(("window", "strides", "padding"), [(2, 2, "SAME"), (3, 1, "SAME")])
def test_other_average_pool_is_refused(
    window: int, strides: int, padding: str, evidence: Callable[..., GraphEvidence]
) -> None:
    found = evidence(pooled(window, strides, padding), kernel=KERNEL)
    with pytest.raises(ConversionError, match=r"expected \[3, 3\], \[2, 2\], SAME"):
        found.average_pool("kernel")


# Damaged graphs of real exports


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return damage.unpack(DATA / "era1_mini_base.tar.gz", tmp_path / "model")


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    return damage.unpack(DATA / "era2_mini_stream.tar.gz", tmp_path / "model")


def edited(folder: Path, pattern: str, edit: Callable[[Any], object]) -> Path:
    def edit_all(meta_graph: Any) -> None:
        for node in damage.nodes(meta_graph, pattern):
            edit(node)

    return damage.edit_graph(folder, edit_all)


def refusal(folder: Path) -> str:
    with pytest.raises(ConversionError) as caught:
        converters.convert(folder, verify=False)
    text = str(caught.value)
    assert text.startswith(f"{folder}: ")
    assert "\n" not in text
    return text


def constant(value: float) -> Callable[[Any], None]:
    def edit(node: Any) -> None:
        assert node.op == "Const"
        tensor = node.attr["value"].tensor
        del tensor.float_val[:]
        tensor.tensor_content = struct.pack("<f", value)

    return edit


EPSILON = r"/batchnorm/add/y$"


def test_another_epsilon_is_read_off_the_graph(base: Path) -> None:
    edited(base, EPSILON, constant(1e-5))
    assert converters.convert(base, verify=False).spec.norm_epsilon == 1e-5


def test_epsilon_of_one_layer_cannot_differ(base: Path) -> None:
    edited(base, rf"b2/l1/bneck/expansion/bn{EPSILON}", constant(1e-5))
    assert "differ in epsilon: [1e-05, 0.001]" in refusal(base)


def test_activation_of_one_layer_cannot_differ(base: Path) -> None:
    def relu(meta_graph: Any) -> None:
        changed = set()
        for node in damage.nodes(meta_graph, r"b3/l0/bneck/expansion/activation_\d+/mul$"):
            assert node.op == "Mul"
            node.op = "Relu"
            del node.input[1:]
            changed.add(node.name)
        for user in damage.nodes(meta_graph, ""):
            for number, source in enumerate(user.input):
                if source.partition(":")[0] in changed:
                    user.input[number] = source.replace(":z:0", ":activations:0")

    damage.edit_graph(base, relu)
    text = refusal(base)
    assert "activation is swish behind stem.norm.bias" in text
    assert "relu behind block3_layer0.expansion.norm.bias" in text


def test_gate_of_one_layer_cannot_differ(stream: Path) -> None:
    edited(stream, r"b2/l0/bneck/se/se_expand/activation_\d+/Const_1$", constant(0.55))
    assert "computes none of sigmoid, hard_sigmoid_keras" in refusal(stream)


def test_strides_are_read_off_the_graph_and_must_fit_the_skip(base: Path) -> None:
    def edit(node: Any) -> None:
        if node.op == "AvgPool3D":
            node.attr["strides"].list.i[2:4] = [1, 1]

    edited(base, r"b2/l0/bneck/skip/skip_pool/", edit)
    assert "average pool [3, 3] with strides [1, 1]" in refusal(base)


def _drop_function(meta_graph: Any) -> None:
    library = meta_graph.graph_def.library
    kept = [f for f in library.function if "signature_wrapper" in f.signature.name]
    del library.function[:]
    library.function.extend(kept)


def _drop_every_function(meta_graph: Any) -> None:
    del meta_graph.graph_def.library.function[:]


def _rename_signature(meta_graph: Any) -> None:
    signatures = meta_graph.signature_def
    signatures["predict"].CopyFrom(signatures["serving_default"])
    del signatures["serving_default"]


def _drop_objects(meta_graph: Any) -> None:
    del meta_graph.object_graph_def.nodes[:]


def _drop_bound_inputs(meta_graph: Any) -> None:
    for function in meta_graph.object_graph_def.concrete_functions.values():
        del function.bound_inputs[5:]


def _rewire(meta_graph: Any) -> None:
    for node in damage.nodes(meta_graph, r"b1/l0/bneck/add$"):
        node.input[0] = "nowhere:z:0"


def _circle(meta_graph: Any) -> None:
    for node in damage.nodes(meta_graph, r"b1/l0/bneck/add$"):
        node.input[0] = f"{node.name}:z:0"


def _call_itself(meta_graph: Any) -> None:
    for function in meta_graph.graph_def.library.function:
        for node in function.node_def:
            if node.op == "StatefulPartitionedCall" and "wrapper" in function.signature.name:
                node.attr["f"].func.name = function.signature.name


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (_drop_function, "is missing"),
        (_drop_every_function, "is missing"),
        (_rename_signature, "no signature named call or serving_default, found predict"),
        (_drop_objects, "saved_model.pb"),
        (_drop_bound_inputs, "the serving signature does not use"),
        (_rewire, "'nowhere', which is not there"),
        (_circle, "which is not there"),
        (_call_itself, "is missing or calls itself"),
    ],
)
def test_graph_that_does_not_hang_together_is_refused(
    edit: Callable[[Any], None], part: str, base: Path
) -> None:
    damage.edit_graph(base, edit)
    assert part in refusal(base)


def test_graph_knows_its_inputs_and_variables(base: Path) -> None:
    graph: Graph = load_graph(base)
    assert graph.input_shapes == {"image": (-1, -1, -1, -1, 3)}
    assert list(graph.outputs) == ["classifier_head"] or len(graph.outputs) == 1
    stored = damage.read_variables(base / "variables/variables").tensors
    # Optimizer and metrics are no part of the computation.
    assert 0 < len(graph.captured) < len(stored)
