"""The one place where TensorFlow is imported, and kept from writing over the user's screen."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import TextIO

from movinet_port.errors import MovinetPortError


class TensorFlowMissingError(MovinetPortError):
    """TensorFlow, or a package that comes with it here, cannot be imported."""


_prepared = False


def import_tensorflow(verbose: bool = False) -> ModuleType:
    """Return the module ``tensorflow``; what it writes while it starts is hidden.

    Later calls cost a dictionary look-up.

    Args:
        verbose: show what TensorFlow writes, now and later.

    Raises:
        TensorFlowMissingError: TensorFlow is not installed, or fails while it is imported.
    """
    global _prepared
    loaded = sys.modules.get("tensorflow")
    if _prepared and loaded is not None:
        return loaded
    # The exports are Keras 2 models; tf-models-official and tensorflow_hub follow this one too.
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    if not verbose:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tensorflow = _import("tensorflow", verbose)
    if not verbose:
        tensorflow.get_logger().setLevel(logging.ERROR)
        _import("absl.logging", verbose).set_verbosity("error")
    _prepared = True
    return tensorflow


def import_tensorflow_hub(verbose: bool = False) -> ModuleType:
    """Return the module ``tensorflow_hub``, in the manner of `import_tensorflow`."""
    import_tensorflow(verbose)
    return _import("tensorflow_hub", verbose)


def _import(name: str, verbose: bool) -> ModuleType:
    try:
        with contextlib.ExitStack() as stack:
            if not verbose:
                stack.enter_context(quiet())
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                # tensorflow_hub prints a page when one of its requirements is missing.
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            return importlib.import_module(name)
    # Versions of protobuf, numpy or Keras that do not fit raise errors of every type.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TensorFlowMissingError(
            f"this needs {name.partition('.')[0]}, which cannot be imported "
            f"({reason}): run pip install 'movinet-port[tf]'"
        ) from error


_lock = threading.Lock()
_depth = 0
_muted: contextlib.ExitStack | None = None
_screen: TextIO | None = None


@contextlib.contextmanager
def quiet(verbose: bool = False) -> Iterator[None]:
    """Hide what C++ code writes to file descriptor 2.

    Python's ``sys.stderr`` still reaches the screen, so progress bars stay. It holds for the whole
    process, may be nested, and is undone when the last block ends, by an exception too.

    Args:
        verbose: hide nothing.
    """
    global _depth, _muted
    if verbose:
        yield
        return
    with _lock:
        if _depth == 0:
            _muted = _mute()
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0 and _muted is not None:
                _muted.close()


def _mute() -> contextlib.ExitStack:
    """Point file descriptor 2 to nowhere and ``sys.stderr`` to where it was; close to undo."""
    with contextlib.ExitStack() as stack:
        try:
            screen = _screen_stream()
        except OSError:  # A process may run with descriptor 2 closed: there is nothing to hide.
            return stack.pop_all()
        stack.callback(os.dup2, screen.fileno(), 2)
        before = sys.stderr
        if _is_descriptor_2(before):
            before.flush()
            sys.stderr = screen
            stack.callback(_put_back, screen, before)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        return stack.pop_all()


def _screen_stream() -> TextIO:
    """Return a stream to what descriptor 2 is now.

    One stream serves the process and is never closed: another thread may be writing to it.
    """
    global _screen
    if _screen is None:
        encoding = getattr(sys.stderr, "encoding", None)
        # Line by line, and unencodable characters escaped: as Python's own standard error.
        _screen = open(  # noqa: SIM115
            os.dup(2), "w", buffering=1, encoding=encoding, errors="backslashreplace", closefd=False
        )
    else:
        os.dup2(2, _screen.fileno(), inheritable=False)
    return _screen


def _is_descriptor_2(stream: TextIO | None) -> bool:
    # None in windowed programs; no descriptor, or a closed one, under test runners and notebooks.
    try:
        return stream is not None and stream.fileno() == 2
    except (AttributeError, OSError, ValueError):
        return False


def _put_back(screen: TextIO, before: TextIO) -> None:
    screen.flush()
    before.flush()
    # A progress display that ended meanwhile has put its own stream back already.
    if sys.stderr is screen:
        sys.stderr = before
