"""Parity between the exports' graphs and our network, and what is said when there is none.

References are TensorFlow's outputs; faults are put into our side.
"""

from __future__ import annotations

import copy
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import damage
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from benchmarks import diagnosis as bench
from benchmarks.faults import Around
from movinet_port import MoViNet, MovinetPortError, save
from movinet_port.checkpoint import Checkpoint
from movinet_port.command_line.parity import parity as command
from movinet_port.wiring import wiring
from parity import (
    ComparisonError,
    FunctionReference,
    LayerResult,
    ModelReference,
    Report,
    SavedModelReference,
    SavedReference,
    compare,
    save_reference,
)
from parity.compare import split_clip
from parity.reports.report import MISMATCH, SUSPECT, Diagnosis, status_of

pytest.importorskip("tensorflow")

ROOT = Path(__file__).resolve().parent.parent
POSENC = "tests/data/era2_mini_stream_posenc.tar.gz"
ERA1_BASE = "tests/data/era1_mini_base.tar.gz"
ERA1 = "tests/data/era1_mini_stream.tar.gz"
ERA2 = "tests/data/era2_mini_stream.tar.gz"
BASE = "tests/data/era3_mini_base.tar.gz"
CHUNKS = bench.CHUNKS
LAYERS = [f"block{i}_layer{j}" for i, n in enumerate((1, 2, 2, 2, 2)) for j in range(n)]
LAYERS_WITH_GATES = [f"{name}.squeeze_excitation.expand.activation" for name in LAYERS]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reference():
    opened = {}

    def open_archive(archive):
        if archive not in opened:
            opened[archive] = bench.open_reference(archive)
        return opened[archive]

    return open_archive


def clip_of(seed=0, size=(40, 40), batch=1, frames=6):
    generator = np.random.default_rng(seed)
    return generator.random((batch, 3, frames, *size), dtype=np.float32)


def chunks_of(network):
    return CHUNKS if network.spec.causal else None


def run(reference, model, clip=None, **options):
    spec = reference.spec
    clip = clip_of() if clip is None else clip
    return compare(reference, model, clip, chunks=CHUNKS if spec.causal else None, **options)


def forget(network, video):
    network.clean_activation_buffers()
    return network(video)


def said(report):
    return {(found.layer, found.cause) for found in report.diagnosis}


# Right networks


@pytest.mark.parametrize("archive", bench.ARCHIVES)
def test_a_right_network_is_parity_with_every_tap_paired(reference, archive):
    right = reference(archive)
    network = right.build()
    report = run(right, network, clip_of(size=(37, 50), batch=2))
    assert report
    assert report.verdict == "parity"
    assert {layer.name for layer in report.layers} == wiring(network.spec).keys()
    assert report.diagnosis == ()
    assert all(layer.introduced is not None for layer in report.layers)


@pytest.mark.parametrize("archive", [ERA1, ERA2, POSENC])
def test_every_stream_state_is_compared_after_every_chunk(reference, archive):
    right = reference(archive)
    report = run(right, right.build())
    names = right.build().init_state(1, 40, 40)
    assert {(s.name, s.chunk) for s in report.states} == {(n, k) for n in names for k in range(3)}
    assert all(report.states)


def test_the_reference_may_add_up_a_long_clip_in_another_order(reference):
    # TensorFlow's mean of so many values is off by more than ten times PyTorch's rounding.
    right = reference(ERA1_BASE)
    report = run(right, right.build(), clip_of(size=(172, 172), frames=60))
    assert report.verdict == "parity"
    assert max(max(layer.introduced, layer.end_to_end) for layer in report.layers) < 5


@pytest.mark.parametrize("seed", range(6))
def test_no_false_alarm_over_seeds_and_sizes(reference, seed):
    generator = random.Random(seed)
    right = reference(bench.ARCHIVES[seed])
    size = generator.randrange(33, 64), generator.randrange(33, 64)
    assert run(right, right.build(), clip_of(seed, size))


@pytest.mark.parametrize("scale", [1e-6, 1e4])
@pytest.mark.parametrize("archive", [ERA1, ERA2])
def test_thresholds_hold_for_tiny_and_huge_inputs(reference, archive, scale):
    right = reference(archive)
    clip = clip_of() * np.float32(scale)
    assert run(right, right.build(), clip)
    wrong = right.build()
    wrong.stem.conv.weight.data.mul_(1.001)
    report = run(right, wrong, clip)
    assert ("stem.conv", "tensor-scaled") in said(report)


