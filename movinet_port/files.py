"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from movinet_port.errors import MovinetPortError


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success it becomes `path`, or what that links to.

    What was at `path` before stays as it is until the new file is on the disk, and stays for good
    if anything fails.

    Raises:
        MovinetPortError: the folder is missing or not writable, there is something else than a
            file, or the disk is full.
    """
    target = Path(path)
    if os.fspath(path).endswith(os.sep):
        raise MovinetPortError(f"cannot write {os.fspath(path)}: it is a folder; name a file")
    # os.path and not Path, which raises for names that no file system has.
    if os.path.exists(target) and not os.path.isfile(target):
        kind = "a folder" if os.path.isdir(target) else "no regular file"
        raise MovinetPortError(f"cannot write {target}: it is {kind}; name a file")
    final = Path(os.path.realpath(target))
    try:
        handle, name = tempfile.mkstemp(prefix=f".{final.name}.", dir=final.parent)
    except OSError as error:
        raise _cannot_write(target, error) from error
    temporary = Path(name)
    try:
        os.close(handle)
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            # mkstemp's files are private; give the one that stays the usual permissions.
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            temporary.replace(final)
        except OSError as error:
            raise _cannot_write(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(final.parent)


def _sync_folder(folder: Path) -> None:
    # Best effort: the file is whole by now, and some file systems refuse to sync a folder.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _cannot_write(target: Path, error: OSError) -> MovinetPortError:
    reason = error.strerror or str(error)
    return MovinetPortError(
        f"cannot write {target}: {reason}; choose a folder that exists, "
        f"is writable and has room, with -o"
    )


def check_outputs(
    outputs: Mapping[str, str | os.PathLike[str] | None],
    inputs: Iterable[tuple[str, str | os.PathLike[str] | None]],
) -> None:
    """Refuse an output that is an input, through links too, or that is another output.

    A SavedModel is the files in its folder, and a TF2 checkpoint those that its prefix stands for.
    An input that is no file here, a URL say, is none of the outputs.

    Args:
        outputs: option -> path; None for an option that was not given.
        inputs: (what it is, such as "the source"; path), likewise.

    Raises:
        MovinetPortError: nothing may be written there.
    """
    given = [(what, Path(path)) for what, path in inputs if path is not None]
    seen: dict[str, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        for what, other in given:
            if any(_same(a, b) for a in _files_of(Path(path)) for b in _files_of(other)):
                raise MovinetPortError(
                    f"the output {path} is {what} itself; name another with {option}"
                )
        other_option = seen.setdefault(os.path.realpath(path), option)
        if other_option != option:
            raise MovinetPortError(f"{other_option} and {option} both name {path}; name two files")


def _files_of(path: Path) -> Iterator[Path]:
    """Yield what a path may stand for: itself, a SavedModel's files, a TF2 checkpoint's."""
    yield path
    if path.is_dir():
        yield path / "saved_model.pb"
        path = path / "variables/variables"
    if path.name:
        for suffix in (".index", ".data-00000-of-00001"):
            yield path.with_name(path.name + suffix)


def _same(a: Path, b: Path) -> bool:
    return os.path.exists(a) and os.path.exists(b) and os.path.samefile(a, b)


def cache_folder() -> Path:
    """Return the folder for what is fetched or converted once: ``MOVINET_PORT_CACHE``."""
    return Path(os.environ.get("MOVINET_PORT_CACHE") or Path.home() / ".cache" / "movinet-port")


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty temporary folder next to `path`; on success it becomes `path`.

    Raises:
        MovinetPortError: there is something at `path` already, other than an empty folder, or it
            cannot be written.
    """
    target = Path(path)
    if os.path.lexists(target) and not (os.path.isdir(target) and not os.listdir(target)):
        raise MovinetPortError(
            f"cannot write {target}: it exists; name another folder, or remove it first"
        )
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name}.", dir=target.parent, ignore_cleanup_errors=True
        ) as name:
            temporary = Path(name) / "new"
            temporary.mkdir()
            yield temporary
            temporary.replace(target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    _sync_folder(target.parent)
