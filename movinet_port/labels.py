"""The classes' names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from movinet_port.errors import MovinetPortError


class LabelsError(MovinetPortError):
    """The names do not belong to the network's classes, or cannot be read."""


def read_labels(path: str | os.PathLike[str], num_classes: int) -> tuple[str, ...]:
    """Read class names from a text file: UTF-8, one per line, in the order of the logits.

    Args:
        path: the file.
        num_classes: how many the network has.

    Raises:
        LabelsError: the file cannot be read, or has another number of lines.
    """
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise LabelsError(f"cannot read the labels {path}: {reason}") from error
    labels = tuple(line.strip() for line in lines)
    while labels and not labels[-1]:
        labels = labels[:-1]
    check_labels(labels, num_classes, str(path))
    return labels


def check_labels(labels: Sequence[object], num_classes: int, where: str) -> None:
    """Check that there is one name for each class.

    Raises:
        LabelsError: there are more or fewer, or one is empty or no text.
    """
    if len(labels) != num_classes:
        raise LabelsError(
            f"{where}: {len(labels)} class names, expected {num_classes}, one for each class "
            f"of the network, one per line"
        )
    for number, label in enumerate(labels, start=1):
        if not isinstance(label, str) or not label:
            raise LabelsError(f"{where}: class name {number} is {label!r}, expected a name")
