"""What the command line says of a conversion, as rows of (label, text)."""

from __future__ import annotations

from converters.convert import Conversion
from converters.deviations import Deviation, deviations
from converters.inspect import SourceDifference
from converters.recognise import Finding
from movinet_port.agreement import Agreement
from movinet_port.checkpoint import listing
from movinet_port.command_line.written import Written

Rows = list[tuple[str, str]]


def identity_rows(conversion: Conversion) -> Rows:
    """Say what the source is: network, era, classes, parameters."""
    checkpoint = conversion.checkpoint
    spec = checkpoint.spec
    trained = sum(
        tensor.numel()
        for name, tensor in checkpoint.state_dict.items()
        if not name.rpartition(".")[2].startswith(("running_", "num_batches"))
    )
    averages = f"{conversion.averages}, not taken; --ema takes them"
    return [
        ("source", str(checkpoint.provenance["source"])),
        ("network", f"{spec.name} {spec.mode}, era {conversion.era}"),
        ("classes", str(spec.num_classes)),
        ("parameters", f"{trained:,} in {len(conversion.used)} variables, every one used once"),
        ("left out", listing(list(conversion.outside)) or "nothing"),
        *([("averages", averages)] if conversion.averages else []),
        *((name.replace("_", " "), text) for name, text in conversion.facts.items()),
    ]


def written_rows(path: str, written: Written) -> Rows:
    """Say what a file that movinet-port wrote is: network, classes, labels, input, provenance."""
    spec, made = written.spec, written.input
    labels = listing(list(written.labels or ()), 3) or "unknown"
    clips = "unknown"
    if made is not None:
        clips = (
            f"clips of {made.frames} frames of {made.size} x {made.size}, "
            f"{made.frames_per_second:g} frames per second"
        )
    rows = [
        ("file", f"{path}: {written.kind}"),
        ("network", f"{spec.name} {spec.mode}"),
        ("classes", str(spec.num_classes)),
        ("labels", labels),
        ("input", clips),
    ]
    rows += [("" if n else "deviation", d.text) for n, d in enumerate(deviations(spec))]
    facts = written.provenance.items()
    return rows + [("" if n else "provenance", f"{k}: {v}") for n, (k, v) in enumerate(facts)]


def deviation_rows(conversion: Conversion, evidence: bool) -> Rows:
    """List how the network departs from the paper's.

    Args:
        conversion: what was recognised.
        evidence: say for each where it was read.
    """
    findings = {finding.field: finding for finding in conversion.findings}
    rows: Rows = []
    for deviation in deviations(conversion.checkpoint.spec):
        rows.append(("" if rows else "deviation", deviation.text))
        if evidence:
            rows.append(("", f"    {_basis(deviation, findings.get(deviation.field))}"))
    return rows


def _basis(deviation: Deviation, finding: Finding | None) -> str:
    if finding is None:
        return "read off the skip projections' variables"
    return f"{finding.how}{' off' if finding.how == 'read' else ':'} {finding.where}"


def assumption_rows(conversion: Conversion) -> Rows:
    """List what could not be read off the source, and the option that says otherwise."""
    return [
        ("" if number else "not read", f"{f.field} = {f.value} is {f.how}: {f.where}{_option(f)}")
        for number, f in enumerate(f for f in conversion.findings if f.how != "read")
    ]


# Field of a finding -> convert's option.
_OPTIONS = {
    "activation": "--activation",
    "causal": "--mode",
    "causal_padding": "--padding",
    "classifier_activation": "--classifier-activation",
    "gate": "--gate",
    "norm_epsilon": "--norm-epsilon",
    "pool_counts_padding": "--no-tf-like",
    "se_type": "--se-type",
}


def _option(finding: Finding) -> str:
    option = _OPTIONS.get(finding.field)
    return f" ({option} says otherwise)" if finding.how == "assumed" and option else ""


def verification_rows(agreement: Agreement) -> Rows:
    """Say how far apart both sides' logits are."""
    batch, frames, height, width = agreement.clips[0]
    clips = len(agreement.clips)
    return [
        (
            "compared",
            f"{clips} clip{'s' * (clips > 1)} of {frames} frames of {height} x {width}, batch "
            f"{batch}, {agreement.reference} against PyTorch",
        ),
        (
            "difference",
            f"{agreement.difference:.2e} at logits up to {agreement.magnitude:.3g}: "
            f"{agreement.logits:.1e} of the largest (bound {agreement.bound:.0e})",
        ),
    ]


def difference_rows(difference: SourceDifference) -> Rows:
    """Say how two sources differ, in one line and then one by one."""
    rows: Rows = [("difference", difference.summary())]
    rows += [("", f"{field}: {a} and {b}") for field, a, b in difference.architecture]
    rows += [
        ("", f"{tensor.name}: {tensor.detail}{_gap(tensor.largest)}")
        for tensor in difference.weights
    ]
    return rows


def _gap(largest: float | None) -> str:
    return "" if largest is None else f", by up to {largest:.3g}"
