"""Graphs of SavedModels run in PyTorch: what TensorFlow says of them, and hostile ones."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import damage
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import converters
from converters import protos
from converters.containers import saved_model
from converters.containers.saved_model import SavedModel
from converters.errors import ConversionError
from converters.interpreter import graph as graph_module
from converters.interpreter import tensorflow_engine
from converters.interpreter.graph import DEEPEST_CALL, Graph, Node, flatten
from converters.interpreter.run import Interpreter, meant
from converters.interpreter.tensorflow_engine import TensorFlowEngine
from movinet_port import MoViNet

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared/fixtures"
SAMPLE = ROOT / "weights/samples/movinet_mini_stream.tar.gz"

MINIS = ("era1_mini_base", "era1_mini_stream", "era2_mini_stream", "era2_mini_stream_posenc")
MINIS += ("era3_mini_base", "era3_mini_stream")
LARGE = ("era1_a0_base", "era1_a0_stream", "era2_a0_stream")

# Of the largest logit: TensorFlow's float32 against ours; and in float64, our two sides.
FLOAT32, FLOAT64 = 2e-5, 1e-12


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SavedModel]:
    """Factory: a fixture's SavedModel, unpacked."""

    @functools.cache
    def read(name: str) -> SavedModel:
        archive = ROOT / f"tests/data/{name}.tar.gz"
        archive = SAMPLE if name == "era3_mini_stream" else archive
        archive = SHARED / f"{name}.tar.gz" if name in LARGE else archive
        if not archive.exists():
            pytest.skip(f"{archive} is not on this machine")
        return saved_model.read(damage.unpack(archive, tmp_path_factory.mktemp(name)))

    return read


def expected(name: str) -> Mapping[str, NDArray[np.float32]]:
    folder = SHARED if name in LARGE else ROOT / "tests/data"
    return {k: v.astype(np.float32) for k, v in np.load(folder / f"{name}.expected.npz").items()}


def signature_of(saved: SavedModel) -> str:
    return "call" if "call" in saved.signatures else "serving_default"


class Stream:
    """A SavedModel's video, clip after clip, from `init_states` on."""

    def __init__(self, saved: SavedModel, **options: Any) -> None:
        self.engine = Interpreter(flatten(saved, signature_of(saved)), saved.value, **options)
        self._states: dict[str, torch.Tensor] = {}
        self._begin = None
        if "init_states" in saved.signatures:
            self._begin = Interpreter(flatten(saved, "init_states"), saved.value, **options)

    def begin(self, shape: Any) -> None:
        if self._begin is not None:
            self._states = self._begin(input_shape=torch.tensor(shape, dtype=torch.int32))

    def __call__(self, clip: torch.Tensor) -> torch.Tensor:
        results = self.engine(image=clip, **self._states)
        (logits,) = results.keys() - self._states.keys()
        found = results.pop(logits)
        assert results.keys() == self._states.keys()
        self._states = results
        return found


def relative(found: torch.Tensor, right: Any) -> float:
    right = torch.as_tensor(right)
    return float((found - right).abs().max() / right.abs().max())


@pytest.mark.parametrize("name", [*MINIS, *LARGE])
def test_logits_are_those_that_tensorflow_made(
    name: str, opened: Callable[[str], SavedModel], one_thread: None
) -> None:
    right, stream = expected(name), Stream(opened(name))
    video = torch.from_numpy(right["video"])
    stream.begin(video.shape)
    assert relative(stream(video), right["logits"]) <= FLOAT32
    if "frame_logits" in right:
        stream.begin(video[:, :1].shape)
        frames = [stream(frame) for frame in video.split(1, dim=1)]
        assert relative(torch.stack(frames, 1), right["frame_logits"]) <= FLOAT32


def converted(saved: SavedModel) -> MoViNet:
    return converters.convert(saved.path, verify=False).build().double()


def our_logits(model: MoViNet, video: torch.Tensor, chunks: int) -> list[torch.Tensor]:
    model.clean_activation_buffers()
    with torch.inference_mode():
        return [model(clip) for clip in video.permute(0, 4, 1, 2, 3).split(chunks, dim=2)]