@pytest.mark.parametrize("name", ["era1_mini_base", "era2_mini_stream", "era3_mini_base"])
def test_the_graph_gives_the_logits_that_the_authors_code_gave(reference, name):
    right = reference(f"tests/data/{name}.tar.gz")
    expected = np.load(ROOT / "tests" / "data" / f"{name}.expected.npz")
    video = np.moveaxis(expected["video"], -1, 1).astype(np.float32)
    found = right.run([video])[0].activations["classifier"]
    wanted = expected["logits"]
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 2e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["era1_mini_stream", "era2_mini_stream_posenc"])
def test_both_engines_give_one_reference(reference, name, tmp_path):
    folder = damage.unpack(ROOT / f"tests/data/{name}.tar.gz", tmp_path)
    ours = SavedModelReference(folder)
    theirs = SavedModelReference(folder, engine="tensorflow")
    assert (ours.description["engine"], theirs.description["engine"]) == ("pytorch", "tensorflow")
    video = clip_of(seed=3, size=(33, 38), batch=2, frames=3)
    parts = [video[:, :, :1], video[:, :, 1:]]
    for a, b in zip(ours.run(parts), theirs.run(parts), strict=True):
        assert list(a.activations) == list(b.activations)
        for found, right in ((a.activations, b.activations), (a.states, b.states)):
            assert found.keys() == right.keys()
            for tap, value in right.items():
                assert found[tap].shape == value.shape
                assert np.abs(found[tap] - value).max() <= 2e-5 * np.abs(value).max(), tap


def test_comparing_leaves_the_network_as_it_was(reference):
    right = reference(ERA2)
    network = right.build().train()
    network(torch.from_numpy(clip_of()))
    before = copy.deepcopy(network.state_dict())
    state = {name: value.clone() for name, value in network.snapshot().state.items()}
    run(right, network)
    assert network.training
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(torch.equal(network.snapshot().state[name], value) for name, value in state.items())
    assert not any(module._forward_hooks for module in network.modules())


# Stories


def test_the_other_gate_of_issue_13559_is_named_at_every_layer(reference):
    right = reference(ERA2)
    model = MoViNet(right.spec.replace(gate="hard_sigmoid_relu6"))
    model.load_state_dict(dict(right.parameters))
    report = run(right, model.eval())
    gates = {f"{n}.squeeze_excitation.expand.activation" for n in model.layer_names}
    assert said(report) == {(gate, "gate") for gate in gates}
    for found in report.diagnosis:
        assert "reference hard_sigmoid_keras" in found.detail
        assert found.before > MISMATCH
        assert found.after is not None
        assert found.after < SUSPECT


def test_same_padding_in_place_of_legacy_is_named_at_strided_convolutions(reference):
    right = reference(ERA1)
    model = MoViNet(right.spec.replace(causal_padding="same"))
    model.load_state_dict(dict(right.parameters))
    report = run(right, model.eval())
    assert report.verdict == "mismatch"
    assert {cause for _, cause in said(report)} == {"padding"}
    named = {layer for layer, _ in said(report)}
    assert named
    for layer in named:
        assert model.get_submodule(layer).stride == (1, 2, 2)
    assert all("legacy" in found.detail for found in report.diagnosis)


@pytest.mark.parametrize("archive", [ERA1, BASE])
def test_a_rezero_left_at_zero_is_named_at_every_layer(reference, archive):
    right = reference(archive)
    model = right.build()
    for name in model.layer_names:
        model.get_submodule(name).rezero.scale.data.zero_()
    report = run(right, model)
    assert said(report) == {(f"{name}.rezero", "rezero") for name in model.layer_names}


def test_a_state_of_another_video_is_stale(reference):
    right = reference(ERA2)
    model = right.build()
    with torch.no_grad():
        model(torch.from_numpy(clip_of(seed=7)))
    report = run(right, model)
    assert {cause for _, cause in said(report)} == {"stream-state"}
    assert all("stale" in found.detail for found in report.diagnosis)
    assert any(found.parameter == "block0_layer0.pool_buffer" for found in report.diagnosis)


