"""TF Lite files: reading them, computing them, and the networks converted from them."""

from __future__ import annotations

import dataclasses
import io
import random
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import Answer, HubServer

from converters.convert import convert_source
from converters.errors import ConversionError
from converters.tflite.export import TARGETS, LiteRt
from converters.tflite.network import LiteNetwork
from converters.tflite.schema import read_lite_model
from converters.tflite.verify import LiteStream
from movinet_port import create_model, optimize
from movinet_port.checkpoint import Checkpoint, save
from movinet_port.export import ClipShape, export_checkpoint
from movinet_port.export.onnx_file import run_onnx
from movinet_port.labels import read_labels
from movinet_port.model import MoViNet
from movinet_port.predict import load_predictor
from movinet_port.wiring import wiring
from parity import compare
from parity.clips import random_clip
from parity.references import TfliteReference

DATA = Path(__file__).parent / "data"
TRAINED = Path(__file__).parents[2] / "shared" / "trained"
FILES = sorted(DATA.glob("lite_*.tflite"))
NAMES = [path.name.removeprefix("lite_").removesuffix(".tflite") for path in FILES]
needs_trained = pytest.mark.skipif(
    not TRAINED.is_dir(), reason="the trained file is not part of the project"
)


def expected(path: Path) -> dict[str, np.ndarray]:
    """Return the video and what the authors' network gives, before it was quantised."""
    stem = path.name.removesuffix(".tflite").rpartition(".")[0]
    with np.load(path.with_name(f"{stem}.expected.npz")) as found:
        return {"video": found["video"].astype(np.float64), "logits": found["logits"]}


def frames_of(model: MoViNet, video: np.ndarray) -> np.ndarray:
    """Return the network's logits after each frame, (batch, frames, classes)."""
    clips = torch.from_numpy(video).to(next(model.parameters()).dtype).permute(0, 4, 1, 2, 3)
    with torch.inference_mode():
        logits = [model(clips[:, :, t : t + 1]) for t in range(clips.shape[2])]
    model.clean_activation_buffers()
    return torch.stack(logits, 1).double().numpy()


def largest(found: np.ndarray, right: np.ndarray) -> float:
    """Return the largest difference, relative to the largest value."""
    return float(np.abs(found - right).max() / np.abs(right).max())


def test_there_are_files_of_every_kind() -> None:
    assert {name.partition(".")[2] for name in NAMES} == {"float32", "float16", "dynamic", "int8"}
    assert {name.partition(".")[0] for name in NAMES} >= {"relu6_gate", "keras_gate", "no_se"}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_reader_finds_what_the_generated_schema_does(path: Path) -> None:
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    whole = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    (graph,) = whole.subgraphs
    model = read_lite_model(path)
    assert len(model.tensors) == len(graph.tensors)
    for ours, theirs in zip(model.tensors, graph.tensors, strict=True):
        assert ours.name == theirs.name.decode()
        assert ours.shape == tuple(theirs.shape)
        data = whole.buffers[theirs.buffer].data
        has_data = data is not None and len(data) > 0
        assert (ours.data is not None) == has_data
        if ours.data is not None:
            assert ours.data.tobytes() == bytes(data)
        if ours.quantization is not None:
            np.testing.assert_array_equal(ours.quantization.scale, theirs.quantization.scale)
            np.testing.assert_array_equal(
                ours.quantization.zero_point, theirs.quantization.zeroPoint
            )
            assert ours.quantization.axis == theirs.quantization.quantizedDimension
    names = {value: key for key, value in vars(schema.BuiltinOperator).items()}
    for ours, theirs in zip(model.operations, graph.operators, strict=True):
        assert ours.kind == names[whole.operatorCodes[theirs.opcodeIndex].builtinCode]
        assert ours.inputs == tuple(theirs.inputs)
        assert ours.outputs == tuple(theirs.outputs)
        strides = getattr(theirs.builtinOptions, "strideH", None)
        if strides is not None:
            assert ours.options["strides"] == (strides, theirs.builtinOptions.strideW)
    (signature,) = whole.signatureDefs
    key = signature.signatureKey.decode()
    for side in ("inputs", "outputs"):
        right = {entry.name.decode(): entry.tensorIndex for entry in getattr(signature, side)}
        assert getattr(model.signatures[key], side) == right