@pytest.mark.parametrize("name", [*MINIS, *LARGE])
@pytest.mark.parametrize("size", [(64, 72), (37, 50)], ids=["even", "odd"])
def test_network_and_graph_agree_in_float64(
    name: str, size: tuple[int, int], opened: Callable[[str], SavedModel], one_thread: None
) -> None:
    saved = opened(name)
    model = converted(saved)
    video = torch.rand(2, 5, *size, 3, generator=torch.Generator().manual_seed(1)).double()
    stream = Stream(saved, dtype=torch.float64, decimals=True)
    for chunks in (5, 2, 1) if model.spec.causal else (5,):
        stream.begin(video.shape)
        for clip, right in zip(
            video.split(chunks, dim=1), our_logits(model, video, chunks), strict=True
        ):
            assert relative(stream(clip), right) <= FLOAT64


@pytest.mark.parametrize(
    "fault",
    [
        ("rezero.scale", lambda t: t + 1e-6),
        (
            "expansion.conv.weight",
            lambda t: t * (1 + 1e-5 * (torch.arange(t.numel()) == 7).reshape(t.shape)),
        ),
        ("expansion.norm", 1.0001e-3),
    ],
    ids=["rezero", "one weight", "epsilon"],
)
def test_small_faults_are_seen_in_float64(
    fault: tuple[str, Any], opened: Callable[[str], SavedModel], one_thread: None
) -> None:
    saved = opened("era2_mini_stream")
    model = converted(saved)
    name, change = fault
    layer = "block2_layer1"
    with torch.no_grad():
        if callable(change):
            parameter = model.get_parameter(f"{layer}.{name}")
            parameter.copy_(change(parameter))
        else:
            model.get_submodule(f"{layer}.{name}").eps = change
    video = torch.rand(1, 3, 40, 40, 3, generator=torch.Generator().manual_seed(1)).double()
    exact = Stream(saved, dtype=torch.float64, decimals=True)
    exact.begin(video.shape)
    (found,) = our_logits(model, video, 3)
    assert relative(exact(video), found) > 10 * FLOAT64
    narrow = Stream(saved)
    narrow.begin(video.shape)
    assert relative(narrow(video.float()), found) < FLOAT32


def test_constants_that_are_not_read_as_decimals_are_seen(
    opened: Callable[[str], SavedModel], one_thread: None
) -> None:
    saved = opened("era2_mini_stream")
    video = torch.rand(1, 3, 40, 40, 3, generator=torch.Generator().manual_seed(1)).double()
    stream = Stream(saved, dtype=torch.float64)
    stream.begin(video.shape)
    (right,) = our_logits(converted(saved), video, 3)
    assert 1e-11 < relative(stream(video), right) < 1e-5


