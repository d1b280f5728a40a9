"""Showing what a long command is doing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console


def on_terminal() -> bool:
    """Whether standard output is a terminal."""
    # It is None where the caller closed it.
    return sys.stdout is not None and sys.stdout.isatty()


@contextlib.contextmanager
def show_progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows what is being done: on a terminal only, and on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda activity: None
        return
    with console.status("") as status:
        yield lambda activity: status.update(activity)
