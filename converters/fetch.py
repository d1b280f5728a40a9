"""Where weights come from: a URL, an archive, a SavedModel folder, a checkpoint, or one file.

`open_source` makes a local SavedModel folder, checkpoint prefix or file of each of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from converters.archives import ACCEPTED, unpack
from converters.containers import CONTAINERS, identify, identify_in
from converters.containers.foreign import refuse_by_content, refuse_by_name
from converters.downloads import download, recognise_handle
from converters.errors import SourceError, SourceProblem, reason

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """TensorFlow weights on this machine.

    Attributes:
        path: the folder that holds ``saved_model.pb``; a checkpoint's index file; or a file.
        kind: which row of `converters.containers.CONTAINERS` reads it.
        provenance: ``source``, as given; ``sha256`` of the files that matter, which is what
            ``sha256sum saved_model.pb variables/* | sha256sum`` prints in a SavedModel's folder
            (``sha256sum PREFIX.data-* PREFIX.index | sha256sum`` for a checkpoint), or the file's;
            and ``archive_sha256`` of a local archive.
    """

    path: Path
    kind: str
    provenance: Mapping[str, str]


@contextlib.contextmanager
def open_source(
    source: str | os.PathLike[str], progress: Progress | None = None
) -> Iterator[Source]:
    """Find what holds weights; what had to be unpacked is removed at the end.

    Args:
        source: a TF Hub or Kaggle handle or another http(s) or gs:// URL of a tar archive, which
            is downloaded and cached (`converters.downloads`); a folder or a tar archive that
            holds a SavedModel or a TF2 checkpoint, itself or in one sub-folder; a TF2 checkpoint's
            prefix or index file; or a Keras or PyTorch file.
        progress: called with a few words before each step that may take long.

    Raises:
        SourceError: there is no such thing, or it is damaged or unsafe to unpack.
    """
    name = os.fspath(source)
    report = progress or _say_nothing
    provenance = {"source": name}
    advice = ""
    with contextlib.ExitStack() as stack:
        try:
            if re.match("https?://[^/]*@", name):
                # Said here, so that no password gets into a message, a cache or a file.
                name = re.sub("://[^/]*@", "://", name)
                raise SourceProblem(
                    "a user name or password in a URL is not sent; "
                    "download the file yourself and give its path"
                )
            if (handle := recognise_handle(name)) is not None and not Path(name).exists():
                folder = download(handle, report)
                advice = f"; delete {folder}, where the download is kept, to fetch it again"
                kind, path = identify_in(folder)
            elif name and Path(name).is_dir():
                kind, path = identify_in(Path(name))
            elif (known := _identify(name)) is not None:
                kind, path = known
            else:
                archive = _as_archive(name)
                report(f"unpacking {name}")
                provenance["archive_sha256"] = _sha256(archive)
                temporary = tempfile.TemporaryDirectory(prefix="movinet-port-")
                folder = Path(stack.enter_context(temporary))
                unpack(archive, folder)
                kind, path = identify_in(folder)
            files = CONTAINERS[kind].files
            for file in files(path) if files else [path]:
                refuse_by_content(file)
            provenance["sha256"] = _sha256(path) if files is None else _digest(path, files(path))
        except (SourceProblem, OSError) as error:
            raise SourceError(f"cannot read {name or repr('')}: {reason(error)}{advice}") from error
        yield Source(path, kind, provenance)


def _identify(name: str) -> tuple[str, Path] | None:
    try:
        if name:
            refuse_by_content(Path(name))
        return identify(Path(name)) if name else None
    # A path that no file system has: with a null character, say.
    except ValueError:
        return None


def _say_nothing(message: str) -> None:
    pass


# What is no source

_OTHER_NAMES = {
    r"file://": "for a file on this machine give its path",
    r"[A-Za-z][A-Za-z0-9+.-]*://": "a URL starts with http:// or https://",
    r"(www\.)?(tfhub\.dev|kaggle\.com|storage\.googleapis\.com)/": "a URL starts with https://",
    r"": ACCEPTED,
}


def _as_archive(name: str) -> Path:
    """Return the path of a file that is not known to be something else."""
    path = Path(name)
    if not name or not path.exists():
        advice = next(text for pattern, text in _OTHER_NAMES.items() if re.match(pattern, name))
        raise SourceProblem(f"no such file or folder; {advice}")
    if not path.is_file():
        raise SourceProblem(f"neither a file nor a folder; {ACCEPTED}")
    refuse_by_name(path)
    return path


# Digests


def _digest(source: Path, files: Sequence[Path]) -> str:
    """Return the sha256 of the list that sha256sum prints for a source's files."""
    folder = source if source.is_dir() else source.parent
    named = sorted((path.relative_to(folder).as_posix(), path) for path in files)
    lines = [f"{_sha256(path)}  {name}\n" for name, path in named]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
