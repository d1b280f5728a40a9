"""Does the diagnosis find what is wrong? Known faults in a right network, and what parity says.

Run from the repository's root, with TensorFlow installed::

    python -m benchmarks.diagnosis [--limit 420] [--pairs 60] [--clean 50] [--json out.json]
        [--source DIR]

The references are TensorFlow's outputs on the exports in ``tests/data`` and the sample, or on any
other SavedModels (``--source``, a folder or an archive, may be repeated); the faults, from
`benchmarks.faults`, are put into our side. A fault counts as

- detected, if the verdict is not parity;
- placed, if the first diagnosis is of the faulty layer, every faulty layer has one, and no other;
- named, if moreover a true cause is given for each of them;
- honest, if moreover no cause is given that is not true.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import itertools
import json
import random
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.faults import SHAPE, Fault, porting_faults, right_networks
from movinet_port import MoViNet
from movinet_port.checkpoint import Checkpoint
from parity.chunk_values import ChunkValues
from parity.compare import compare, split_clip
from parity.compared_model import ComparedModel, Recorded
from parity.references import SavedModelReference
from parity.reports.report import Report

ROOT = Path(__file__).resolve().parent.parent
ARCHIVES = (
    "tests/data/era1_mini_base.tar.gz",
    "tests/data/era1_mini_stream.tar.gz",
    "tests/data/era2_mini_stream.tar.gz",
    "tests/data/era2_mini_stream_posenc.tar.gz",
    "tests/data/era3_mini_base.tar.gz",
    "weights/samples/movinet_mini_stream.tar.gz",
)
CHUNKS = (1, 2, 3)
# Of the clips, (height, width): square where axes can be confused, and odd where halves differ.
SIZES = ((44, 44), (48, 56), (37, 50))
# An activation that moves by less than this share of the largest is no fault, but rounding.
LEAST = 1e-5
# So many places are tried for a fault that changes nothing at the first ones.
TRIES = 6


class Ran:
    """A reference that was run once for each clip: faults are many, TensorFlow is slow."""

    def __init__(self, reference: SavedModelReference) -> None:
        self.description = reference.description
        self.parameters = reference.parameters
        self.table: Mapping[str, str] | None = None
        self.spec = reference.spec
        self._reference = reference
        self._ran: dict[bytes, list[ChunkValues]] = {}

    def run(self, chunks: Sequence[Any]) -> list[ChunkValues]:
        """Return the activations; the last video's are remembered."""
        key = (
            b"".join(chunk.tobytes() for chunk in chunks)
            + str([chunk.shape for chunk in chunks]).encode()
        )
        if key not in self._ran:
            self._ran = {key: self._reference.run(chunks)}
        return self._ran[key]

    def build(self) -> MoViNet:
        """Return a right network."""
        return Checkpoint(self.spec, dict(self.parameters)).build()


def open_reference(source: str | Path) -> Ran:
    """Return the reference in a folder or an archive; a path is seen from the repository."""
    path = ROOT / source
    if path.is_dir():
        return Ran(SavedModelReference(path, name=path.name))
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(path) as opened:
            opened.extractall(folder, filter="data")
        graph = next(Path(folder).rglob("saved_model.pb"))
        return Ran(SavedModelReference(graph.parent, name=path.name))


class Bench:
    """One reference on one clip, and the right network.

    Args:
        reference: what is right.
        size: height and width of the frames.
        batch: number of clips.
        seed: of the clip.
    """

    def __init__(
        self, reference: Ran, size: tuple[int, int] = (44, 44), batch: int = 2, seed: int = 0
    ) -> None:
        self.reference = reference
        self.network = reference.build()
        self.clip = np.random.default_rng(seed).random((batch, 3, 6, *size), dtype=np.float32)
        self.chunks = CHUNKS if self.network.spec.causal else None
        self.parts = split_clip(self.clip, self.chunks)
        self._expected = reference.run(self.parts)
        self._right = ComparedModel(self.network).run(self.parts)
        self._right_layers = ComparedModel(self.network).run(
            self.parts, replacements=self._expected
        )
        SHAPE[:] = self.clip.shape

    def with_faults(self, chosen: Sequence[Fault]) -> nn.Module:
        """Return a copy of the network with faults."""
        model: nn.Module = copy.deepcopy(self.network)
        for fault in chosen:
            model = fault.apply(model)  # type: ignore[arg-type]
        return model

    def report(self, model: nn.Module) -> Report:
        """Compare a network with the reference."""
        return compare(self.reference, model, self.clip, chunks=self.chunks)

    def effective(self, fault: Fault) -> Fault | None:
        """Return a fault without the places where it changes nothing; None if it has none."""
        try:
            if not _moved(ComparedModel(self.with_faults([fault])).run(self.parts), self._right):
                return None
        except RuntimeError:  # Frames too small to be reflected, say.
            return None
        if len(fault.places) < 2:
            return fault
        found = ComparedModel(self.with_faults([fault])).run(
            self.parts, replacements=self._expected
        )
        moved = _moved(found, self._right_layers)
        places = tuple(place for place in fault.places if moved.intersection(place))
        return dataclasses.replace(fault, places=places) if places else None


