"""What can be wrong with a source."""

from __future__ import annotations

from movinet_port.errors import MismatchError, MovinetPortError


class ConversionError(MovinetPortError):
    """A source cannot be converted; the message names the file and the variable."""


class VerificationError(ConversionError, MismatchError):
    """The converted network does not give the source's logits."""


class SourceProblem(Exception):
    """What is wrong with a source, without its name: `open_source` says that."""