@pytest.mark.parametrize("name", MINIS)
def test_every_node_is_tensorflows(
    name: str, opened: Callable[[str], SavedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each run of TensorFlow computes anew what is not given again.
    monkeypatch.setattr(tensorflow_engine, "FETCHED_AT_ONCE", 100_000)
    saved = opened(name)
    graph = flatten(saved, signature_of(saved))
    video = torch.rand(2, 2, 33, 38, 3, generator=torch.Generator().manual_seed(1))
    inputs = {"image": video}
    ours = Interpreter(graph, saved.value)
    theirs = TensorFlowEngine(graph, saved.value)
    if "init_states" in saved.signatures:
        begin = flatten(saved, "init_states")
        shape = torch.tensor(video.shape, dtype=torch.int32)
        inputs |= Interpreter(begin, saved.value)(input_shape=shape)
        for key, value in TensorFlowEngine(begin, saved.value)(input_shape=shape).items():
            assert value.dtype == inputs[key].dtype
            assert torch.equal(value, inputs[key])
        # States of zeros would hide what is done to them.
        inputs = {k: v + 1 if v.dtype == torch.int32 else v for k, v in inputs.items()}
        inputs = {
            k: torch.rand(v.shape) if v.is_floating_point() and k != "image" else v
            for k, v in inputs.items()
        }
    values = [
        (node.name, 0)
        for node in graph.nodes.values()
        if node.op != "NoOp" and not (node.op == "Placeholder" and node.name not in inputs)
    ]
    found = ours.stream(inputs, values)
    right = dict(theirs.stream(inputs, values))
    assert len(right) > 500
    for value, ours_value in found:
        theirs_value = right.pop(value)
        assert ours_value.dtype == theirs_value.dtype, value
        assert ours_value.shape == theirs_value.shape, value
        if not ours_value.is_floating_point():
            assert torch.equal(ours_value, theirs_value), value
            continue
        largest = float(theirs_value.abs().max()) if theirs_value.numel() else 0.0
        difference = float((ours_value - theirs_value).abs().max()) if largest else 0.0
        assert difference <= FLOAT32 * largest, value
    assert not right


def test_activations_are_freed_when_nothing_needs_them() -> None:
    graph = Graph()
    graph.add(Node("x", "Placeholder", (), type=1))
    graph.inputs["x"] = ("x", 0)
    attr = {"T": protos.AttrValue(type=1)}
    for number in range(20):
        source = "x" if number == 0 else f"n{number - 1}"
        graph.add(Node(f"n{number}", "Neg", ((source, 0),), attr))
    seen: list[Any] = []
    values = [(f"n{number}", 0) for number in range(20)]
    for number, (_, value) in enumerate(
        Interpreter(graph, {}.__getitem__).stream({"x": torch.ones(3)}, values)
    ):
        seen.append(weakref.ref(value))
        del value
        assert [reference() is not None for reference in seen[: number - 1]] == [False] * max(
            number - 1, 0
        )


@pytest.mark.parametrize(
    ("value", "right"),
    [
        (np.float32(0.2), 0.2),
        (np.float32(0.16667), 0.16667),
        (np.float32(1e-3), 1e-3),
        (np.float32(1.0001e-3), 1.0001e-3),
        (np.float32(1 / 1452), 1 / 1452),
        (np.float32(-1 / 3), -1 / 3),
        (np.float32(10000), 10000.0),
        (np.float32(0), 0.0),
        (np.float32(np.inf), np.inf),
        # Nobody wrote these.
        (np.float32(0.70710678), float(np.float32(0.70710678))),
        (np.float32(-2.7182817), float(np.float32(-2.7182817))),
    ],
)
def test_constants_are_the_decimals_that_were_meant(value: np.float32, right: float) -> None:
    assert meant(float(value)) == right


# ---- graphs that nobody should trust


def attribute(**value: Any) -> Any:
    return protos.AttrValue(**value)


FLOAT = {"type": 1}


def node(name: str, op: str, *inputs: str, **attr: Any) -> Any:
    return protos.NodeDef(
        name=name, op=op, input=inputs, attr={k: attribute(**v) for k, v in attr.items()}
    )


def function(name: str, nodes: list[Any], result: str = "n:y:0", controls: Any = ()) -> Any:
    argument = {"name": "x", "type": 1}
    return protos.FunctionDef(
        signature={"name": name, "input_arg": [argument], "output_arg": [{"name": "y", "type": 1}]},
        node_def=nodes,
        ret={"y": result},
        control_ret={c: c for c in controls},
    )


def neg(name: str, source: str) -> Any:
    return node(name, "Neg", source, T=FLOAT)


def call(name: str, called: str, *inputs: str) -> Any:
    return node(name, "PartitionedCall", *inputs, f={"func": {"name": called}})


def saved_of(*functions: Any, result: str = "run:0") -> SavedModel:
    """Return a SavedModel whose signature calls the first function."""
    meta = protos.MetaGraphDef()
    signature = meta.signature_def["serving_default"]
    signature.inputs["x"].name = "given:0"
    signature.outputs["y"].name = result
    top = [
        node("given", "Placeholder", dtype=FLOAT),
        call("run", functions[0].signature.name, "given"),
    ]
    return SavedModel(
        Path("model"),
        protos.GraphDef(node=top),
        {f.signature.name: f for f in functions},
        meta.signature_def,
        meta.object_graph_def,
    )


def computed(*functions: Any, x: Any = (1.0, -2.0), **options: Any) -> list[float]:
    saved = saved_of(*functions, **options)
    run = Interpreter(flatten(saved, "serving_default"), saved.value)
    return list(run(x=torch.tensor(x))["y"].flatten().tolist())


def test_calls_are_inlined_in_any_order_of_nodes() -> None:
    outer = function("f", [call("n", "g", "m:y:0"), neg("m", "x")], "n:output:0")
    inner = function("g", [node("n", "AddV2", "x", "x", T=FLOAT)], "n:z:0")
    assert computed(outer, inner) == [-2.0, 4.0]


def test_outputs_are_those_of_the_operation_s_registry() -> None:
    split = node("s", "Split", "a:output:0", "x", T=FLOAT, num_split={"i": 2})
    axis = node(
        "a",
        "Const",
        dtype={"type": 3},
        value={"tensor": {"dtype": 3, "int_val": [0], "tensor_shape": {}}},
    )
    assert computed(function("f", [split, axis], "s:output:1")) == [-2.0]
    for wrong in ("s:output:2", "s:z:0", "s:output:-1", "s:output:x", "s:output:0:0", "s:2"):
        with pytest.raises(ConversionError, match=r"'s:.*output \(2\)"):
            computed(function("f", [split, axis], wrong))


HOSTILE: dict[str, tuple[list[Any], str]] = {
    "a circle": ([function("f", [neg("n", "m:y:0"), neg("m", "n:y:0")])], "needs 'n'"),
    "a node of itself": ([function("f", [neg("n", "n:y:0")])], "needs 'n'"),
    "a missing node": ([function("f", [neg("n", "nowhere:y:0")])], "'nowhere'"),
    "a missing result": ([function("f", [neg("n", "x")], "nowhere:y:0")], "'nowhere:y:0'"),
    "a missing function": ([function("f", [call("n", "g", "x")], "n:output:0")], "'g' is missing"),
    "a function of itself": ([function("f", [call("n", "f", "x")], "n:output:0")], "calls itself"),
    "too few arguments": (
        [function("f", [call("n", "g")], "n:output:0"), function("g", [neg("n", "x")])],
        "0 values",
    ),
    "two nodes of one name": ([function("f", [neg("n", "x"), neg("n", "x")])], "two nodes"),
    "an unknown operation": ([function("f", [node("n", "Fft", "x", T=FLOAT)])], "n: Fft"),
    "an unknown attribute": (
        [function("f", [node("n", "Neg", "x", T=FLOAT, u={"i": 1})])],
        "attribute u",
    ),
    "no type": ([function("f", [node("n", "Neg", "x")])], "attribute T is missing"),
    "an attribute of another kind": (
        [function("f", [node("n", "Neg", "x", T={"i": 1})])],
        "no type: i",
    ),
    "an unknown type": ([function("f", [node("n", "Neg", "x", T={"type": 19})])], "data type 19"),
    "another type": ([function("f", [node("n", "Neg", "x", T={"type": 3})])], "data types"),
    "too many inputs": ([function("f", [node("n", "Neg", "x", "x", T=FLOAT)])], "data types"),
    "a side effect": (
        [function("f", [neg("n", "x"), node("a", "AssignVariableOp", "x")], controls=["a"])],
        "AssignVariableOp",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_graphs_that_cannot_be_are_refused_in_one_line(what: str) -> None:
    functions, message = HOSTILE[what]
    with pytest.raises(ConversionError) as caught:
        computed(*functions)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None or "Recursion" not in str(caught.value.__cause__)


@pytest.mark.parametrize("shape", [[1 << 40], [1 << 20, 1 << 20], [-1]])
def test_values_larger_than_any_network_s_are_refused(shape: list[int]) -> None:
    dims = {"dtype": 9, "int64_val": shape, "tensor_shape": {"dim": [{"size": len(shape)}]}}
    nodes = [
        node("d", "Const", dtype={"type": 9}, value={"tensor": dims}),
        node("n", "Fill", "d:output:0", "x", T=FLOAT, index_type={"type": 9}),
    ]
    with pytest.raises(ConversionError, match="graph node n: Fill cannot be computed: a tensor of"):
        computed(function("f", nodes, "n:output:0"), x=1.0)


NUMBERS = (-(1 << 62), -5, -1, 0, 1, 2, 3, 7, 1 << 20, 1 << 31, 1 << 40, 1 << 62)
TEXTS = (b"SAME", b"VALID", b"EXPLICIT", b"NHWC", b"NCDHW", b"\xff")


def changed(node: Node, r: np.random.Generator) -> Node:
    """Return a node with one of its attributes, a constant's numbers included, changed."""
    attr = {
        name: protos.AttrValue.FromString(value.SerializeToString())
        for name, value in node.attr.items()
        if not name.startswith("_")
    }
    value = attr[str(r.choice(list(attr)))]
    number = int(r.choice(NUMBERS))
    kind = value.WhichOneof("value")
    if kind == "i":
        value.i = number
    elif kind == "b":
        value.b = not value.b
    elif kind == "type":
        value.type = int(r.integers(25))
    elif kind == "f":
        value.f = float(r.choice([0, -1, 1e30, np.nan]))
    elif kind == "s":
        value.s = TEXTS[r.integers(len(TEXTS))]
    elif kind == "list" and value.list.i:
        value.list.i[r.integers(len(value.list.i))] = number
    elif kind == "tensor" and value.tensor.dtype in (3, 9):
        value.tensor.tensor_content = b""
        values = value.tensor.int_val if value.tensor.dtype == 3 else value.tensor.int64_val
        values[:] = [max(min(number, 2**31 - 1), -(2**31))]
    return dataclasses.replace(node, attr=attr)


def test_changed_nodes_are_computed_or_refused_in_one_line(
    opened: Callable[[str], SavedModel], one_thread: None
) -> None:
    saved = opened("era1_mini_base")
    graph = flatten(saved, "serving_default")
    image = torch.rand(1, 2, 20, 20, 3)
    messages = []
    for seed in range(80):
        r = np.random.default_rng(seed)
        other = Graph()
        other.nodes = dict(graph.nodes)
        other.captured, other.inputs, other.outputs = graph.captured, graph.inputs, graph.outputs
        name = str(r.choice([n.name for n in graph.nodes.values() if n.op != "NoOp" and n.attr]))
        other.nodes[name] = changed(graph.nodes[name], r)
        try:
            Interpreter(other, saved.value)(image=image)
        except ConversionError as error:
            messages.append(str(error))
    assert 10 < len(messages) < 75
    assert all(message.startswith("graph node ") for message in messages)
    assert not any("\n" in message for message in messages)


def test_calls_that_double_at_every_level_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "MOST_NODES", 5000)
    levels = [
        function(
            f"f{n}",
            [call("a", f"f{n + 1}", "x"), call("n", f"f{n + 1}", "a:output:0")],
            "n:output:0",
        )
        for n in range(DEEPEST_CALL - 2)
    ]
    last = function(f"f{DEEPEST_CALL - 2}", [], "x")
    with pytest.raises(ConversionError, match="more than 5000 nodes"):
        computed(*levels, last)


def test_a_long_chain_needs_no_recursion() -> None:
    chain = [neg(f"n{k}", f"n{k - 1}:y:0" if k else "x") for k in range(20_000)]
    assert computed(function("f", list(reversed(chain)), "n19999:y:0")) == [1.0, -2.0]


def test_arguments_are_checked() -> None:
    saved = saved_of(function("f", [neg("n", "x")]))
    run = Interpreter(flatten(saved, "serving_default"), saved.value)
    with pytest.raises(ConversionError, match="needs its argument x"):
        run()
    with pytest.raises(ConversionError, match="no argument z; it takes x"):
        run(z=torch.ones(1))
    with pytest.raises(ConversionError, match=r"argument x is torch\.int64, expected"):
        run(x=torch.ones(1, dtype=torch.int64))
    with pytest.raises(ConversionError, match="no signature named call, found serving_default"):
        flatten(saved, "call")
    with pytest.raises(ConversionError, match="no node 'm'"):
        list(run.stream({"x": torch.ones(1)}, [("m", 0)]))
    with pytest.raises(ConversionError, match="n: Neg cannot be computed: it has no output 1"):
        list(run.stream({"x": torch.ones(1)}, [("n", 1)]))
