"""Why a layer introduces an error: the search through `parity.hypotheses`, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from movinet_port.wiring import INPUT
from parity.comparison import Comparison
from parity.hypotheses import HYPOTHESES
from parity.hypotheses.clip import clip_changes
from parity.hypotheses.faulty_layer import Explanation, FaultyLayer, distance
from parity.reference_inputs import ReferenceInputs
from parity.reports.report import Diagnosis, Report, status_of


def diagnose(
    comparison: Comparison, report: Report, parameters: Mapping[str, Tensor]
) -> tuple[Diagnosis, ...]:
    """Explain every layer and stream state that introduces an error.

    Args:
        comparison: its runs.
        report: says which layers; of its states, those after each chunk.
        parameters: the reference's, under the network's names, as far as they are known.
    """
    taps = [layer.name for layer in report.layers if layer.introduces]
    captured = comparison.model.capture(
        comparison.chunks, comparison.expected, frozenset(tap for tap in taps if tap != INPUT)
    )
    reference = ReferenceInputs(comparison) if comparison.model.network is not None else None
    found: list[Diagnosis] = []
    for tap in taps:
        if tap == INPUT:
            found += _of_input(comparison)
            continue
        if len(captured[tap]) != len(comparison.chunks):
            found.append(_not_run(comparison, tap))
            continue
        layer = FaultyLayer(comparison, tap, captured[tap], parameters, reference)
        found += explain(layer)
    if reference is not None:
        found += _of_states(comparison, report, reference, found)
    return tuple(found)


def explain(layer: FaultyLayer) -> list[Diagnosis]:
    """Try every hypothesis that there is for this kind of layer."""
    explanations: list[Explanation] = []
    for kinds, hypothesis in HYPOTHESES:
        if isinstance(layer.module, kinds):
            explanations += hypothesis(layer)
        if explanations:
            break
    # Other weights can imitate most faults, so any more exact cause goes first.
    if any(e.cause != "weights-differ" for e in explanations):
        parameters = {e.parameter for e in explanations if e.cause != "weights-differ"}
        explanations = [
            e
            for e in explanations
            if e.cause != "weights-differ" or (e.parameter and e.parameter not in parameters)
        ]
    if not explanations:
        return [_unknown(layer.tap, layer.before)]
    unique = dict.fromkeys(explanations)
    return [
        Diagnosis(layer.tap, e.parameter, e.cause, e.detail, layer.before, e.after, e.mend)
        for e in unique
    ]


def _unknown(tap: str, before: float) -> Diagnosis:
    return Diagnosis(
        tap,
        None,
        "unknown",
        "no hypothesis brings the layer to the floor",
        before,
        None,
        f"Compare what {tap} computes with the reference by hand.",
    )


def _of_input(comparison: Comparison) -> list[Diagnosis]:
    """Explain what was done to the clip on its way into the network."""
    before = comparison.error(INPUT)
    # What really reached the network: in this run nothing was replaced.
    given = [record.activations[INPUT].double() for record in comparison.own]
    right = [torch.from_numpy(part).double() for part in comparison.chunks]
    for cause, detail, mend, undone in clip_changes(given, right):
        after = distance(undone, right) / comparison.floor(INPUT)
        if status_of(after) == "match":
            return [Diagnosis(INPUT, None, cause, detail, before, after, mend)]
    return [_unknown(INPUT, before)]


def _not_run(comparison: Comparison, tap: str) -> Diagnosis:
    before = comparison.error(tap)
    if ".skip" not in tap:
        return _unknown(tap, before)
    return Diagnosis(
        tap,
        None,
        "skip-path",
        "the network does not run it",
        before,
        0.0,
        f"Add the output of {tap.rpartition('.')[0]} to the branch.",
    )


def _of_states(
    comparison: Comparison, report: Report, reference: ReferenceInputs, found: Sequence[Diagnosis]
) -> Iterator[Diagnosis]:
    """Explain states that are wrong though all that they are made of is right."""
    known = {d.parameter for d in found if d.cause == "stream-state"}
    input_wrong = any(d.layer == INPUT for d in found)
    seen: set[str] = set()
    for state in report.states:
        if state.introduced is None or status_of(state.introduced) == "match":
            continue
        if state.name in known or state.name in seen or input_wrong:
            continue
        seen.add(state.name)
        own = comparison.layer_states[state.chunk].states[state.name].double()
        change = reference.explain_state(state.name, state.chunk, own)
        yield Diagnosis(
            reference.owner(state.name),
            state.name,
            change.cause,
            change.detail,
            state.introduced,
            0.0 if change.cause != "unknown" else None,
            change.mend,
        )
