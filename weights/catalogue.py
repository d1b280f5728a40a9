"""The published MoViNet checkpoints (Kinetics-600) as data, read from ``catalogue.json``.

Sources: the authors' README (accuracy, input sizes, checkpoint and TF Lite URLs), the validation
data of their training configurations (``resize``), the URL of the label file in their tutorial, the
TF Hub handles, and for ``parameters`` a count of the network that tf-models-official 2.20.0 builds.

Nobody states which era of the network a published file holds: every ``era`` here is inferred, from
the dates of the releases. A converter reads the era from the file and uses this only as a hint.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Mode = Literal["base", "stream"]
Container = Literal["saved_model", "checkpoint", "tflite"]

# Kinetics-600 clips last ten seconds.
CLIP_SECONDS = 10


class UnknownModelError(LookupError):
    """Nothing is published under this name or mode; the message is one line that lists what is."""


@dataclass(frozen=True)
class PublishedModel:
    """One network of the family and the results its authors publish for it.

    ``resize`` is what the authors' evaluation scales the shorter side to, before it cuts out the
    centre of ``resolution`` (pixels, square). ``top1`` and ``top5`` are percent on Kinetics-600 at
    these sizes and ``frames_per_second``; for "stream" they belong to the newest checkpoints.
    ``gflops`` is the paper's, for a whole clip of ``frames`` frames. ``parameters`` are the
    trainable ones with 600 classes, counted in the reference: the paper's are lower from a2 on.
    """

    name: str
    mode: Mode
    resolution: int
    resize: int
    frames_per_second: int
    top1: float
    top5: float
    gflops: float
    parameters: int

    @property
    def frames(self) -> int:
        """Frames of the clip that the accuracy was measured on."""
        return self.frames_per_second * CLIP_SECONDS


@dataclass(frozen=True)
class Published:
    """One published file.

    ``version`` is the hub's, None for files outside the hub. ``legacy`` marks the first stream
    checkpoints, since replaced. ``era`` is that of the code the network belongs to: 1 is
    tf-models-official 2.6 (3-D causal streams), 2 is 2.7 ((2+1)-D streams), None is unknown;
    ``era_source`` says from what it is inferred. ``note`` says how the file differs from ``model``.
    """

    model: PublishedModel
    container: Container
    url: str
    version: int | None = None
    precision: Literal["float32", "float16", "int8"] = "float32"
    legacy: bool = False
    era: int | None = None
    era_source: str = ""
    note: str = ""


@dataclass(frozen=True)
class LabelFile:
    """A published text file with the names of a data set's classes, in the order of the logits."""

    name: str
    url: str
    classes: int


@functools.cache
def _read() -> dict[str, Any]:
    text = importlib.resources.files(__package__).joinpath("catalogue.json").read_text("utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


@functools.cache
def models() -> tuple[PublishedModel, ...]:
    """Every published network, in the order of the family, base before stream."""
    return tuple(
        PublishedModel(
            name=name,
            mode=mode,
            resolution=row["resolution"],
            resize=row["resize"],
            frames_per_second=row["frames_per_second"],
            **row[mode],
        )
        for name, row in _read()["models"].items()
        for mode in ("base", "stream")
    )


@functools.cache
def catalogue() -> tuple[Published, ...]:
    """Every published file: SavedModels first, then checkpoints, then TF Lite files."""
    return tuple(
        Published(
            model=find_model(name, release["mode"]),
            url=release["url"].format(name=name),
            **{key: release[key] for key in release.keys() - {"models", "mode", "url"}},
        )
        for release in _read()["releases"]
        for name in release["models"]
    )


def label_files() -> dict[str, LabelFile]:
    """Every published label file, by the name of its data set."""
    return {name: LabelFile(name, **row) for name, row in _read()["labels"].items()}


def find_model(name: str, mode: str) -> PublishedModel:
    """Return the published network `name` ("a0" to "a5") in `mode` ("base" or "stream").

    Raises:
        UnknownModelError: there is none.
    """
    published: dict[tuple[str, str], PublishedModel] = {(m.name, m.mode): m for m in models()}
    _check("model", name, (name for name, _ in published))
    _check("mode", mode, (mode for _, mode in published))
    return published[name, mode]


def newest_handle(name: str, mode: str) -> str:
    """Return the TF Hub handle of the newest SavedModel of a published network.

    Raises:
        UnknownModelError: no such network is published.
    """
    model = find_model(name, mode)
    return _newest(
        entry for entry in catalogue() if entry.model == model and entry.container == "saved_model"
    ).url


def find_handle(url: str) -> Published | None:
    """Return the published file that `url` names, or None if it is not in the catalogue.

    The scheme (http or https), a query, a trailing slash and blanks around it do not matter. A hub
    handle without a version stands for the newest one.
    """
    wanted = _canonical(url)
    exact = [entry for entry in catalogue() if _canonical(entry.url) == wanted]
    if exact:
        return exact[0]
    versions = [
        entry
        for entry in catalogue()
        if entry.version is not None and _canonical(entry.url) == f"{wanted}/{entry.version}"
    ]
    return _newest(versions) if versions else None


def _newest(entries: Iterable[Published]) -> Published:
    return max(entries, key=lambda entry: entry.version or 0)


def _canonical(url: str) -> str:
    without_scheme = re.sub(r"^https?://", "", url.strip(), flags=re.IGNORECASE)
    return re.split(r"[?#]", without_scheme, maxsplit=1)[0].rstrip("/")


def _check(what: str, given: str, known: Iterable[str]) -> None:
    names = sorted(set(known))
    if given in names:
        return
    close = difflib.get_close_matches(given.lower(), names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise UnknownModelError(
        f"no published weights for {what} {given!r}{hint}: expected one of {', '.join(names)}"
    )
