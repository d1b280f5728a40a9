"""What can be wrong with a source."""

from __future__ import annotations

from movinet_port.errors import MismatchError, MovinetPortError


class ConversionError(MovinetPortError):
    """A source cannot be converted; the message names the file and the variable."""


class VerificationError(ConversionError, MismatchError):
    """The converted network does not give the source's logits."""


class SourceError(MovinetPortError):
    """A source is not there, is damaged, or holds nothing that is read."""


class SourceProblem(Exception):
    """What is wrong with a source, without its name: `open_source` says that."""


def reason(error: BaseException) -> str:
    """Return one line that says why."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip() or type(error).__name__).splitlines()[0]
