"""The benchmark programs run, on small inputs, and say what they could not measure."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.measure import Row, fit, measure, peak_memory
from benchmarks.peers import Peers
from benchmarks.plots import draw

SAMPLE = "weights/samples/movinet_mini_stream.tar.gz"
ROOT = Path(__file__).resolve().parent.parent

# Stands in for the first port, which is not part of this repository.
_PORT_CONFIG = """
from types import SimpleNamespace
_C = SimpleNamespace(MODEL=SimpleNamespace(MoViNetA0="A0"))
"""
_PORT = """
import torch

class MoViNet(torch.nn.Module):
    def __init__(self, config, causal, pretrained, tf_like, num_classes{parameter}):
        super().__init__()
        assert (config, pretrained, tf_like, num_classes) == ("A0", False, True, 600)
        assert {kind} in (None, "2plus1d" if causal else "3d")
        self.causal = causal

    def forward(self, clip):
        assert clip.shape == (1, 3, 1 if self.causal else 4, 8, 8) and not self.training
        return clip.sum((2, 3, 4))

    def clean_activation_buffers(self):
        assert self.causal
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of A0 in either mode, and nothing of anybody else's."""
    folder = tmp_path_factory.mktemp("peers")
    for mode in ("stream", "base"):
        peers = Peers(f"a0-{mode}", folder)
        peers.own(peers.path("pt"))
    return folder


