"""Kinds of options that several commands have."""

from __future__ import annotations

import re

import click

from movinet_port.errors import MovinetPortError
from movinet_port.inputs import LARGEST_SIDE


class Size(click.ParamType):  # type: ignore[type-arg]  # generic in click 8.4 only
    """A square's side, or HEIGHTxWIDTH, in pixels."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Return (height, width)."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", str(value))
        size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 0 < max(size) <= LARGEST_SIDE:
            raise MovinetPortError(
                f"--size {value}: expected a number of pixels, or HEIGHTxWIDTH, such as 172, "
                f"of at most {LARGEST_SIDE}"
            )
        return size
