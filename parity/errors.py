"""What can keep two networks from being compared."""

from __future__ import annotations

from movinet_port.errors import MovinetPortError


class ComparisonError(MovinetPortError):
    """The two sides cannot be compared; the message says what is missing or does not fit."""