def test_states_lost_between_clips_are_missing(reference):
    right = reference(ERA1)
    report = run(right, Around(right.build(), forget))
    assert {cause for _, cause in said(report)} == {"stream-state"}
    parameters = {found.parameter for found in report.diagnosis}
    assert parameters == set(right.build().init_state(1, 40, 40))
    assert all("missing" in found.detail for found in report.diagnosis)
    assert report.layer("stem.conv")


def test_a_dropped_frame_is_named(reference):
    right = reference(ERA2)
    model = Around(right.build(), lambda net, x: net(x[:, :, 1:] if x.shape[2] == 3 else x))
    report = run(right, model)
    assert [(d.layer, d.cause) for d in report.diagnosis] == [("input", "frame-order")]
    assert "frame 3 is missing" in report.diagnosis[0].detail


def test_two_faults_in_one_branch_are_both_found(reference):
    right = reference(BASE)
    model = right.build()
    model.block1_layer0.expansion.norm.eps = 1e-5
    model.block1_layer1.depthwise.conv.weight.data.copy_(
        model.block1_layer1.depthwise.conv.weight.flip(3)
    )
    report = run(right, model)
    assert said(report) == {
        ("block1_layer0.expansion.norm", "norm-epsilon"),
        ("block1_layer1.depthwise.conv", "kernel-flip"),
    }
    # What lies behind the first fault and before the second only inherits.
    between = report.layer("block1_layer0.projection.conv")
    assert between.status == "mismatch"
    assert not between.introduces
    assert between.inherited == pytest.approx(between.end_to_end, rel=0.01)


# Diagnosis


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(3 * x)


def test_what_nothing_explains_is_unknown(reference):
    right = reference(BASE)
    model = right.build()
    model.block1_layer0.projection.norm = Sine()
    report = run(right, model)
    assert said(report) == {("block1_layer0.projection.norm", "unknown")}
    assert report.diagnosis[0].after is None


def test_a_swapped_tensor_is_named_with_the_one_it_holds(reference):
    right = reference(BASE)
    model = right.build()
    a, b = model.block0_layer0.expansion.norm, model.block0_layer0.depthwise.norm
    a.bias.data, b.bias.data = b.bias.data.clone(), a.bias.data.clone()
    details = {(d.parameter, d.cause): d.detail for d in run(right, model).diagnosis}
    first, second = "block0_layer0.expansion.norm.bias", "block0_layer0.depthwise.norm.bias"
    assert details[first, "tensor-swapped"] == f"it holds {second}"
    assert details[second, "tensor-swapped"] == f"it holds {first}"


@pytest.mark.parametrize(
    ("cause", "change"),
    [
        ("kernel-flip", lambda w: w.flip(4)),
        ("kernel-layout", lambda w: w.transpose(3, 4).clone()),
    ],
)
def test_a_converters_own_mistake_is_found_without_the_reference_weights(reference, cause, change):
    right = reference(BASE)
    model = right.build()
    conv = model.block1_layer0.depthwise.conv
    conv.weight.data.copy_(change(conv.weight.data))
    blind = copy.copy(right)
    blind.parameters = {}
    assert said(run(blind, model)) == {("block1_layer0.depthwise.conv", cause)}


def test_other_numbers_are_solved_for_without_the_reference_weights(reference):
    right = reference(BASE)
    model = right.build()
    conv = model.block1_layer0.expansion.conv
    generator = torch.Generator().manual_seed(0)
    conv.weight.data += 0.1 * torch.randn(conv.weight.shape, generator=generator)
    blind = copy.copy(right)
    blind.parameters = {}
    assert said(run(blind, model)) == {("block1_layer0.expansion.conv", "weights-differ")}


def test_half_precision_weights_are_named(reference):
    right = reference(BASE)
    model = right.build()
    conv = model.block1_layer1.projection.conv
    conv.weight.data = conv.weight.data.bfloat16().float()
    report = run(right, model)
    assert said(report) == {("block1_layer1.projection.conv", "precision")}
    assert "bfloat16" in report.diagnosis[0].detail


# References