def _moved(found: Sequence[Recorded], right: Sequence[Recorded]) -> set[str]:
    """Return the taps whose values are others."""
    moved = set()
    for a, b in zip(found, right, strict=True):
        for tap, value in b.activations.items():
            other = a.activations.get(tap)
            limit = LEAST * float(value.abs().max())
            same = other is not None and other.shape == value.shape
            # A NaN is not the same.
            if not (same and float((other - value).abs().max()) <= limit):
                moved.add(tap)
    return moved


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the report says about one case."""

    source: str
    faults: tuple[Fault, ...]
    detected: bool
    placed: bool
    named: bool
    honest: bool
    said: tuple[str, ...]


def judge(source: str, chosen: tuple[Fault, ...], report: Report) -> Outcome:
    """Compare what was said with what was done."""
    said = [(found.layer, found.cause) for found in report.diagnosis]
    layers = {layer for layer, _ in said}
    places = [place for fault in chosen for place in fault.places]
    # What goes wrong in no one place may be found anywhere.
    anywhere = not all(fault.places for fault in chosen)
    allowed = {tap for place in places for tap in place}
    placed = bool(said) and all(layers.intersection(place) for place in places)
    placed = placed and (anywhere or layers <= allowed)
    named, honest = placed, placed
    for fault in chosen:
        for place in fault.places or (tuple(layers),):
            causes = {cause for layer, cause in said if layer in place}
            # Another fault in the same place has causes of its own.
            here = [f for f in chosen if any({*p} & {*place} for p in f.places or (place,))]
            true = {cause for f in here for cause in f.true_causes}
            named = named and bool(causes & fault.true_causes)
            honest = honest and named and causes <= true
    return Outcome(
        source,
        chosen,
        not report,
        placed,
        named,
        honest,
        tuple(f"{d.layer}: {d.cause} ({d.detail})" for d in report.diagnosis[:4]),
    )


def kinds(network: MoViNet) -> dict[tuple[str, str], list[Fault]]:
    """Return every fault of a network, by cause and detail: the same thing in many places."""
    found: dict[tuple[str, str], list[Fault]] = {}
    for fault in porting_faults(network):
        found.setdefault((fault.cause, fault.detail), []).append(fault)
    return found


def select(
    bench: Bench, rng: random.Random, done: dict[tuple[str, str], int], count: int
) -> Iterator[Fault]:
    """Yield faults that change something: one of each kind, those least often done first.

    Args:
        bench: where.
        rng: chooses the places.
        done: how often each kind was done; is added to.
        count: how many.
    """
    available = kinds(bench.network)
    order = sorted(available, key=lambda kind: (done.get(kind, 0), rng.random()))
    for kind in order:
        if not count:
            return
        faults = available[kind]
        for candidate in rng.sample(faults, min(TRIES, len(faults))):
            fault = bench.effective(candidate)
            if fault is not None:
                done[kind] = done.get(kind, 0) + 1
                count -= 1
                yield fault
                break


def pairs(bench: Bench, rng: random.Random, count: int) -> Iterator[tuple[Fault, Fault]]:
    """Yield pairs of faults in different layers; each kind is as likely as any other."""
    together = ([f for f in faults if not f.alone] for faults in kinds(bench.network).values())
    free = [faults for faults in together if faults]
    while count:
        first, second = (rng.choice(faults) for faults in rng.sample(free, 2))
        if _blocks(first) & _blocks(second):
            continue
        effective = [bench.effective(fault) for fault in (first, second)]
        if effective[0] is not None and effective[1] is not None:
            count -= 1
            yield effective[0], effective[1]


def _blocks(fault: Fault) -> set[str]:
    return {tap.partition(".")[0] for place in fault.places for tap in place}


def main() -> None:
    """Run the bench and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=420, help="single faults, of all sources")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--clean", type=int, default=50, help="right networks, other seeds, sizes")
    parser.add_argument("--source", action="append", help="only these; may be repeated")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--verbose", action="store_true", help="print what went wrong")
    options = parser.parse_args()
    start = time.perf_counter()
    sources = options.source or list(ARCHIVES)
    outcomes: list[Outcome] = []
    alarms: list[str] = []
    done: dict[tuple[str, str], int] = {}
    rights, clean = list(right_networks().items()), 0
    torch.set_num_threads(1)
    # Ctrl-C ends the bench early, with the table of what was done.
    with contextlib.suppress(KeyboardInterrupt):
        for position, source in enumerate(sources):
            rng = random.Random(options.seed + position)
            reference = open_reference(source)
            size = SIZES[(options.seed + position) % len(SIZES)]
            bench = Bench(reference, size, options.batch, options.seed + position)
            singles = select(bench, rng, done, _share(options.limit, position, len(sources)))
            both = pairs(bench, rng, _share(options.pairs, position, len(sources)))
            for chosen in itertools.chain(((fault,) for fault in singles), both):
                outcome = judge(source, chosen, bench.report(bench.with_faults(chosen)))
                outcomes.append(outcome)
                if options.verbose and not (outcome.detected and outcome.honest):
                    print(_line(outcome), flush=True)
                if options.verbose and len(outcomes) % 20 == 0:
                    print(f"{len(outcomes)} cases, {time.perf_counter() - start:.0f} s", flush=True)
            for _ in range(_share(options.clean, position, len(sources))):
                label, change = rights[clean % len(rights)]
                size = (rng.randrange(33, 70), rng.randrange(33, 70))
                video = np.random.default_rng(clean).random((1, 3, 6, *size), dtype=np.float32)
                model = change(copy.deepcopy(bench.network))
                if not compare(reference, model, video, chunks=bench.chunks):
                    alarms.append(f"{source}: {label}, {size}")
                clean += 1
    _print_table(outcomes)
    print(
        f"right networks {clean}, false alarms {len(alarms)}; {time.perf_counter() - start:.0f} s"
    )
    for alarm in alarms:
        print(f"false alarm: {alarm}")
    if options.json:
        options.json.write_text(json.dumps([_row(outcome) for outcome in outcomes], indent=1))


