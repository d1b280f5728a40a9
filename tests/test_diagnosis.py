"""The diagnosis against faults that porters make, each in a place chosen by chance.

References are TensorFlow's outputs. `python -m benchmarks.diagnosis` puts in every kind of fault.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from benchmarks import diagnosis as bench
from benchmarks.faults import at, patch, right_networks
from parity import ModelReference, compare
from parity.reports.report import CAUSES, SUSPECT

pytest.importorskip("tensorflow")

POSENC = "tests/data/era2_mini_stream_posenc.tar.gz"
ERA1 = "tests/data/era1_mini_stream.tar.gz"
BASE = "tests/data/era3_mini_base.tar.gz"

# (cause, detail) of faults for which a diagnosis has only what the layer computes to go by: its
# attributes and tensors say nothing, or something else is nearly as good an explanation.
HARD = (
    ("padding", "k // 2 on both sides"),
    ("padding", "the larger half before"),
    ("padding", "k // 2 by its own rule"),
    ("norm-not-in-eval", "F.batch_norm(training=True)"),
    ("norm-not-in-eval", "no running statistics"),
    ("norm-epsilon", "outside the root"),
    ("weights-differ", "filters in another order"),
    ("tensor-scaled", "negated"),
    ("activation", "hard_swish of 0.16667"),
    ("gate", "ones"),
    ("precision", "sum in bfloat16"),
    ("precision", "the whole network in bfloat16"),
    ("positional-encoding", "rates not in twos"),
    ("norm-not-in-eval", "the whole network in train()"),
    ("kernel-layout", "(C, taps) filled as (taps, C)"),
    ("stream-state", "clips counted, not frames"),
    ("se-pooling", "channels in turn"),
    ("frame-order", "half of them twice"),
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def benches():
    opened = {}

    def open_bench(archive, size=(44, 44)):
        if (archive, size) not in opened:
            opened[archive, size] = bench.Bench(bench.open_reference(archive), size)
        return opened[archive, size]

    return open_bench


def effective(where, faults, seed=0):
    for fault in random.Random(seed).sample(faults, len(faults)):
        found = where.effective(fault)
        if found is not None:
            return found
    raise AssertionError("no fault changes anything")


def judged(where, *faults):
    report = where.report(where.with_faults(faults))
    return report, bench.judge("", faults, report)


@pytest.mark.parametrize("cause", sorted(CAUSES))
def test_each_cause_is_placed_and_named(benches, cause):
    where = benches(POSENC)
    faults = [f for f in bench.porting_faults(where.network) if f.cause == cause]
    report, outcome = judged(where, effective(where, faults, seed=4))
    assert outcome.detected
    assert outcome.honest, outcome.said
    for found in report.diagnosis:
        assert found.mend.endswith(".")
        assert found.before >= SUSPECT
        assert found.after is None or found.after < SUSPECT


@pytest.mark.parametrize(("cause", "detail"), HARD, ids=[f"{c}: {d}" for c, d in HARD])
def test_what_a_layer_computes_counts_not_what_it_says(benches, cause, detail):
    where = benches(POSENC)
    faults = bench.kinds(where.network)[cause, detail]
    _, outcome = judged(where, effective(where, faults))
    assert outcome.detected
    assert outcome.honest, outcome.said


NO_CAUSE = {
    "dilation": "depthwise.conv",
    "layer norm": "norm",
    "dropout": "conv",
    "clipped": "",
    "softmax": "classifier",
    "gamma": "input",
}


@pytest.mark.parametrize("detail", NO_CAUSE)
def test_what_has_no_cause_is_unknown_and_not_guessed_at(benches, detail):
    where = benches(BASE)
    faults = bench.kinds(where.network)["unknown", detail]
    report, outcome = judged(where, effective(where, faults))
    assert outcome.placed, outcome.said
    assert {found.cause for found in report.diagnosis} == {"unknown"}
    assert not any(report.diagnosis)


def test_rounding_is_told_from_a_small_systematic_error(benches):
    where = benches(BASE)
    norm = "block1_layer0.expansion.norm"
    for factor in (1.0005, 1.004):
        fault = bench.Fault(
            "unknown", at(norm), "", patch(norm, lambda m, r, x, f=factor: f * r(x))
        )
        report, _ = judged(where, fault)
        assert {found.cause for found in report.diagnosis} == {"unknown"}


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_operands_in_fewer_bits_are_named_at_every_convolution(benches, kind):
    where = benches(BASE)
    faults = bench.kinds(where.network)["precision", f"{kind} inside"]
    report, outcome = judged(where, *faults)
    assert outcome.honest, outcome.said
    assert {found.layer for found in report.diagnosis} == {fault.layer for fault in faults}


@pytest.mark.parametrize("seed", range(2))
def test_two_faults_are_both_placed_and_named(benches, seed):
    where = benches(ERA1)
    chosen = next(bench.pairs(where, random.Random(seed), 1))
    _, outcome = judged(where, *chosen)
    assert outcome.detected
    assert outcome.named, outcome.said


# The first of each is in a module's tensors, the second in what it does with them.
IN_ONE_LAYER = (
    (("norm-stats-swapped", "weight, bias"), ("norm-epsilon", "1e-05")),
    (("tensor-scaled", "bias added twice"), ("norm-epsilon", "1e-05")),
    (("tensor-scaled", "bias added twice"), ("norm-not-in-eval", "train()")),
    (("norm-epsilon", "1e-05"), ("norm-not-in-eval", "train()")),
    (("kernel-flip", "height and width"), ("padding", "k // 2 on both sides")),
    (("kernel-layout", "height and width"), ("padding", "k // 2 by its own rule")),
)


@pytest.mark.parametrize(("first", "second"), IN_ONE_LAYER)
def test_two_faults_of_one_layer_are_both_named(benches, first, second):
    where = benches(BASE)
    kinds = bench.kinds(where.network)
    other = effective(where, kinds[second])
    one = next(f for f in kinds[first] if f.layer == other.layer)
    _, outcome = judged(where, one, other)
    assert outcome.honest, outcome.said


@pytest.mark.parametrize("change", right_networks().values(), ids=right_networks())
def test_a_right_network_in_another_form_raises_no_alarm(benches, change):
    where = benches(POSENC)
    report = where.report(change(where.with_faults(())))
    assert report, [layer.name for layer in report.layers if not layer]


class Linear(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_vector_in_another_order_is_seen_whatever_its_size(scale):
    torch.manual_seed(0)
    right, ours = Linear().eval(), Linear().eval()
    right[0].bias.data *= scale
    right[0].weight.data *= scale
    ours.load_state_dict(right.state_dict())
    ours[0].bias.data = ours[0].bias.data.flip(0)
    table = {"first": "0", "relu": "1", "second": "2"}
    clip = torch.randn(64, 8).numpy()
    report = compare(ModelReference(right, table), ours, clip, table=table)
    assert [(d.layer, d.cause) for d in report.diagnosis] == [("first", "weights-differ")]
    assert "another order" in report.diagnosis[0].detail