def test_a_saved_reference_needs_no_tensorflow(reference, tmp_path):
    right = reference(ERA2)
    saved, weights = tmp_path / "ref.npz", tmp_path / "mini.pt"
    save_reference(right, split_clip(clip_of(), CHUNKS), saved)
    save(Checkpoint(right.spec, dict(right.parameters)), weights)
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "import movinet_port, parity\n"
        f"model = movinet_port.load({str(weights)!r})\n"
        f"report = parity.compare(parity.SavedReference({str(saved)!r}), model)\n"
        "assert report, report.verdict\n"
        "model.stem.norm.eps = 1e-5\n"
        f"report = parity.compare(parity.SavedReference({str(saved)!r}), model)\n"
        "print(report.diagnosis[0].layer, report.diagnosis[0].cause)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "stem.norm norm-epsilon\n"


def test_a_saved_reference_refuses_another_video(reference, tmp_path):
    right = reference(BASE)
    save_reference(right, [clip_of()], tmp_path / "ref.npz")
    with pytest.raises(ComparisonError, match="another video"):
        compare(SavedReference(tmp_path / "ref.npz"), right.build(), clip_of(seed=1))


def test_a_file_that_is_no_reference_is_one_clear_error(tmp_path):
    path = tmp_path / "ref.npz"
    path.write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(ComparisonError, match="--save-reference"):
        SavedReference(path)


def test_two_pytorch_networks_can_be_compared(reference):
    right = reference(BASE).build()
    wrong = copy.deepcopy(right)
    wrong.head.norm.eps = 1e-5
    report = compare(ModelReference(right), wrong, clip_of())
    assert said(report) == {("head.norm", "norm-epsilon")}


@pytest.mark.parametrize(
    ("page", "archive", "cause", "layers"),
    [
        ("hub-gate", ERA2, "gate", LAYERS_WITH_GATES),
        (
            "legacy-padding",
            ERA1,
            "padding",
            ["stem.conv", *(f"block{i}_layer0.depthwise.conv" for i in (0, 1, 2, 4))],
        ),
        ("rezero", ERA2, "rezero", [f"{name}.rezero" for name in LAYERS]),
    ],
)
def test_the_stories_of_the_docs_are_true(
    tmp_path, monkeypatch, capsys, page, archive, cause, layers
):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    commands, code, *_ = re.findall(r"```(?:sh|python)\n(.*?)```", text, re.DOTALL)
    (printed,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    subprocess.run(["sh", "-euc", commands], check=True)
    names: dict = {}
    exec(code, names)
    report = names["report"]
    assert [(d.layer, d.cause) for d in report.diagnosis] == [(layer, cause) for layer in layers]
    output = capsys.readouterr().out.splitlines()
    for line in printed.splitlines():
        start, *_ = line.split("...")
        assert any(said.startswith(start.rstrip()) for said in output), line
    wrong = sum(layer.status == "mismatch" for layer in report.layers)
    if match := re.search(r"^(\d+) of (\d+) activations differ", text, re.MULTILINE):
        assert (wrong, len(report.layers)) == (int(match[1]), int(match[2]))


def test_the_keras_example_of_the_docs_is_true():
    page = (ROOT / "docs" / "parity.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = next(block for block in blocks if "tf.keras" in block)
    names: dict = {}
    exec(code, names)
    report = names["report"]
    found = [(d.layer, d.cause) for d in report.diagnosis]
    assert found == [("norm", "norm-epsilon")]
    assert report.diagnosis[0].detail == "adds 1e-05 to the variance, the reference 0.001"
    names["model"][1].eps = 1e-3
    assert compare(names["reference"], names["model"], names["clip"])


# What cannot be compared


def test_a_tap_without_a_partner_is_an_error_that_names_it(reference):
    right = reference(ERA2)
    other = MoViNet(right.spec.replace(positional_encoding=True))
    with pytest.raises(ComparisonError, match=r"block0_layer0.*positional_encoding \(network only"):
        run(right, other.eval())


def test_a_table_that_names_no_module_is_an_error():
    table = {"conv": "cnv"}
    source = FunctionReference(lambda x: {"conv": x}, table)
    model = nn.Sequential()
    model.add_module("conv", nn.Identity())
    with pytest.raises(ComparisonError, match="did you mean 'conv'"):
        compare(source, model, np.zeros((1, 3, 4, 4), np.float32))


@pytest.mark.parametrize(
    ("clip", "chunks", "message"),
    [
        (np.zeros((1, 3, 6, 40, 40), np.uint8), CHUNKS, "divide RGB bytes by 255"),
        (np.full((1, 3, 6, 40, 40), np.nan, np.float32), CHUNKS, "finite"),
        (np.zeros((1, 3, 6, 40, 40), np.float32), (1, 2), "3 frames in all"),
        (None, CHUNKS, "no clip"),
    ],
)
def test_a_clip_that_does_not_fit_is_an_error(reference, clip, chunks, message):
    right = reference(ERA2)
    with pytest.raises(ComparisonError, match=message):
        compare(right, right.build(), clip, chunks=chunks)


# The report


def layer(**changes):
    fields = {
        "name": "stem.conv", "end_to_end": 1.0, "introduced": 1.0, "floor": 1e-6,
        "introduced_floor": 1e-6, "magnitude": 1.0, "max_error": 1e-6, "shape": (1, 2),
    }  # fmt: skip
    return LayerResult(**{**fields, **changes})


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (0.0, "match"),
        (SUSPECT - 0.1, "match"),
        (SUSPECT, "suspect"),
        (MISMATCH, "mismatch"),
        (math.inf, "mismatch"),
        (math.nan, "mismatch"),
    ],
)
def test_status_by_error_in_floor_units(error, status):
    assert status_of(error) == status
    assert layer(end_to_end=error).status == status
    assert layer(introduced=error).status == status