def _share(total: int, position: int, parts: int) -> int:
    return (position + 1) * total // parts - position * total // parts


_JUDGED = ("detected", "placed", "named", "honest")


def _line(outcome: Outcome) -> str:
    flags = "".join(name[0] if getattr(outcome, name) else "-" for name in _JUDGED)
    done = " + ".join(
        f"{fault.layer if fault.places else 'anywhere'}: {fault.cause} ({fault.detail})"
        for fault in outcome.faults
    )
    return f"{flags} {Path(outcome.source).name} {done} -> {'; '.join(outcome.said) or 'nothing'}"


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "source": outcome.source,
        "faults": [[f.places, f.cause, f.detail] for f in outcome.faults],
        **{key: getattr(outcome, key) for key in (*_JUDGED, "said")},
    }


def _print_table(outcomes: Sequence[Outcome]) -> None:
    print(f"{'cause':<22}{'cases':>6}" + "".join(f"{name:>10}" for name in _JUDGED))
    singles = [outcome for outcome in outcomes if len(outcome.faults) == 1]
    by_cause: dict[str, list[Outcome]] = {}
    for outcome in singles:
        by_cause.setdefault(outcome.faults[0].cause, []).append(outcome)
    rows = [(cause, by_cause[cause]) for cause in sorted(by_cause)]
    rows += [("single faults", singles)]
    rows += [("pairs", [outcome for outcome in outcomes if len(outcome.faults) == 2])]
    for label, found in rows:
        counts = "".join(f"{sum(getattr(o, name) for o in found):>10}" for name in _JUDGED)
        print(f"{label:<22}{len(found):>6}{counts}")


if __name__ == "__main__":
    main()
