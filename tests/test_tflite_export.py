"""Networks written as TF Lite files: LiteRT computes them, and they are read again."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from converters.convert import convert_source
from converters.tflite.export import TARGETS, LiteRt
from converters.tflite.schema import read_lite_model
from converters.tflite.verify import LiteStream
from movinet_port.agreement import LOGIT_BOUND
from movinet_port.checkpoint import Checkpoint, save
from movinet_port.command_line.cli import main
from movinet_port.errors import MovinetPortError
from movinet_port.export import ClipShape, ExportError, export_checkpoint
from movinet_port.model import MoViNet
from movinet_port.spec import BlockSpec, HeadSpec, ModelSpec, StemSpec
from movinet_port.video import write_video

pytest.importorskip("flatbuffers")
pytest.importorskip("ai_edge_litert")

SIZE = 33, 46
STREAM: dict[str, Any] = {
    "causal": True,
    "conv_type": "2plus1d",
    "se_type": "2plus3d",
    "activation": "hard_swish",
    "gate": "hard_sigmoid_relu6",
}
LEGACY = {"causal": True, "causal_padding": "legacy"}
NETWORKS: dict[str, dict[str, Any]] = {
    "stream": STREAM,
    "positions": {**STREAM, "positional_encoding": True},
    "keras gate": {**STREAM, "gate": "hard_sigmoid_keras"},
    "relu6": {**STREAM, "activation": "relu6", "se_type": "none", "gate": "sigmoid"},
    "space": {**STREAM, "se_type": "2d", "activation": "swish", "gate": "sigmoid"},
    "first stream": LEGACY,
    "base": {},
    "base apart": {"conv_type": "2plus1d", "se_type": "2plus3d"},
}


def checkpoint_of(name: str, labels: tuple[str, ...] | None = None) -> Checkpoint:
    """Return a small network with random weights, ReZero's and the encodings' scalars too."""
    spec = ModelSpec(
        "custom",
        StemSpec(8),
        (
            BlockSpec(8, (16,), ((1, 5, 5),), ((1, 2, 2),)),
            BlockSpec(12, (24, 16), ((3, 3, 3), (5, 3, 3)), ((1, 2, 2), (1, 1, 1))),
        ),
        HeadSpec(24, 40),
        5,
        **NETWORKS[name],
    )
    torch.manual_seed(3)
    model = MoViNet(spec)
    for key, value in model.state_dict().items():
        if key.endswith("scale"):
            value.uniform_(0.3, 0.8)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif key.endswith(("bias", "running_mean")):
            value.normal_(0.0, 0.3)
    return Checkpoint(spec, model.state_dict(), labels=labels)


def noise(frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((1, frames, *SIZE, 3), generator=generator)


def write(checkpoint: Checkpoint, path: Path, **options: Any) -> Any:
    frames = None if checkpoint.spec.causal else 4
    shape = ClipShape(None, frames, *SIZE)
    return export_checkpoint(checkpoint, path, "tflite", shape, targets=TARGETS, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_litert_computes_the_network(name: str, tmp_path: Path) -> None:
    # Logits and states are compared before the file appears.
    exported = write(checkpoint_of(name), tmp_path / "x.tflite")
    assert exported.comparison
    assert exported.comparison.logits < LOGIT_BOUND / 2


@pytest.mark.parametrize("name", NETWORKS)
def test_litert_and_float64_compute_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    write(checkpoint_of(name), path, verify=False)
    light, exact = LiteRt(path), LiteStream(read_lite_model(path))
    causal = NETWORKS[name].get("causal", False)
    for clip in noise(6).split(1, 1) if causal else [noise(4)]:
        found, right = light(clip), exact(clip.double())
        assert float((found - right).abs().max() / right.abs().max()) < 1e-5


ROUND_TRIPS = [name for name in NETWORKS if NETWORKS[name].get("conv_type") and "base" not in name]


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_what_is_written_converts_back_to_the_last_digit(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    checkpoint = checkpoint_of(name)
    write(checkpoint, path, verify=False)
    conversion = convert_source(path)
    agreement = conversion.verification
    assert agreement is not None
    # A Keras gate's factor of 0.2 is taken out of the weights again, which rounds them.
    assert agreement.logits < (1e-7 if name == "keras gate" else 1e-12)
    found = conversion.checkpoint.spec.replace(norm_epsilon=checkpoint.spec.norm_epsilon)
    assert found == checkpoint.spec
    model, back = checkpoint.build(), conversion.checkpoint.build()
    with torch.inference_mode():
        for clip in noise(3).permute(0, 4, 1, 2, 3).split(1, 2):
            right = model(clip)
            assert float((back(clip) - right).abs().max() / right.abs().max()) < LOGIT_BOUND


# What 16 and 8 bits may cost these random networks; wrong scales cost a hundred times as much.
COSTS = {"float16": 5e-3, "dynamic": 5e-2, "int8": 0.15}


@pytest.mark.parametrize("quantise", COSTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_quantised_files_are_the_network_but_for_their_rounding(
    name: str, quantise: str, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(name)
    path = tmp_path / "x.tflite"

    def clips(frames: int, size: tuple[int, int]) -> list[Tensor]:
        assert size == SIZE
        return [*noise(8 * frames, 5).split(frames, 1)]

    exported = write(checkpoint, path, quantise=quantise, calibration=clips)
    assert 0 < exported.comparison.logits < COSTS[quantise]
    whole = tmp_path / "whole.tflite"
    write(checkpoint, whole, verify=False)
    kinds = {tensor.dtype for tensor in read_lite_model(path).tensors}
    assert {"float16": "float16", "dynamic": "float32", "int8": "int8"}[quantise] in kinds


def test_large_kernels_take_a_quarter_in_8_bits(tmp_path: Path) -> None:
    spec = checkpoint_of("stream").spec.replace(head=HeadSpec(256, 2048))
    checkpoint = Checkpoint(spec, MoViNet(spec).state_dict())
    sizes = {}
    for quantise in (None, "float16", "dynamic"):
        path = tmp_path / f"{quantise}.tflite"
        write(checkpoint, path, quantise=quantise, verify=False)
        sizes[quantise] = path.stat().st_size
    assert sizes["float16"] < 0.6 * sizes[None]
    assert sizes["dynamic"] < 0.35 * sizes[None]


def test_names_and_shapes_are_those_of_the_authors_files(tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    write(checkpoint_of("positions"), path, verify=False)
    ours = read_lite_model(path)
    theirs = read_lite_model(Path(__file__).parent / "data" / "lite_relu6_gate.float32.tflite")
    (mine,), (right,) = ours.signatures.values(), theirs.signatures.values()
    assert ours.signatures.keys() == theirs.signatures.keys()
    shapes = {name: ours.tensors[index].shape for name, index in mine.inputs.items()}
    assert shapes["image"] == (1, 1, *SIZE, 3)
    assert shapes["state_block1_layer0_stream_buffer"] == (1, 2, 5, 6, 24)
    assert mine.inputs.keys() == mine.outputs.keys() ^ {"logits", "image"}
    # The networks differ in depth, and in nothing else that an app sees.
    ends = {name.partition("_layer0_")[2] for name in shapes if "block1_layer0" in name}
    assert ends == {
        name.partition("_layer0_")[2] for name in right.inputs if "block1_layer0" in name
    }
    assert {"state_head_pool_buffer", "state_head_pool_frame_count"} <= shapes.keys()
    kinds = {name: ours.tensors[index].dtype for name, index in mine.inputs.items()}
    assert kinds["state_head_pool_frame_count"] == "int32"
    assert next(iter(mine.outputs)) == "logits"


def test_labels_travel_in_the_file_and_come_back(tmp_path: Path) -> None:
    labels = ("a", "b", "c", "d", "ü")
    path = tmp_path / "x.tflite"
    write(checkpoint_of("stream", labels), path)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["labels.txt"]
    assert b"labels.txt" in read_lite_model(path).metadata["TFLITE_METADATA"]
    assert convert_source(path, verify=False).checkpoint.labels == labels


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        (ClipShape(height=32), {}, "name it with --size"),
        (ClipShape(2, None, 32, 32), {}, "one video at a time"),
        (ClipShape(1, 3, 32, 32), {}, "one frame at a time"),
        (ClipShape(1, 1, 32, 32), {"quantise": "int8"}, "--calibrate"),
        (ClipShape(1, 1, 32, 32), {"quantise": "int4"}, "float16, dynamic, int8"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    shape: ClipShape, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.tflite"
    with pytest.raises(MovinetPortError, match=words):
        export_checkpoint(
            checkpoint_of("stream"), path, "tflite", shape, targets=TARGETS, **options
        )
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from converters.tflite import emit

    right = emit.same_padding
    # One cell too many in front, as a port with PyTorch's padding has it.
    monkeypatch.setattr(emit, "same_padding", lambda *a: (right(*a)[0] + 1, right(*a)[1] - 1))
    with pytest.raises(MovinetPortError, match="differs"):
        write(checkpoint_of("base"), tmp_path / "x.tflite")
    assert list(tmp_path.iterdir()) == []


def test_other_targets_refuse_to_quantise(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="stores numbers in float32 only"):
        export_checkpoint(checkpoint_of("stream"), tmp_path / "x.onnx", "onnx", quantise="int8")


def test_the_command_calibrates_on_a_video(tmp_path: Path) -> None:
    pytest.importorskip("av")
    source = tmp_path / "video.mkv"
    write_video(str(source), (noise(6)[0] * 255).to(torch.uint8), 5)
    weights = tmp_path / "w.pt"
    save(checkpoint_of("stream"), weights)
    arguments = ["--to", "tflite", "--size", "32", "--quantize", "int8", "--calibrate"]
    output = tmp_path / "x.tflite"
    found = CliRunner().invoke(
        main,
        ["export", "--weights", str(weights), *arguments, str(source), "-o", str(output)],
        catch_exceptions=False,
    )
    assert found.exit_code == 0, found.output
    assert "8-bit weights and activations" in found.output
    assert output.exists()
