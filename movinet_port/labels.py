"""The classes' names."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from movinet_port.errors import MovinetPortError
from movinet_port.files import cache_folder, whole_file

# Seconds that a server may stay silent, and the most that names can need.
_TIMEOUT = 30.0
_MOST_BYTES = 4 * 1024**2


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


def find_labels(source: str, num_classes: int) -> tuple[str, ...]:
    """Read class names from a file, a URL, or the published file of a data set.

    What is downloaded is kept under ``MOVINET_PORT_CACHE``, by default ``~/.cache/movinet-port``,
    and read from there the next time.

    Args:
        source: a path, an http(s) URL, or a name such as "kinetics-600".
        num_classes: how many the network has.

    Raises:
        LabelsError: the file cannot be read or fetched, or has another number of lines.
    """
    import weights

    published = weights.label_files().get(source)
    if published is not None and not Path(source).exists():
        source = published.url
    if re.match("https?://[^/]*@", source):
        # Said here, so that no password gets into a message or a file.
        raise LabelsError(
            "a user name or password in a URL is not sent; download the labels and give the file"
        )
    if re.match("https?://", source):
        return _fetched(source, num_classes)
    return read_labels(source, num_classes)


def _fetched(url: str, num_classes: int) -> tuple[str, ...]:
    folder = cache_folder()
    name = re.sub(r"[^\w.-]", "_", url.rsplit("/", 1)[-1])[-60:]
    kept = folder / "labels" / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    if kept.is_file():
        try:
            return read_labels(kept, num_classes)
        except LabelsError as error:
            raise LabelsError(f"{error}; delete that file to fetch {url} again") from error
    text = _download(url)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabelsError(
            f"cannot keep the labels in {kept.parent}: {error.strerror}; "
            f"set MOVINET_PORT_CACHE to a folder that is writable"
        ) from error
    with whole_file(kept) as temporary:
        temporary.write_bytes(text)
        # What does not fit is not kept.
        try:
            return read_labels(temporary, num_classes)
        except LabelsError as error:
            raise LabelsError(str(error).replace(str(temporary), url)) from error


def _download(url: str) -> bytes:
    # Not with this module: every program that loads a checkpoint imports that.
    import http.client
    import urllib.error
    import urllib.request

    advice = "check the address and the network, or give a file with --labels"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            content: bytes = response.read(_MOST_BYTES + 1)
            stated = response.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        error.close()
        raise LabelsError(
            f"cannot fetch the labels {url}: HTTP {error.code} {error.reason}; {advice}"
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise LabelsError(f"cannot fetch the labels {url}: {reason}; {advice}") from error
    if stated is not None and stated.isdigit() and int(stated) != len(content):
        raise LabelsError(
            f"cannot fetch the labels {url}: {len(content)} of {stated} bytes came; {advice}"
        )
    return content


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
