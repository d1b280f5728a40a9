"""Exported networks beside the one they were made from."""

from __future__ import annotations

import configparser
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import containers
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from converters import convert
from converters.errors import ConversionError
from converters.to_tensorflow import export_to_tensorflow
from movinet_port import Checkpoint, MoViNet, load_checkpoint, save
from movinet_port.command_line.cli import main
from movinet_port.command_line.export import export
from movinet_port.errors import MismatchError
from movinet_port.export import ClipShape, ExportError, export_checkpoint, onnx_graph, targets

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "weights/samples/movinet_mini_stream.tar.gz"

# Largest difference, as a share of the largest magnitude.
TOLERANCE = 2e-5

LABELS = tuple("abcdefg")

State = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def checkpoint(mini_spec, randomised) -> Callable[..., Checkpoint]:
    def build(mode: str = "base", **changes: Any) -> Checkpoint:
        spec = mini_spec(mode, **changes)
        model = randomised(MoViNet(spec))
        return Checkpoint(spec, model.state_dict(), {"source": "random"}, LABELS)

    return build


class Session:
    """An ONNX file, used as the page on exporting says: with nothing of movinet-port."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options)
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.outputs = {o.name: o for o in self.session.get_outputs()}

    def zeros(self, batch: int, height: int, width: int) -> State:
        sizes = {"batch": batch, "height": height, "width": width}

        def length(axis: int | str) -> int:
            if isinstance(axis, int):
                return axis
            name, _, divisor = axis.partition("/")
            return -(-sizes[name] // int(divisor or 1))

        dtypes = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        return {
            name: np.zeros([length(axis) for axis in value.shape], dtypes[value.type])
            for name, value in self.inputs.items()
            if name != "video"
        }

    def __call__(self, clip: torch.Tensor, state: State) -> tuple[np.ndarray, State]:
        found = self.session.run(None, {"video": clip.numpy(), **state})
        values = dict(zip(self.outputs, found, strict=True))
        return values.pop("logits"), {name.removesuffix(".next"): v for name, v in values.items()}


def assert_close(found: np.ndarray, expected: torch.Tensor) -> None:
    assert found.shape == tuple(expected.shape)
    difference = np.abs(found - expected.numpy()).max() / np.abs(expected.numpy()).max()
    assert difference <= TOLERANCE


def assert_follows(session: Session, model: MoViNet, clips: list[torch.Tensor]) -> None:
    """Each side carries its own state from clip to clip."""
    batch, _, _, height, width = clips[0].shape
    streams = model.spec.causal
    ours = model.init_state(batch, height, width) if streams else {}
    theirs = session.zeros(batch, height, width)
    for clip in clips:
        with torch.inference_mode():
            if streams:
                logits, ours = model.step(clip, ours)
            else:
                logits = model(clip)
        found, theirs = session(clip, theirs)
        assert_close(found, logits)
        assert theirs.keys() == ours.keys()
        for name, value in ours.items():
            assert_close(theirs[name], value)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("base", {}),
    "base-2plus1d": ("base", {"conv_type": "2plus1d", "se_type": "2plus3d"}),
    "base-relu6": ("base", {"activation": "relu6", "se_type": "2d"}),
    "stream": ("stream", {}),
    "stream-posenc": ("stream", {"positional_encoding": True, "gate": "hard_sigmoid_relu6"}),
    "stream-3d": ("stream", {"conv_type": "3d", "se_type": "3d", "gate": "sigmoid"}),
    "stream-legacy": ("stream", {"conv_type": "3d", "causal_padding": "legacy"}),
    "base-port": ("base", {"causal_padding": "legacy", "pool_counts_padding": True}),
    "stream-port": ("stream", {"causal_padding": "legacy", "pool_counts_padding": True}),
    "stream-no-se": ("stream", {"se_type": "none", "activation": "relu"}),
}


@pytest.fixture(scope="module", params=KINDS)
def exported(request, checkpoint, tmp_path_factory) -> Iterator[tuple[Session, MoViNet]]:
    mode, changes = KINDS[request.param]
    path = tmp_path_factory.mktemp(request.param) / "network.onnx"
    source = checkpoint(mode, **changes)
    export_checkpoint(source, path, "onnx", verify=False)
    return Session(path), source.build()


@pytest.mark.parametrize(
    "size", [(19, 26), (32, 32), (33, 47), (46, 21)], ids=lambda size: "{}x{}".format(*size)
)
def test_onnx_gives_the_networks_logits_and_states_at_any_size(exported, video, size) -> None:
    session, model = exported
    height, width = size
    clips = [
        video(2, frames, height, width, seed=frames, dtype=torch.float32) for frames in (3, 1, 2)
    ]
    assert_follows(session, model, clips)


def test_onnx_carries_its_state_over_ten_chunks(exported, video) -> None:
    session, model = exported
    clips = [video(2, 1 + n % 3, 27, 22, seed=n, dtype=torch.float32) for n in range(10)]
    assert_follows(session, model, clips)


STREAMS = [kind for kind, (mode, _) in KINDS.items() if mode == "stream"]


@pytest.mark.parametrize("kind", [*STREAMS, "stream-se-3d"])
def test_onnx_of_one_frame_at_a_time_follows_too(kind, checkpoint, video, tmp_path) -> None:
    source = checkpoint("stream", **(KINDS[kind][1] if kind in KINDS else {"se_type": "3d"}))
    path = tmp_path / "x.onnx"
    export_checkpoint(source, path, "onnx", ClipShape(frames=1), verify=False)
    for height, width in ((27, 22), (32, 35)):
        clips = [video(2, 1, height, width, seed=n, dtype=torch.float32) for n in range(10)]
        assert_follows(Session(path), source.build(), clips)


def test_onnx_of_one_frame_at_a_time_has_no_3d_convolution(checkpoint, tmp_path) -> None:
    export_checkpoint(checkpoint("stream"), tmp_path / "x.onnx", "onnx", ClipShape(frames=1))
    nodes = onnx.load(tmp_path / "x.onnx").graph.node
    kernels = [a.ints for n in nodes if n.op_type == "Conv" for a in n.attribute]
    assert {len(k) for k in kernels} <= {0, 2, 4}


def test_onnx_names_states_as_the_network_does(exported) -> None:
    session, model = exported
    states = model.state_shapes(48, 48) if model.spec.causal else {}
    assert set(session.inputs) == {"video", *states}
    assert set(session.outputs) == {"logits", *(f"{name}.next" for name in states)}
    assert session.inputs["video"].shape == ["batch", 3, "frames", "height", "width"]
    zeros = session.zeros(1, 48, 48)
    assert {name: zeros[name].shape[1:] for name in states} == states


def test_onnx_says_what_it_is(checkpoint, tmp_path) -> None:
    source = checkpoint("stream")
    export_checkpoint(source, tmp_path / "x.onnx", "onnx", verify=False)
    model = onnx.load(tmp_path / "x.onnx")
    onnx.checker.check_model(model, full_check=True)
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert facts["labels"] == list(LABELS)
    assert facts["spec"] == source.spec.to_dict()
    assert facts["provenance"] == {"source": "random"}
    assert facts["inputs"]["block3_layer0.stream_buffer"] == [
        "batch", 40, 4, "height/16", "width/16",
    ]  # fmt: skip


def test_onnx_with_fixed_sizes_takes_no_other(checkpoint, video, tmp_path) -> None:
    source = checkpoint("stream")
    shape = ClipShape(batch=1, frames=2, height=33, width=46)
    result = export_checkpoint(source, tmp_path / "x.onnx", "onnx", shape)
    assert result.comparison
    assert set(result.comparison.clips) == {(1, 2, 33, 46)}
    session = Session(tmp_path / "x.onnx")
    assert session.inputs["block1_layer0.stream_buffer"].shape == [1, 24, 2, 5, 6]
    clips = [video(1, 2, 33, 46, seed=n, dtype=torch.float32) for n in range(3)]
    assert_follows(session, source.build(), clips)
    with pytest.raises(Exception, match="Got: 3 Expected: 2"):
        session(video(1, 3, 33, 46, dtype=torch.float32), session.zeros(1, 33, 46))


def test_an_export_with_wrong_weights_is_found_and_not_written(
    checkpoint, tmp_path, monkeypatch
) -> None:
    folded = onnx_graph._Emitter._folded

    def wrong(self: Any, conv: str, *rest: Any) -> Any:
        weight, bias = folded(self, conv, *rest)
        return weight, bias + (0.01 if conv == "block2_layer1.projection.conv" else 0)

    monkeypatch.setattr(onnx_graph._Emitter, "_folded", wrong)
    (tmp_path / "x.onnx").write_bytes(b"before")
    with pytest.raises(MismatchError, match="differs from PyTorch"):
        export_checkpoint(checkpoint("stream"), tmp_path / "x.onnx", "onnx")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x.onnx", b"before")]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("mode", ["base", "stream"])
@pytest.mark.parametrize("target", ["torchscript", "exported-program"])
def test_programs_run_without_movinet_port(target, mode, tiny_spec, randomised, video, tmp_path):
    model = randomised(MoViNet(tiny_spec(mode)))
    source = Checkpoint(model.spec, model.state_dict())
    height, width = 27, 22
    shape = ClipShape(None, None, height, width) if target == "exported-program" else ClipShape()
    result = export_checkpoint(source, tmp_path / "x.pt2", target, shape)
    assert result.comparison
    assert result.comparison.logits <= TOLERANCE
    load: Any = torch.jit.load
    if target == "exported-program":

        def load(path):
            return torch.export.load(path).module()

    program = load(tmp_path / "x.pt2")
    ours = theirs = model.init_state(3, height, width) if mode == "stream" else None
    with torch.inference_mode():
        for n in range(3):
            clip = video(3, 1 + n, height, width, seed=n, dtype=torch.float32)
            if theirs is None:
                assert_close(program(clip).numpy(), model(clip))
                continue
            expected, ours = model.step(clip, ours)
            found, theirs = program(clip, theirs)
            assert_close(found.numpy(), expected)
            assert theirs.keys() == ours.keys()


def test_safetensors_is_a_checkpoint(checkpoint, tmp_path) -> None:
    source = checkpoint("stream")
    export_checkpoint(source, tmp_path / "x.safetensors", "safetensors")
    again = load_checkpoint(tmp_path / "x.safetensors")
    assert again.spec == source.spec
    assert again.labels == LABELS
    assert all(torch.equal(again.state_dict[k], v) for k, v in source.state_dict.items())


REFUSED = [
    ("no such target", "onxx", "x.onnx", {}, "did you mean 'onnx'"),
    ("size of weights", "safetensors", "x.safetensors", {"frames": 3}, "no sizes of a clip"),
    ("suffix", "safetensors", "x.bin", {}, "ends in .safetensors"),
    ("free size", "exported-program", "x.pt2", {"frames": 3}, "--size"),
]


@pytest.mark.parametrize(("target", "name", "sizes", "reason"), [r[1:] for r in REFUSED],
                         ids=[r[0] for r in REFUSED])  # fmt: skip
def test_what_cannot_be_exported_is_refused(
    checkpoint, tmp_path, target: str, name: str, sizes: Mapping[str, int], reason: str
) -> None:
    with pytest.raises(ExportError, match=re.escape(reason)):
        export_checkpoint(checkpoint(), tmp_path / name, target, ClipShape(**sizes))
    assert list(tmp_path.iterdir()) == []


# Back to TensorFlow.


def from_records(spec) -> tuple[list[containers.Record], Checkpoint]:
    found = containers.records(spec)
    state_dict = {r.canonical: torch.from_numpy(np.array(r.weight)) for r in found}
    for name, tensor in MoViNet(spec).state_dict().items():
        if name.endswith("num_batches_tracked"):
            state_dict[name] = tensor
    return found, Checkpoint(spec, state_dict)


TF_KINDS = {**KINDS, "stream-3d_2plus1d": ("stream", {"conv_type": "3d_2plus1d"})}


@pytest.mark.parametrize("kind", TF_KINDS)
def test_tf_checkpoint_holds_every_variable_where_the_authors_have_it(
    mini_spec, tmp_path, kind
) -> None:
    import tensorflow as tf
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    mode, changes = TF_KINDS[kind]
    found, source = from_records(mini_spec(mode, **changes))
    export_to_tensorflow(source, tmp_path / "ckpt", "tf-checkpoint")
    reader = tf.train.load_checkpoint(str(tmp_path / "ckpt"))
    values = {
        name.removeprefix("model/").removesuffix(containers.VALUE): reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name.startswith("model/")
    }
    assert values.keys() == {record.object_path for record in found}
    for record in found:
        np.testing.assert_array_equal(values[record.object_path], record.value)
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor(containers.OBJECT_GRAPH))
    full = {a.full_name for node in graph.nodes for a in node.attributes} - {"save_counter"}
    assert full == {re.sub(r"(conv2d)_\d+/", r"\1/", record.later) for record in found}


def test_savedmodel_to_pt_to_tf_checkpoint_to_pt_keeps_every_bit(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    first = convert(SAMPLE, verify=False)
    save(first, tmp_path / "sample.pt")
    export_to_tensorflow(load_checkpoint(tmp_path / "sample.pt"), tmp_path / "c", "tf-checkpoint")
    second = convert(tmp_path / "c", verify=False, gate=first.spec.gate)
    assert second.spec == first.spec
    assert second.state_dict.keys() == first.state_dict.keys()
    assert all(torch.equal(second.state_dict[k], v) for k, v in first.state_dict.items())


def test_a_checkpoint_without_a_weight_is_not_written(checkpoint, tmp_path) -> None:
    source = checkpoint()
    weights = dict(source.state_dict)
    del weights["block1_layer0.skip.norm.bias"]
    with pytest.raises(Exception, match=r"block1_layer0\.skip\.norm\.bias is missing"):
        export_to_tensorflow(Checkpoint(source.spec, weights), tmp_path / "c", "tf-checkpoint")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["saved-model", "keras-h5"])
def test_without_the_authors_code_the_error_names_the_extra(
    checkpoint, tmp_path, monkeypatch, target
) -> None:
    monkeypatch.setitem(sys.modules, "official", None)
    monkeypatch.setitem(sys.modules, "official.projects.movinet.modeling", None)
    with pytest.raises(ConversionError, match=re.escape("movinet-port[tf,reference]")):
        export_to_tensorflow(checkpoint(), tmp_path / "x.h5", target)
    assert list(tmp_path.iterdir()) == []


def test_positional_encodings_do_not_fit_into_one_h5(checkpoint, tmp_path) -> None:
    source = checkpoint("stream", positional_encoding=True)
    with pytest.raises(ConversionError, match=re.escape(".weights.h5")):
        export_to_tensorflow(source, tmp_path / "x.h5", "keras-h5")


# The command.


@pytest.fixture
def weights(checkpoint, tmp_path) -> str:
    path = tmp_path / "mini.pt"
    save(checkpoint("stream"), path)
    return str(path)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["export", *arguments])
    return int(ended.value.code or 0)


def test_export_writes_and_says_how_far_it_is(weights, tmp_path, capfd) -> None:
    out = str(tmp_path / "mini.onnx")
    assert run("--weights", weights, "--to", "onnx", "-o", out, "--size", "33x46") == 0
    said = capfd.readouterr().out
    assert "takes       (batch, 3, frames, 33, 46)" in said
    assert re.search(
        r"compared    \d clips: logits differ by \d\.\de[-+]\d\d of the largest one", said
    )
    assert Session(Path(out)).inputs["video"].shape == ["batch", 3, "frames", 33, 46]


def test_a_new_target_is_one_row(weights, tmp_path, capfd, monkeypatch) -> None:
    def write(request: targets.Request) -> tuple[None, targets.Notes]:
        request.path.write_text(request.checkpoint.spec.name)
        return None, (("noted", str(request.shape)),)

    row = targets.Target("list of names", write, verified=False)
    monkeypatch.setitem(sys.modules[export.callback.__module__].TARGETS, "names", row)
    (option,) = [p for p in export.params if p.name == "target"]
    monkeypatch.setattr(option.type, "choices", [*option.type.choices, "names"])
    out = tmp_path / "names.txt"
    assert run("--weights", weights, "--to", "names", "-o", str(out), "--frames", "2") == 0
    assert out.read_text() == "custom"
    assert "noted       (batch, 3, 2, height, width)" in capfd.readouterr().out


def test_every_target_needs_an_extra_that_exists() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    rows = sys.modules[export.callback.__module__].TARGETS
    assert {row.extra for row in rows.values()} - {None} <= set(config["options.extras_require"])


def test_a_mismatch_is_exit_code_1(weights, tmp_path, capfd, monkeypatch) -> None:
    def off(path: Path) -> Any:
        honest = targets.run_onnx(path)

        def runner(clip: torch.Tensor, state: Any) -> Any:
            logits, state = honest(clip, state)
            return logits * 1.001, state

        return runner

    broken = targets.Target("ONNX file", targets.beside("ONNX file", targets.write_onnx, off))
    monkeypatch.setitem(sys.modules[export.callback.__module__].TARGETS, "onnx", broken)
    out = tmp_path / "mini.onnx"
    assert run("--weights", weights, "--to", "onnx", "-o", str(out)) == 1
    assert capfd.readouterr().err.count("\n") == 1
    assert not out.exists()
    assert run("--weights", weights, "--to", "onnx", "-o", str(out), "--no-verify") == 0
    assert out.exists()


BAD = {
    "no size": (["--to", "onnx", "--size", "0"], "expected a number of pixels, or HEIGHTxWIDTH"),
    "large": (["--to", "onnx", "--size", "100000"], "HEIGHTxWIDTH, such as 172, of at most 4096"),
    "large in all": (["--to", "onnx", "--size", "4096", "--frames", "17"], "17 frames of 4096 x"),
    "many": (["--to", "onnx", "--size", "32", "--frames", "1000000000"], "1000000000 frames of 32"),
    "no target": (["--to", "onix"], "onnx"),
    "no frames": (["--to", "onnx", "--frames", "0"], "--frames"),
    "free size": (["--to", "exported-program"], "--size"),
    "size of a checkpoint": (["--to", "tf-checkpoint", "--size", "32"], "leaves every size free"),
}


@pytest.mark.parametrize(("arguments", "reason"), BAD.values(), ids=list(BAD))
def test_bad_arguments_are_one_line_and_exit_code_2(
    weights, tmp_path, capfd, arguments: list[str], reason: str
) -> None:
    assert run("--weights", weights, *arguments, "-o", str(tmp_path / "out")) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert reason in error
    assert [path.name for path in tmp_path.iterdir()] == ["mini.pt"]


def test_the_checkpoint_is_not_overwritten(weights, capfd) -> None:
    assert run("--weights", weights, "--to", "onnx", "-o", weights) == 2
    assert "is the checkpoint itself" in capfd.readouterr().err


def test_a_missing_package_is_named_with_its_extra(weights, tmp_path, capfd, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert run("--weights", weights, "--to", "onnx", "-o", str(tmp_path / "x.onnx")) == 2
    assert "pip install 'movinet-port[onnx]'" in capfd.readouterr().err


def test_a_saved_model_is_not_written_over_something(weights, tmp_path, capfd) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("kept")
    arguments = ["--weights", weights, "--to", "saved-model", "-o", str(tmp_path / "there")]
    assert run(*arguments) == 2
    assert "exists" in capfd.readouterr().err
    assert (tmp_path / "there/file").read_text() == "kept"
