"""Parity of optimised networks with TensorFlow's exports; faults are put into ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks import diagnosis as bench
from benchmarks.parity import forgetful
from movinet_port import optimize
from movinet_port.fast.optimize import fold_network
from movinet_port.wiring import INPUT, wiring
from parity import ComparisonError, compare
from parity.optimised import Optimised

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLE = "weights/samples/movinet_mini_stream.tar.gz"
STREAM = "tests/data/era2_mini_stream_posenc.tar.gz"


@pytest.fixture(scope="module")
def reference() -> Callable[[str], Any]:
    opened: dict[str, Any] = {}

    def open_archive(archive: str) -> Any:
        if archive not in opened:
            opened[archive] = bench.open_reference(archive)
        return opened[archive]

    return open_archive


def run(reference: Any, network: Any, size: tuple[int, int] = (37, 50)) -> Any:
    clip = np.random.default_rng(0).random((1, 3, 6, *size), dtype=np.float32)
    chunks = bench.CHUNKS if reference.spec.causal else None
    return compare(reference, Optimised(network), clip, chunks=chunks)


@pytest.mark.parametrize("archive", bench.ARCHIVES)
def test_every_tap_is_compared_or_declared_as_folded(reference: Any, archive: str) -> None:
    right = reference(archive)
    model = right.build()
    report = run(right, optimize(model))
    assert report.verdict == "parity"
    compared, folded = {layer.name for layer in report.layers}, set(report.model["folded"])
    assert compared | folded == wiring(model.spec).keys()
    assert not compared & folded
    assert {INPUT, "stem.activation", "head.activation", "pool", "classifier"} <= compared
    assert set(model.layer_names) <= compared
    assert {state.name for state in report.states} == set(
        model.init_state(1, 37, 50) if right.spec.causal else ()
    )


@pytest.mark.parametrize(
    ("archive", "frames"), [("tests/data/era3_mini_base.tar.gz", 16), (SAMPLE, 4)]
)
def test_tensorflows_sums_over_a_large_clip_are_no_alarm(
    reference: Any, archive: str, frames: int
) -> None:
    right = reference(archive)
    clip = np.random.default_rng(3).random((1, 3, frames, 224, 225), dtype=np.float32)
    report = compare(right, Optimised(optimize(right.build())), clip)
    assert report.verdict == "parity"
    means = [x for x in (*report.layers, *report.states) if "pool" in x.name]
    assert means
    assert all(max(x.end_to_end, x.introduced or 0.0) < 4 for x in means)


@pytest.mark.parametrize("state", ["block1_layer1.stream_buffer", "block1_layer0.pool_buffer"])
def test_zeroed_buffers_are_a_mismatch(reference: Any, state: str) -> None:
    right = reference(STREAM)
    report = run(right, forgetful(fold_network(right.build()), state))
    assert report.verdict == "mismatch"


def test_swapped_temporal_taps_are_a_mismatch_in_their_layer(reference: Any) -> None:
    right = reference(STREAM)
    wrong = fold_network(right.build())
    conv = wrong.block2_layer0.depthwise
    conv.temporal.copy_(conv.temporal.flip(0))
    report = run(right, wrong)
    assert report.verdict == "mismatch"
    first = next(layer.name for layer in report.layers if layer.status == "mismatch")
    assert first == "block2_layer0.depthwise.temporal_activation"


def test_a_wrong_gate_is_a_mismatch(reference: Any) -> None:
    right = reference(STREAM)
    wrong = fold_network(right.build())
    wrong.block1_layer0.gate.limit = 0.6
    assert run(right, wrong).verdict == "mismatch"


def test_a_compiled_network_needs_its_eager_one(reference: Any) -> None:
    right = reference(STREAM)
    with pytest.raises(ComparisonError, match="eager"):
        Optimised(optimize(right.build(), "compile"))