@pytest.mark.parametrize("path", [p for p in FILES if ".float32." in p.name], ids=str)
def test_a_float32_file_computes_what_the_authors_network_does(path: Path) -> None:
    right = expected(path)
    stream = LiteStream(read_lite_model(path))
    video = torch.from_numpy(right["video"])
    found = np.stack([stream(video[:, t : t + 1]).numpy() for t in range(video.shape[1])], 1)
    assert largest(found, right["logits"]) < 2e-6


# LiteRT rounds to 8 bits on the way where weights are.
@pytest.mark.parametrize("path", [p for p in FILES if ".float" in p.name], ids=str)
def test_a_file_is_computed_as_litert_does(path: Path) -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    runner = interpreter.Interpreter(str(path), num_threads=1).get_signature_runner()
    model = read_lite_model(path)
    stream = LiteStream(model)
    states: dict[str, Any] = {
        name: np.zeros(detail["shape"], detail["dtype"])
        for name, detail in runner.get_input_details().items()
        if name != "image"
    }
    video = expected(path)["video"]
    for t in range(video.shape[1]):
        states = runner(image=video[:, t : t + 1].astype(np.float32), **states)
        theirs = states.pop("logits")
        ours = stream(torch.from_numpy(video[:, t : t + 1])).numpy()
        assert largest(ours, theirs) < 5e-6


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_converted_file_gives_the_files_logits(path: Path) -> None:
    conversion = convert_source(path)
    agreement = conversion.verification
    assert agreement is not None
    assert agreement
    # The network is the file to the last digit where nothing had to be rounded to float32.
    exact = ".float" in path.name and "keras_gate" not in path.name
    assert agreement.logits < (1e-12 if exact else 3e-7)


# How far 8 and 16 bits put the weights' function from the authors' network: the mark of what was
# quantised, and no tolerance of the conversion's.
FROM_AUTHORS = {"float32": 2e-6, "float16": 2e-3, "dynamic": 2e-2, "int8": 0.15}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_converted_file_is_the_authors_network_but_for_its_quantisation(path: Path) -> None:
    right = expected(path)
    model = convert_source(path).checkpoint.build()
    bound = FROM_AUTHORS[path.name.split(".")[1]]
    assert largest(frames_of(model, right["video"]), right["logits"]) < bound


SPECS = {
    "relu6_gate": ("hard_swish", "hard_sigmoid_relu6", "2plus3d", "swish", True),
    "keras_gate": ("hard_swish", "hard_sigmoid_keras", "2plus3d", "swish", False),
    "sigmoid_gate": ("swish", "sigmoid", "2plus3d", "swish", False),
    "space_only": ("hard_swish", "hard_sigmoid_relu6", "2d", "swish", False),
    "no_se": ("relu6", "sigmoid", "none", "swish", False),
}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_architecture_is_read_off_the_operations(path: Path) -> None:
    conversion = convert_source(path, verify=False)
    spec = conversion.checkpoint.spec
    found = (
        spec.activation,
        spec.gate,
        spec.se_type,
        spec.classifier_activation,
        spec.positional_encoding,
    )
    assert found == SPECS[path.name.split(".")[0].removeprefix("lite_")]
    assert spec.causal
    assert spec.conv_type == "2plus1d"
    assert spec.num_classes == 5
    assert [layer.strides[1] for layer in spec.layers()] == [2, 2, 1, 2, 1]
    assert [layer.kernel_size for layer in spec.layers()] == [
        (1, 5, 5),
        (3, 3, 3),
        (3, 3, 3),
        (1, 5, 5),
        (5, 3, 3),
    ]
    assert not [finding for finding in conversion.findings if finding.how == "assumed"]


def test_a_float16_files_rounded_constants_are_restored_by_their_role() -> None:
    path = DATA / "lite_relu6_gate.float16.tflite"
    model = read_lite_model(path)
    restored = LiteNetwork(model).constants_by_role()
    assert restored
    plain, meant = LiteStream(model), LiteStream(model, restored)
    clip = torch.from_numpy(expected(path)["video"][:, :1])
    # What float16 did to 0.16667 and to the encoding's rates is seen without.
    assert largest(plain(clip).numpy(), meant(clip).numpy()) > 1e-6


# Refusals --------------------------------------------------------------------------------------


