"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from movinet_port.errors import MovinetPortError


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it becomes `path`.

    What was at `path` before stays as it is until the new file is on the disk, and stays for good
    if anything fails.

    Raises:
        MovinetPortError: the folder is missing or not writable, or the disk is full.
    """
    target = Path(path)
    if target.is_dir():
        raise MovinetPortError(f"cannot write {target}: it is a folder; name a file")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
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
            temporary.replace(target)
        except OSError as error:
            raise _cannot_write(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _cannot_write(target: Path, error: OSError) -> MovinetPortError:
    reason = error.strerror or str(error)
    return MovinetPortError(
        f"cannot write {target}: {reason}; choose a folder that exists, "
        f"is writable and has room, with -o"
    )
