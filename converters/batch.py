"""Converting the whole catalogue: on from where it stopped, and past what fails."""

from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from converters.convert import Progress, convert_source, weights_digest
from movinet_port.checkpoint import load_checkpoint, save
from movinet_port.errors import MovinetPortError
from movinet_port.files import whole_file
from weights import Published

TABLE = "conversions.csv"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one published file; true unless it failed.

    Attributes:
        source: its URL.
        file: the checkpoint's name in the output folder.
        status: "converted"; "kept", if it was there already, whole and from this source; or
            "failed".
        network: name, mode and era or, if kept, name and mode.
        classes: number of logits; 0 if failed.
        difference: largest difference of a logit relative to the largest logit; None if both
            sides were not run.
        seconds: how long it took.
        error: why it failed.
    """

    source: str
    file: str
    status: Literal["converted", "kept", "failed"]
    network: str = ""
    classes: int = 0
    difference: float | None = None
    seconds: float = 0.0
    error: str = ""

    def __bool__(self) -> bool:
        return self.status != "failed"


def file_name(entry: Published, suffix: str) -> str:
    """Return the name of the checkpoint that a published file becomes."""
    release = f"v{entry.version}" if entry.version is not None else "checkpoint"
    if entry.container == "tflite":
        version = "" if entry.version is None else f"_v{entry.version}"
        release = f"tflite_{entry.precision}{version}"
    legacy = "_legacy" if entry.legacy else ""
    return f"movinet_{entry.model.name}_{entry.model.mode}_{release}{legacy}.{suffix}"


def convert_all(
    entries: Sequence[Published],
    folder: Path,
    *,
    suffix: str = "pt",
    verify: bool = True,
    progress: Progress = lambda activity: None,
    address: Callable[[Published], str] = lambda entry: entry.url,
) -> Iterator[Outcome]:
    """Convert published files one after another; yield what became of each.

    A checkpoint that is there already is read, its weights' digest is compared with the one it
    was written with, and it is kept if it is whole. After each file, the table ``conversions.csv``
    in `folder` says what was done so far.

    Args:
        entries: from `weights.catalogue`.
        folder: where the checkpoints go; made if it is not there.
        suffix: "pt" or "safetensors".
        verify: compare both sides, where the source has a graph.
        progress: called with a line of text when a step begins.
        address: where to fetch an entry from; its URL unless there is a mirror.

    Raises:
        MovinetPortError: the folder or the table cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MovinetPortError(f"cannot make the folder {folder}: {error.strerror}") from error
    outcomes: list[Outcome] = []
    for number, entry in enumerate(entries, start=1):
        where = f"{number} of {len(entries)}: {entry.model.name} {entry.model.mode}"
        start = time.monotonic()
        path = folder / file_name(entry, suffix)
        outcome = _kept(entry, path)
        if outcome is None:
            report = _prefixed(progress, where)
            try:
                outcome = _convert(entry, path, verify, report, address)
            except MovinetPortError as error:
                outcome = Outcome(entry.url, path.name, "failed", error=str(error))
        outcomes.append(dataclasses.replace(outcome, seconds=time.monotonic() - start))
        _write_table(folder / TABLE, outcomes)
        yield outcomes[-1]


def _prefixed(progress: Progress, prefix: str) -> Progress:
    return lambda activity: progress(f"{prefix}: {activity}")


def _kept(entry: Published, path: Path) -> Outcome | None:
    if not path.exists():
        return None
    try:
        checkpoint = load_checkpoint(path)
        checkpoint.build()
    except MovinetPortError:
        return None
    provenance = checkpoint.provenance
    whole = provenance.get("weights_sha256") == weights_digest(checkpoint.state_dict)
    if not whole or provenance.get("published") != entry.url:
        return None
    spec = checkpoint.spec
    return Outcome(entry.url, path.name, "kept", f"{spec.name} {spec.mode}", spec.num_classes)


def _convert(
    entry: Published,
    path: Path,
    verify: bool,
    progress: Progress,
    address: Callable[[Published], str],
) -> Outcome:
    conversion = convert_source(
        address(entry),
        model=entry.model.name,
        mode=entry.model.mode,
        verify=verify,
        progress=progress,
    )
    checkpoint = conversion.checkpoint
    provenance = {**checkpoint.provenance, "published": entry.url}
    save(dataclasses.replace(checkpoint, provenance=provenance), path)
    spec, verification = checkpoint.spec, conversion.verification
    return Outcome(
        source=entry.url,
        file=path.name,
        status="converted",
        network=f"{spec.name} {spec.mode}, era {conversion.era}",
        classes=spec.num_classes,
        difference=verification.logits if verification is not None else None,
    )


def _write_table(path: Path, outcomes: Sequence[Outcome]) -> None:
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        fields = [field.name for field in dataclasses.fields(Outcome)]
        writer.writerow(fields)
        for outcome in outcomes:
            writer.writerow([getattr(outcome, field) for field in fields])