def test_a_report_without_taps_proves_nothing():
    assert Report({}, {}, {}, ()).verdict == "mismatch"


def test_json_holds_no_infinities_and_every_documented_key():
    found = Diagnosis("stem.conv", None, "unknown", "", math.inf, None, "Look.")
    report = Report({}, {}, {}, (layer(end_to_end=math.nan, introduced=math.inf),), (), (found,))
    data = json.loads(report.to_json())
    assert data["schema_version"] == 1
    assert data["verdict"] == "mismatch"
    assert data["layers"][0]["end_to_end"] is None
    assert data["layers"][0]["introduced"] is None
    assert data["diagnosis"][0]["before"] is None
    keys = {"name", "end_to_end", "introduced", "inherited", "floor", "status", "heat_map"}
    assert keys <= data["layers"][0].keys()


def test_worst_layers_carry_heat_maps_and_histograms(reference):
    right = reference(ERA2)
    model = right.build()
    with torch.no_grad():
        model.block2_layer0.expansion.norm.bias[3] += 1
    report = run(right, model)
    worst = report.layer("block2_layer0.expansion.norm")
    assert worst.heat_map is not None
    assert worst.heat_map.frames == tuple(range(6))
    rows = dict(zip(worst.heat_map.channels, worst.heat_map.values, strict=True))
    assert min(rows[3]) > MISMATCH
    assert max(max(row) for channel, row in rows.items() if channel != 3) < SUSPECT
    assert worst.histogram is not None
    assert sum(worst.histogram.counts) + worst.histogram.zeros == math.prod(worst.shape)
    assert report.layer("stem.conv").heat_map is None


# The command


def invoke(*arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


SAMPLE = ROOT / "weights" / "samples" / "movinet_mini_stream.tar.gz"


def test_the_command_writes_json_and_junit_and_ends_with_0(tmp_path):
    done = invoke(
        "--hub-url", SAMPLE, "--size", "33x40", "--frames", 3,
        "--json", tmp_path / "out.json", "--junit", tmp_path / "out.xml",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.output.startswith("parity: ")
    assert "\nnext  'movinet-port predict' " in done.output
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["input"]["chunks"] == [1, 2]
    assert data["input"]["shape"] == [1, 3, 3, 33, 40]
    suite = ElementTree.parse(tmp_path / "out.xml").getroot()[0]
    assert int(suite.attrib["tests"]) == len(data["layers"]) + len(data["states"]) == len(suite)
    assert suite.attrib["failures"] == "0"


def test_the_command_ends_with_1_and_names_the_cause(reference, tmp_path):
    right = reference(ERA2)
    wrong = right.build()
    wrong.stem.conv.weight.data.copy_(wrong.stem.conv.weight.flip(3))
    save(Checkpoint(right.spec, wrong.state_dict()), tmp_path / "wrong.pt")
    done = invoke(
        "--hub-url", ROOT / ERA2, "--weights", tmp_path / "wrong.pt", "--size", 40,
        "--junit", tmp_path / "out.xml",
    )  # fmt: skip
    assert done.exit_code == 1
    assert done.output.startswith("mismatch: ")
    assert "stem.conv.weight  kernel-flip" in done.output
    # The cause comes before the layers that it is in.
    assert done.output.index("\ncause  ") < done.output.index("\nlayer  ")
    assert "\nnext  " not in done.output
    failures = ElementTree.parse(tmp_path / "out.xml").getroot().iter("failure")
    assert any("kernel-flip" in (failure.text or "") for failure in failures)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "big"), "--size big: expected"),
        (("--chunks", "1,,2"), "--chunks 1,,2: expected"),
        (("--frames", "1000000000"), "1000000000 frames of 64 x 64 pixels: expected"),
        (("--size", "100000"), "--size 100000: expected"),
        (("--input", "none.npy"), "no such file"),
    ],
)
def test_wrong_options_are_one_line(arguments, message):
    done = invoke("--hub-url", SAMPLE, *arguments)
    assert isinstance(done.exception, MovinetPortError)
    assert message in str(done.exception)


