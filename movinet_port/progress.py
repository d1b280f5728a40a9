"""Showing what a long command is doing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from movinet_port.errors import printable


def on_terminal() -> bool:
    """Whether standard output is a terminal."""
    # It is None where the caller closed it.
    return sys.stdout is not None and sys.stdout.isatty()


def plain(text: str) -> str:
    """Return text from outside for rich: no markup, and control characters as escapes."""
    return escape(printable(text))


@contextlib.contextmanager
def show_progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows what is being done: on a terminal only, and on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda activity: None
        return
    with console.status("") as status:
        yield lambda activity: status.update(plain(activity))


class Bar:
    """A bar with the time that is left, on a terminal only, and on stderr."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._task = None if progress is None else progress.add_task("", total=total)

    def begin(self, name: str) -> None:
        """Show what is being worked on."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=plain(name))

    def advance(self) -> None:
        """Count one thing as done."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar off the screen while something else is printed."""
        if self._progress is None:
            yield
            return
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()


@contextlib.contextmanager
def show_bar(total: int) -> Iterator[Bar]:
    """Yield a bar for `total` things; it shows nothing for a single one."""
    console = Console(stderr=True)
    if not console.is_terminal or total < 2:
        yield Bar(None, total)
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    # Redirected, results would go to stderr too.
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as progress:
        yield Bar(progress, total)
