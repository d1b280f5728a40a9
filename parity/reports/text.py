"""A report as text for terminals and pipes, and as JUnit XML for CI systems."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

from movinet_port.errors import printable
from movinet_port.progress import plain
from parity.reports.report import MISMATCH, SUSPECT, Diagnosis, LayerResult, Report, StateResult

_WORST = 8
NEXT = (
    "'movinet-port predict' watches a video with it, 'finetune' trains it on classes of your own, "
    "'export' writes it for other runtimes; --help shows how"
)
_COLOURS = {"match": "green", "parity": "green", "suspect": "yellow", "mismatch": "red"}


def verdict_line(report: Report) -> str:
    """Return one line: the verdict, and what it rests on."""
    count = len(report.layers)
    name, other = report.model.get("name", "the model"), report.reference.get("name", "reference")
    off = [layer for layer in report.layers if not layer]
    own = sum(layer.introduces for layer in report.layers)
    states = sum(not state for state in report.states)
    rest = "" if not report.states else f", {len(report.states)} states"
    if report:
        worst = max((layer.end_to_end for layer in report.layers), default=0.0)
        return (
            f"parity: {name} is {other}: {count} taps{rest}, "
            f"worst error {units(worst)} times the rounding floor (a match is below {SUSPECT:g})"
        )
    return (
        f"{report.verdict}: {name} is not {other}: {len(off)} of {count} taps are off, "
        f"{own} of them by an error of their own"
        + (f"; {states} of {len(report.states)} states are off" if states else "")
    )


def units(error: float | None) -> str:
    """Return an error in floor units, in few characters."""
    if error is None:
        return "-"
    if not math.isfinite(error):
        return "inf"
    return f"{error:.2f}" if error < 100 else f"{error:.1e}"


def lines(report: Report) -> Iterator[str]:
    """Yield the report as plain lines, for pipes."""
    yield verdict_line(report)
    for found in report.diagnosis:
        what = f"{_place(found)}  {found.cause}  {found.detail}  ({_gain(found)})"
        yield f"cause  {what}  {found.mend}"
    for layer in _listed(report):
        yield (
            f"layer  {layer.name}  {layer.status}  introduced {units(layer.introduced)}  "
            f"end to end {units(layer.end_to_end)}  floor {layer.floor:.1e}"
            + (f"  {layer.note}" if layer.note else "")
        )
    for state in _listed_states(report):
        yield (
            f"state  {state.name}  {state.status}  after clip {state.chunk}  "
            f"introduced {units(state.introduced)}  end to end {units(state.end_to_end)}"
        )
    if report:
        yield f"next  {NEXT}"


def print_report(report: Report, console: Console) -> None:
    """Show a report: the verdict, the causes, the worst layers; after parity, what comes next."""
    if not console.is_terminal:
        for line in lines(report):
            console.print(printable(line), markup=False, soft_wrap=True)
        return
    console.print(f"[bold {_COLOURS[report.verdict]}]{plain(verdict_line(report))}[/]")
    for cause, group in groupby(report.diagnosis, key=lambda found: found.cause):
        found = list(group)
        console.print(f"\n[bold]{cause}[/] in {len(found)} place{'s' if len(found) > 1 else ''}")
        for one in found[:_WORST]:
            console.print(f"  {plain(_place(one))}: {plain(one.detail)} ({_gain(one)})")
            console.print(f"    {plain(one.mend)}", style="dim")
        if len(found) > _WORST:
            console.print(f"  and {len(found) - _WORST} more, see --json or --report")
    table = Table(box=None, pad_edge=False)
    for heading in ("layer", "status", "introduced", "end to end", "floor"):
        table.add_column(heading, justify="left" if heading in ("layer", "status") else "right")
    for layer in _listed(report):
        table.add_row(
            plain(layer.name),
            f"[{_COLOURS[layer.status]}]{layer.status}[/]",
            units(layer.introduced),
            units(layer.end_to_end),
            f"{layer.floor:.1e}",
        )
    if table.row_count:
        console.print("\nWorst layers, errors in units of the rounding floor:")
        console.print(table)
    if report:
        console.print(f"\nNext: {NEXT}", markup=False)


def _listed(report: Report) -> Sequence[LayerResult]:
    return [layer for layer in report.worst(_WORST) if not layer]


def _listed_states(report: Report) -> Sequence[StateResult]:
    return [state for state in report.states if not state][:_WORST]


def _place(found: Diagnosis) -> str:
    return found.parameter if found.parameter else found.layer


def _gain(found: Diagnosis) -> str:
    if found.after is None:
        return f"error {units(found.before)}"
    return f"error {units(found.before)} falls to {units(found.after)}"


def junit(report: Report) -> str:
    """Return JUnit XML: one test case for each tap and each stream state.

    A suspect is a passed case with a note in ``system-out``; a mismatch is a failure.
    """
    cases: list[tuple[str, str, LayerResult | StateResult]] = [
        ("layers", printable(layer.name), layer) for layer in report.layers
    ]
    cases += [("states", printable(f"{s.name} after clip {s.chunk}"), s) for s in report.states]
    failures = sum(item.status == "mismatch" for _, _, item in cases)
    suite = ElementTree.Element(
        "testsuite",
        name=printable(f"parity {report.model.get('name', '')}"),
        tests=str(len(cases)),
        failures=str(failures),
        errors="0",
        skipped="0",
        time=f"{sum(report.seconds.values()):.3f}",
    )
    for kind, name, item in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=f"parity.{kind}", name=name)
        if item.status == "match":
            continue
        text = (
            f"introduced {units(item.introduced)}, end to end {units(item.end_to_end)} times the "
            f"floor; a mismatch starts at {MISMATCH:g}"
        )
        causes = [
            printable(f"{found.cause}: {found.detail}. {found.mend}")
            for found in report.diagnosis
            if item.name in (found.layer, found.parameter)
        ]
        if item.status == "mismatch":
            failure = ElementTree.SubElement(case, "failure", type=item.status, message=text)
            failure.text = "\n".join(causes)
        else:
            ElementTree.SubElement(case, "system-out").text = text
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