@pytest.mark.parametrize("layout", ["channels first", "channels last", "bytes", "one video"])
def test_numpy_clips_are_read_in_either_layout(tmp_path, layout):
    from parity.clips import read_clip

    video = (clip_of(size=(8, 10)) * 255).round() / np.float32(255)
    stored = {
        "channels first": video,
        "channels last": np.moveaxis(video, 1, -1),
        "bytes": np.moveaxis(video * 255, 1, -1).round().astype(np.uint8),
        "one video": np.moveaxis(video, 1, -1)[0],
    }[layout]
    np.save(tmp_path / "clip.npy", stored)
    found = read_clip(str(tmp_path / "clip.npy"), None, None)
    np.testing.assert_allclose(found, video, atol=1e-6)


def video_of(tmp_path, frames=8):
    import videos

    levels = [10 * number for number in range(frames)]
    images = videos.grey(levels, 48, 64)
    return videos.write(tmp_path / "clip.mkv", images, codec="ffv1", pixels="bgr0")


@pytest.mark.parametrize(
    ("frames", "expected"), [(None, range(8)), (8, range(8)), (3, (0, 4, 7)), (1, (0,))]
)
def test_frames_of_a_video_are_spread_over_it(tmp_path, frames, expected):
    from parity.clips import read_clip

    found = read_clip(str(video_of(tmp_path)), frames, (20, 30))
    assert found.shape == (1, 3, len(expected), 20, 30)
    levels = [10 * number / 255 for number in expected]
    np.testing.assert_allclose(found[0, 0, :, 0, 0], levels, atol=1e-6)


def test_a_video_with_too_few_frames_is_one_line(tmp_path):
    from parity.clips import read_clip

    with pytest.raises(ComparisonError, match="has 8 frames, --frames asks for 9"):
        read_clip(str(video_of(tmp_path)), 9, None)
    (tmp_path / "bad.mp4").write_text("no video")
    with pytest.raises(ComparisonError, match=r"--input: cannot read .*bad\.mp4: Invalid data"):
        read_clip(str(tmp_path / "bad.mp4"), None, None)


def test_a_video_is_compared_on(tmp_path):
    import videos

    path = videos.write(tmp_path / "clip.mp4", videos.noise(9, 60, 80))
    done = invoke("--hub-url", SAMPLE, "--input", path, "--frames", 4, "--size", 40)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("parity: ")


def test_weights_without_a_graph_need_the_authors_code(monkeypatch, reference, tmp_path):
    from parity.authors import authors_reference

    monkeypatch.setitem(sys.modules, "official.projects.movinet.modeling", None)
    with (
        pytest.raises(ComparisonError, match=r"movinet-port\[tf,reference\]"),
        authors_reference(tmp_path / "ckpt", reference(BASE).spec, "ckpt"),
    ):
        pass


@pytest.mark.reference
def test_a_checkpoint_is_compared_with_the_authors_code(tmp_path):
    import authors

    theirs = authors.build(authors.MINI, num_classes=4, **authors.STREAM)
    authors.randomise(theirs, seed=2)
    prefix = authors.save_checkpoint(theirs, tmp_path)
    arguments = ("--hub-url", prefix, "--size", 40, "--frames", 3, "--gate", "hard_sigmoid_relu6")
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    assert "tf-models-official" in done.output