def run(weights: Path, out: Path, sections: str) -> tuple[str, dict[str, Any]]:
    """Run the program on small inputs; return what it printed and what it wrote."""
    small = ["--quick", "--size", "32", "--frames", "2", "--rounds", "2", "--threads", "1"]
    done = subprocess.run(
        [
            *(sys.executable, "benchmarks/speed.py", "--as-is", "--variants", "a0"),
            *(*small, "--only", sections, "--peers", str(weights), "--out", str(out)),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((out / "bench.json").read_text())


def test_one_frame_is_measured_or_the_row_says_why(weights: Path, tmp_path: Path) -> None:
    printed, found = run(weights, tmp_path, "frame")
    rows = {row["name"]: row for row in found["sections"]["frame-a0"]["rows"]}
    for name in ("ours, readable", "ours, optimised"):
        assert rows[name]["seconds"] > 0
        assert rows[name]["facts"]["memory"] > 10
        assert rows[name]["facts"]["logit_error"] < 1e-4
    for name in ("LiteRT (XNNPACK)", "ONNX Runtime, our export", "TensorFlow SavedModel"):
        assert not rows[name]["rounds"]
        assert f"{name}: not measured: " in printed
        assert "benchmarks/peers.py makes it" in printed
    assert found["machine"]["threads"] == 1
    assert (tmp_path / "bench.md").read_text().strip() == printed.strip()


def test_clips_cost_memory_and_the_gpu_have_their_rows(weights: Path, tmp_path: Path) -> None:
    printed, found = run(weights, tmp_path, "clip,flat,gpu")
    sections = found["sections"]
    clips = {row["name"]: row for row in sections["clip-a0"]["rows"]}
    whole, pieces = clips["ours, optimised"], clips["ours, optimised, in pieces of 8"]
    assert whole["seconds"] > 0
    assert pieces["facts"]["logit_error"] < 1e-4
    assert len(sections["flat-a0"]["parts"]) == 10
    assert sections["gpu"] is None or "bfloat16" in printed
    plots = draw(tmp_path / "bench.json", tmp_path)
    assert {path.name for path in plots} == {"bench-clip.png", "bench-flat.png"}


@pytest.mark.parametrize(
    ("program", "option", "value", "message"),
    [
        ("speed.py", "--only", "frames", "no section is called 'frames'"),
        ("speed.py", "--variants", "a0,a9", "no variant is called 'a9'"),
        ("parity.py", "--variants", "a0-stream,a9-base", "no variant is called 'a9-base'"),
    ],
)
def test_unknown_choice_is_refused(program: str, option: str, value: str, message: str) -> None:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{program}", option, value],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        # Without the refusal it would set out to measure.
        timeout=120,
    )
    assert done.returncode == 2
    assert message in done.stderr


def test_row_that_cannot_start_does_not_stop_the_others() -> None:
    rows = [
        Row("missing", "litert", {"tflite": "nowhere.tflite", "size": 8}),
        Row("wrong", "matmul", {"size": "large"}),
        Row("right", "matmul", {"size": 16}),
        Row("slow", "matmul", {"size": 16}, every=2),
    ]
    measure(rows, rounds=3, threads=1, seconds=0.001)
    assert rows[0].error == "no nowhere.tflite; benchmarks/peers.py makes it"
    assert rows[1].error is not None
    assert rows[1].error.startswith("TypeError: ")
    assert rows[2].error is None
    assert [len(row.rounds) for row in rows] == [0, 0, 3, 2]
    assert [len(row.faults) for row in rows] == [0, 0, 3, 2]


@pytest.mark.parametrize(("parameter", "kind"), [("", "None"), (", conv_type='3d'", "conv_type")])
def test_the_first_port_is_built_as_the_published_network_of_a_mode(
    tmp_path: Path, parameter: str, kind: str
) -> None:
    package = tmp_path / "movinets"
    package.mkdir()
    (package / "config.py").write_text(_PORT_CONFIG)
    (package / "__init__.py").write_text(_PORT.format(parameter=parameter, kind=kind))
    common = {"checkout": str(tmp_path), "name": "a0", "size": 8}
    rows = [
        Row("stream", "first_port", {**common, "mode": "stream", "frames": 1}),
        Row("base", "first_port", {**common, "mode": "base", "frames": 4}),
        Row(
            "nowhere", "first_port", {**common, "checkout": "nowhere", "mode": "base", "frames": 4}
        ),
    ]
    measure(rows, rounds=1, threads=1, seconds=0.001)
    assert [row.error for row in rows] == [
        None,
        None,
        "nowhere holds no package movinets; give its checkout",
    ]


def test_memory_is_the_row_s_own() -> None:
    """Of a process, Linux remembers what the one that started it had."""
    ours = np.ones(2**28, np.uint8)
    row = Row("small", "matmul", {"size": 16})
    measure([row], rounds=1, threads=1, seconds=0.001)
    assert 10 < row.facts["memory"] < peak_memory() - ours.nbytes / 2**21


@pytest.mark.parametrize(("slope", "intercept"), [(2.0, 3.0), (-0.5, 0.0)])
def test_line_through_points_on_a_line_fits(slope: float, intercept: float) -> None:
    x = [1.0, 2.0, 4.0]
    line = fit(x, [slope * value + intercept for value in x])
    assert line.slope == pytest.approx(slope)
    assert line.intercept == pytest.approx(intercept)
    assert line.r_squared == pytest.approx(1.0)
    assert fit(x, [1.0, 5.0, 1.0]).r_squared < 0.5


class _Sample:
    """The sample in the place of the authors' network."""

    def reference(self, seed: int, name: str, swap: Any = None) -> Any:
        from benchmarks.diagnosis import open_reference

        assert swap is None
        return open_reference(SAMPLE)


def test_eager_networks_are_right_and_their_controls_are_not(one_thread: None) -> None:
    pytest.importorskip("tensorflow")
    from benchmarks import parity

    found = list(parity.runs("mini-stream", 2, 40, "eager", _Sample()))
    assert [run["verdict"] for run in found] == ["parity", "parity"]
    assert all(run["folded"] for run in found)
    assert not any(parity.is_alarm(run) or parity.missed(run) for run in found)
    # The first video has two clips, the second one: nothing is remembered.
    faults = [[c["fault"].partition(" ")[0] for c in run["controls"]] for run in found]
    assert faults == [["zeroed", "swapped"], ["swapped"]]


def test_control_that_is_found_right_is_missed(
    one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorflow")
    from benchmarks import parity

    monkeypatch.setattr(parity, "forgetful", lambda network, state: network)
    (run,) = parity.runs("mini-stream", 1, 40, "eager", _Sample())
    (control,) = parity.missed(run)
    assert control["fault"].startswith("zeroed ")


@pytest.mark.reference
@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="no C++ compiler"
)
def test_packages_are_right_and_their_controls_are_not(one_thread: None) -> None:
    from benchmarks import parity
    from weights.samples.make_sample import MINI

    exported = parity.Exported("mini-stream", MINI)
    found = list(parity.runs("mini-stream", 2, 40, "aot", exported))
    assert {tuple(run["shape"][3:]) for run in found} == {parity.COMPILED}
    assert not any(parity.is_alarm(run) or parity.missed(run) for run in found)
    faults = [[c["fault"].partition(" ")[0] for c in run["controls"]] for run in found]
    assert faults == [["zeroed", "swapped"]] * 2
