"""Files that are not read here, as a table: how to tell each, what it is, what to do instead."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from converters.archives import ACCEPTED
from converters.containers.archive import members_of_zip
from converters.errors import SourceProblem

_STATE_DICT = "where it was made, torch.save(model.state_dict(), PATH), and give that file"
_SOURCE = "give the checkpoint, SavedModel or state dict that it was made from"


@dataclasses.dataclass(frozen=True)
class _File:
    """What can be seen of a file without reading it: its name, first bytes and zip members."""

    name: str
    head: bytes
    members: tuple[str, ...]


def _named(pattern: str) -> Callable[[_File], bool]:
    return lambda file: re.search(pattern, file.name, re.IGNORECASE) is not None


def _begins(*starts: bytes) -> Callable[[_File], bool]:
    return lambda file: file.head.startswith(starts)


def _has_member(pattern: str) -> Callable[[_File], bool]:
    return lambda file: any(re.search(pattern, member) for member in file.members)


# By content, which says more than a name: (how to tell it, what it is and what to do).
_BY_CONTENT: tuple[tuple[Callable[[_File], bool], str], ...] = (
    (
        _begins(b"version https://git-lfs"),
        "it is a Git LFS pointer: a clone without git-lfs holds it in the file's place; run "
        "git lfs pull in that clone, or download the file itself",
    ),
    (
        _has_member(r"^[^/]+/constants\.pkl$"),
        f"it is a TorchScript archive, a program that is not run here; {_STATE_DICT}",
    ),
    (
        _has_member(r"(^|/)models/[^/]+\.json$|(^|/)data/aotinductor/"),
        f"it is a network compiled or exported by PyTorch (.pt2); {_SOURCE}",
    ),
    (
        lambda file: (
            re.match(rb"[\s\S]{8}\{\s*\"", file.head) is not None
            and not _named(r"\.safetensors$")(file)
        ),
        "it is a safetensors file; give it the suffix .safetensors",
    ),
    (
        lambda file: (
            re.match(rb"\x80[\x02-\x05][^\x8a]", file.head) is not None
            and not _named(r"\.msgpack$")(file)
        ),
        f"it is a Python pickle, which only running its code unpacks; {_STATE_DICT}",
    ),
)

# By name, what the content of a file that nothing reads does not tell.
_BY_NAME: tuple[tuple[Callable[[_File], bool], str], ...] = (
    (_named(r"\.onnx$"), f"this format is not read here: ONNX, a program; {_SOURCE}"),
    (
        _named(r"\.(msgpack|flax)$|^_METADATA$|^manifest\.ocdbt$"),
        "this format is not read here: weights of Flax or JAX; no published MoViNet is in it; "
        f"{ACCEPTED}",
    ),
    (_named(r"\.np[zy]$"), f"NumPy's arrays are not read here; {_SOURCE}"),
    (
        _named(r"\.meta$"),
        "it is the graph of a TF1 checkpoint, which has no object graph; load it in TensorFlow, "
        "and write it with tf.train.Checkpoint or tf.saved_model.save",
    ),
    (_named(r"\.ckpt$"), f"this format is not read here; {ACCEPTED}"),
    (_named(r"\.zip$"), "zip archives are not read here; unpack it and give the folder"),
    (_named(r"^saved_model\.pb$"), "this is one file of a SavedModel; give the folder it is in"),
    (
        _named(r"\.pb(txt)?$"),
        f"it is a frozen graph of TF1, whose weights are constants without names; {_SOURCE}",
    ),
    (_named(r"^checkpoint$"), "this file only names a checkpoint; give the folder it is in"),
    (
        _named(r"\.data-\d{5}-of-\d{5}$"),
        "this is a part of a checkpoint; give its prefix or .index file",
    ),
)

_HEAD = 64


def refuse_by_content(path: Path) -> None:
    """Raise `SourceProblem` if a file's content is one of something that is not read here."""
    _refuse(path, _BY_CONTENT)


def refuse_by_name(path: Path) -> None:
    """Raise `SourceProblem` if a file's name is one of something that is not read here."""
    _refuse(path, _BY_NAME)


def _refuse(path: Path, table: tuple[tuple[Callable[[_File], bool], str], ...]) -> None:
    if not path.is_file():
        return
    with path.open("rb") as opened:
        head = opened.read(_HEAD)
    file = _File(path.name, head, tuple(members_of_zip(path)))
    for tells, text in table:
        if tells(file):
            raise SourceProblem(text)