def _renamed(path: Path, target: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    assert len(old) == len(new)
    target.write_bytes(data.replace(old, new))
    return target


def test_stripped_names_are_refused_with_the_reason(tmp_path: Path) -> None:
    source = DATA / "lite_relu6_gate.float32.tflite"
    stripped = _renamed(source, tmp_path / "x.tflite", b"/bneck/", b"/xxxxx/")
    with pytest.raises(ConversionError, match=r"do not say by the names .* which\s+layer"):
        convert_source(stripped)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no TFL3"),
        (b"\x10\0\0\0TFL3", "bytes at 16"),
        (b"\x10\0\0\0TFL2" + bytes(64), "no TFL3"),
        (struct.pack("<I4s", 2**31, b"TFL3"), "bytes at 2147483648"),
    ],
)
def test_what_is_no_such_file_is_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.tflite"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=words):
        convert_source(path)


def _converted(path: Path) -> tuple[Checkpoint | None, str]:
    try:
        return convert_source(path, verify=False).checkpoint, ""
    except ConversionError as error:
        return None, str(error)


def test_damaged_files_are_refused_or_convert_right(tmp_path: Path) -> None:
    source = DATA / "lite_no_se.int8.tflite"
    whole = source.read_bytes()
    right = convert_source(source, verify=False).checkpoint
    choose = random.Random(5)
    refused = 0
    for number in range(200):
        data = bytearray(whole)
        kind = number % 4
        if kind == 0:
            del data[choose.randrange(len(data)) :]
        elif kind == 1:
            data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
        elif kind == 2:
            place = choose.randrange(len(data) - 4)
            data[place : place + 4] = struct.pack("<I", choose.choice([0, 2**31, 2**32 - 1, 255]))
        else:
            place = choose.randrange(len(data) // 4) * 4
            data[place : place + 64] = choose.randbytes(64)
        path = tmp_path / "x.tflite"
        path.write_bytes(data)
        found, message = _converted(path)
        if found is None:
            assert message.isprintable()
            refused += 1
            continue
        # A number of the weights, which no checksum guards, or a byte that means nothing.
        assert found.state_dict.keys() == right.state_dict.keys()
    assert refused > 40


# The trained network ---------------------------------------------------------------------------


@needs_trained
def test_the_trained_files_network_gives_its_logits() -> None:
    conversion = convert_source(TRAINED / "kinetics_movinet_int8.tflite")
    assert conversion.verification
    spec = conversion.checkpoint.spec
    assert (spec.activation, spec.se_type, spec.num_classes) == ("relu6", "none", 600)
    with np.load(TRAINED / "kinetics_movinet_int8.expected.npz") as found:
        video, right = found["video"], found["frame_logits"]
    model = conversion.checkpoint.build()
    assert largest(frames_of(model, video), right) < 2e-5
    assert largest(frames_of(model.double(), video), right) < 1e-6


@needs_trained
@pytest.mark.parametrize("way", ["optimised", "onnx", "tflite"])
def test_the_trained_network_is_the_same_in_every_form(way: str, tmp_path: Path) -> None:
    checkpoint = convert_source(TRAINED / "kinetics_movinet_int8.tflite", verify=False).checkpoint
    with np.load(TRAINED / "kinetics_movinet_int8.expected.npz") as found:
        video, right = torch.from_numpy(found["video"][:, :3]), found["frame_logits"][:, :3]
    shape = ClipShape(1, 1, *video.shape[2:4])
    found = []
    if way == "optimised":
        network = optimize(checkpoint.build())
        found = [network(clip.permute(0, 4, 1, 2, 3)) for clip in video.split(1, 1)]
    elif way == "onnx":
        pytest.importorskip("onnxruntime")
        path = tmp_path / "x.onnx"
        export_checkpoint(checkpoint, path, "onnx", shape, verify=False)
        run, state = run_onnx(path), checkpoint.build().init_state(1, *video.shape[2:4])
        for clip in video.split(1, 1):
            logits, state = run(clip.permute(0, 4, 1, 2, 3).contiguous(), state)
            found.append(logits)
    else:
        pytest.importorskip("ai_edge_litert")
        path = tmp_path / "x.tflite"
        export_checkpoint(checkpoint, path, "tflite", shape, verify=False, targets=TARGETS)
        light = LiteRt(path)
        found = [light(clip) for clip in video.split(1, 1)]
    assert largest(torch.stack(found, 1).numpy(), right) < 2e-5


@needs_trained
def test_the_trained_network_knows_carving_ice(tmp_path: Path) -> None:
    pytest.importorskip("av")
    checkpoint = convert_source(TRAINED / "kinetics_movinet_int8.tflite", verify=False).checkpoint
    labels = read_labels(TRAINED / "kinetics600_label_map.txt", 600)
    weights = tmp_path / "trained.pt"
    save(dataclasses.replace(checkpoint, labels=labels), weights)
    prediction = load_predictor([weights]).predict(str(TRAINED / "carving_ice.mp4"))
    best = int(prediction.probabilities.argmax())
    assert labels[best] == "carving ice"
    assert float(prediction.probabilities.max()) > 0.95


def test_a_published_network_for_another_size_is_fed_frames_of_that_size(tmp_path: Path) -> None:
    pytest.importorskip("flatbuffers")
    model, path = create_model("a0", "stream", 5), tmp_path / "x.tflite"
    for size in (64, 172):
        export_checkpoint(
            Checkpoint(model.spec, model.state_dict()),
            path,
            "tflite",
            ClipShape(1, 1, size, size),
            verify=False,
            targets=TARGETS,
        )
        conversion = convert_source(path, verify=False)
        assert conversion.facts["takes"] == f"1 x {size} x {size} (frames, height, width)"
        made_for = conversion.checkpoint.input
        assert made_for is not None
        assert (made_for.size, made_for.resize) == {64: (64, 64), 172: (172, 192)}[size]


# Parity ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_parity_finds_every_activation_of_the_file_in_the_network(path: Path) -> None:
    reference = TfliteReference(path)
    model = Checkpoint(reference.spec, dict(reference.parameters)).build()
    clip = random_clip(1, 3, reference.size, 0)
    report = compare(reference, model, clip, chunks=[1, 2])
    assert report
    # Norms are folded into convolutions, and relu6 into both; nothing else is missing.
    absent = set(wiring(reference.spec)) - {layer.name for layer in report.layers}
    folded = {"conv", "temporal_conv", "pool"}
    if reference.spec.activation == "relu6":
        folded |= {"norm", "temporal_norm"}
    assert {name.rpartition(".")[2] for name in absent} <= folded
    assert max(layer.end_to_end for layer in report.layers) < 2


def test_parity_names_the_layer_that_is_wrong() -> None:
    reference = TfliteReference(DATA / "lite_relu6_gate.float32.tflite")
    weights = {name: value.clone() for name, value in reference.parameters.items()}
    weights["block1_layer1.depthwise.temporal_conv.weight"][3] *= 1.01
    model = Checkpoint(reference.spec, weights).build()
    report = compare(reference, model, random_clip(1, 3, reference.size, 0), chunks=[1, 2])
    assert not report
    wrong = [layer.name for layer in report.layers if layer.introduced > 10]
    assert wrong[0] == "block1_layer1.depthwise.temporal_norm"


@needs_trained
def test_parity_with_the_trained_file() -> None:
    reference = TfliteReference(TRAINED / "kinetics_movinet_int8.tflite")
    model = Checkpoint(reference.spec, dict(reference.parameters)).build()
    with np.load(TRAINED / "kinetics_movinet_int8.expected.npz") as found:
        video = np.moveaxis(found["video"], -1, 1)
    report = compare(reference, model, video[:, :, :3], chunks=[1, 2])
    assert report
    assert len(report.layers) > 90


# Downloads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("archived", [False, True], ids=["as TF Hub", "as Kaggle"])
def test_a_handle_of_a_tf_lite_file_downloads_and_converts(
    archived: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    content = (DATA / "lite_no_se.int8.tflite").read_bytes()
    handle = "/tensorflow/lite-model/movinet/a0/stream/kinetics-600/classification/tflite/int8/1"
    with HubServer().running() as server:
        if archived:
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w:gz") as archive:
                entry = tarfile.TarInfo("movinet.tflite")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
            url = server.publish("/google/movinet/1", packed.getvalue())
        else:
            url = server.serve(handle, Answer(content, "application/octet-stream"))
        first = convert_source(url, verify=False).checkpoint
        asked = len(server.requests)
        again = convert_source(url, verify=False).checkpoint
        assert len(server.requests) == asked
    if not archived:
        assert server.requests == [f"{handle}?lite-format=tflite"]
    right = convert_source(DATA / "lite_no_se.int8.tflite", verify=False).checkpoint
    for found in (first, again):
        assert found.spec == right.spec
        assert found.provenance["weights_sha256"] == right.provenance["weights_sha256"]
