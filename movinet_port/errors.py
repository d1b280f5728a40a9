"""The errors that a user of movinet-port can cause."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MovinetPortError(Exception):
    """Something the user gave cannot be used; the message is one line that says what to do.

    The command line prints the message and ends with exit code 2.
    """


class SpecError(MovinetPortError, ValueError):
    """A spec, or a value for one of its fields, does not describe a MoViNet."""


class StateError(MovinetPortError, ValueError):
    """A stream state does not belong to this network or to this clip."""


class CheckpointError(MovinetPortError):
    """A checkpoint file cannot be read, or does not fit its own spec."""


class MismatchError(MovinetPortError):
    """Two sides that must agree do not; nothing was written. The exit code is 1."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known name closest to `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def one_line(text: str) -> str:
    """Return `text`, which may hold any file's name, in one line."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """Return `text` with control characters and what no encoding has written as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
