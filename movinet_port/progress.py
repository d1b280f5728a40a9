"""Showing what a long command is doing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console


@contextlib.contextmanager
def show_progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows what is being done: on a terminal only, and on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda activity: None
        return
    with console.status("") as status:
        yield lambda activity: status.update(activity)
