"""Where weights come from: what is found, what is refused, and what the user reads then."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_server import PAGE, Answer, HubServer

from converters import archives, downloads
from converters.fetch import Source, SourceError, open_source
from converters.tensorflow import TensorFlowMissingError, import_tensorflow_hub, quiet

DATA = Path(__file__).parent / "data"
ARCHIVE = DATA / "era1_mini_base.tar.gz"
# By coreutils: sha256sum saved_model.pb variables/* | sha256sum
MODEL_SHA256 = "f988a5c10638c7d6da265599b54519077a1b04f46377804aa5b561264094a307"
# By coreutils: sha256sum era1_mini_base.tar.gz
ARCHIVE_SHA256 = "e1b2d93817acf97c1bd35bf82363391692d75a45d15af14b7e7c5f35667e098c"
# By coreutils, of the variables as ckpt-1: sha256sum ckpt-1.data-* ckpt-1.index | sha256sum
CHECKPOINT_SHA256 = "6aad62322ad30fa9b03c682e3a50d8f3b197ddc3520a989aa8583d21c70898d2"

SHARD = "data-00000-of-00001"
TINY = {
    "saved_model.pb": b"graph",
    "variables/variables.index": b"index",
    f"variables/variables.{SHARD}": b"data" * 99,
}


def tar(members: dict[str, bytes | None], top: str = "") -> bytes:
    """Return a plain tar file; None stands for a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(top + name)
            if content is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content or b""))
    return buffer.getvalue()


def tar_with(kind: bytes, name: str, target: str = "") -> bytes:
    """Return a gzipped tar file of one unusual member."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        archive.addfile(info)
    return gzip.compress(buffer.getvalue())


def write(folder: Path, members: dict[str, bytes | None]) -> Path:
    for name, content in members.items():
        path = folder / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return folder


def opened(source: str | Path) -> Source:
    with open_source(source) as found:
        return found


def message(source: str | Path) -> str:
    """Return the one line that a bad source ends with."""
    with pytest.raises(SourceError) as caught:
        opened(source)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith((f"cannot read {source}", f"cannot fetch {source}", "cannot read ''"))
    return text


@pytest.fixture(autouse=True)
def no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep everything under tmp_path, and end with no temporary folder."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    yield
    assert list(temporary.iterdir()) == []


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer().running() as server:
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A SavedModel's folder."""
    folder = tmp_path / "model"
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def training(tmp_path: Path, model: Path) -> Path:
    """A folder with one TF2 checkpoint, ckpt-1."""
    folder = tmp_path / "training"
    folder.mkdir()
    for suffix in ("index", SHARD):
        shutil.copy(model / f"variables/variables.{suffix}", folder / f"ckpt-1.{suffix}")
    return folder


# SavedModels


def test_folder_is_read_where_it_is(model: Path) -> None:
    assert opened(model) == Source(
        model, "saved_model", {"source": str(model), "sha256": MODEL_SHA256}
    )


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("model.tar.gz", gzip.compress),
        ("model.tgz", gzip.compress),
        ("model.tar", bytes),
        ("model.tar.bz2", bz2.compress),
        ("model.tar.xz", lzma.compress),
        ("model", gzip.compress),
    ],
)
@pytest.mark.parametrize("top", ["", "./", "a0_base/"])
def test_archive_is_known_by_its_content(
    tmp_path: Path, name: str, compress: Callable[[bytes], bytes], top: str
) -> None:
    path = tmp_path / name
    path.write_bytes(compress(tar(dict(TINY), top)))
    with open_source(path) as source:
        assert source.kind == "saved_model"
        for file, content in TINY.items():
            assert (source.path / file).read_bytes() == content


def test_archive_and_its_folder_have_one_digest() -> None:
    assert opened(ARCHIVE).provenance == {
        "source": str(ARCHIVE),
        "sha256": MODEL_SHA256,
        "archive_sha256": ARCHIVE_SHA256,
    }


@pytest.mark.parametrize(
    "changed", ["saved_model.pb", "variables/variables.index", f"variables/variables.{SHARD}"]
)
def test_digest_depends_on_every_file_that_matters(model: Path, changed: str) -> None:
    with (model / changed).open("ab") as file:
        file.write(b"\0")
    assert opened(model).provenance["sha256"] != MODEL_SHA256


def test_digest_leaves_out_what_does_not_matter(model: Path) -> None:
    write(model, {"keras_metadata.pb": b"other", "assets/labels.txt": b"other"})
    assert opened(model).provenance["sha256"] == MODEL_SHA256


def test_unpacked_archive_is_removed_when_its_user_fails() -> None:
    folders = []

    def use() -> None:
        with open_source(ARCHIVE) as source:
            folders.append(source.path)
            assert source.path.is_dir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert not folders[0].exists()


def test_error_of_the_user_of_a_source_is_not_the_source_s(model: Path) -> None:
    with pytest.raises(FileNotFoundError), open_source(model):
        raise FileNotFoundError("something else")


def test_folder_around_a_model_is_as_good_as_the_model(tmp_path: Path, model: Path) -> None:
    write(tmp_path / "outer", {"notes.txt": b"", "__MACOSX": None})
    shutil.move(model, tmp_path / "outer/a0")
    assert opened(tmp_path / "outer").path == tmp_path / "outer/a0"


def test_checkpoints_with_an_export_below_are_checkpoints(training: Path, model: Path) -> None:
    shutil.move(model, training / "export")
    assert opened(training).kind == "checkpoint"


def test_progress_says_what_takes_long(model: Path) -> None:
    said: list[str] = []
    for source in (model, ARCHIVE):
        with open_source(source, said.append):
            pass
    assert said == [f"unpacking {ARCHIVE}"]


def test_local_sources_need_no_tensorflow(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert opened(model).kind == opened(ARCHIVE).kind == "saved_model"


# Checkpoints


@pytest.mark.parametrize("given", ["ckpt-1", "ckpt-1.index", "."])
def test_checkpoint_is_its_index_file(training: Path, given: str) -> None:
    source = opened(training / given)
    assert (source.kind, source.path) == ("checkpoint", training / "ckpt-1.index")
    assert source.provenance == {"source": str(training / given), "sha256": CHECKPOINT_SHA256}


@pytest.mark.parametrize(
    "named", ["ckpt-1", "/home/somebody/run 3/ckpt-1", "C:\\\\runs\\\\ckpt-1", "./ckpt-1"]
)
def test_the_file_checkpoint_decides_between_several(training: Path, named: str) -> None:
    state = f'model_checkpoint_path: "{named}"\nall_model_checkpoint_paths: "ckpt-0"\n'
    write(training, {"checkpoint": state.encode(), "ckpt-0.index": b"", "ckpt-2.index": b""})
    assert opened(training).path == training / "ckpt-1.index"


@pytest.mark.parametrize("top", ["", "movinet_a0_base/"])
def test_archive_of_a_checkpoint_is_a_checkpoint(tmp_path: Path, training: Path, top: str) -> None:
    state = b'model_checkpoint_path: "ckpt-1"\n'
    members = {path.name: path.read_bytes() for path in training.iterdir()}
    path = tmp_path / "movinet_a0_base.tar.gz"
    path.write_bytes(gzip.compress(tar({"checkpoint": state, **members}, top)))
    source = opened(path)
    assert (source.kind, source.path.name) == ("checkpoint", "ckpt-1.index")
    assert source.provenance["sha256"] == CHECKPOINT_SHA256


def test_checkpoint_in_several_parts_is_complete_with_all_of_them(tmp_path: Path) -> None:
    files = {f"ckpt.data-0000{part}-of-00002": b"" for part in range(2)}
    # Left over from an earlier save.
    write(tmp_path / "run", {"ckpt.index": b"", "ckpt.data-00002-of-00003": b"", **files})
    assert opened(tmp_path / "run/ckpt").path == tmp_path / "run/ckpt.index"


@pytest.mark.parametrize(
    ("files", "given", "expected"),
    [
        (["ckpt.index"], "ckpt", "ckpt.data-00000-of-00001 is missing"),
        (["ckpt.index"], "", "ckpt.data-00000-of-00001 is missing"),
        (
            ["ckpt.index", "ckpt.data-00000-of-00003"],
            "ckpt.index",
            "ckpt.data-00001-of-00003; ckpt.data-00002-of-00003 are missing",
        ),
        (["ckpt.index", "other.data-00000-of-00001"], "ckpt", "ckpt.data-00000-of-00001 is miss"),
        (["ckpt.data-00000-of-00001"], "ckpt", "ckpt.index is missing"),
        (["a.index", "b.index"], "", "several checkpoints: a; b; give the prefix of one"),
        (["ckpt.data-00000-of-00001"], "ckpt.data-00000-of-00001", "give its prefix or .index"),
        (["checkpoint"], "checkpoint", "this file only names a checkpoint; give the folder"),
        (["ckpt.data-00000-of-00001"], "", "there is: ckpt.data-00000-of-00001"),
    ],
)
def test_incomplete_checkpoint_says_what_is_missing(
    tmp_path: Path, files: list[str], given: str, expected: str
) -> None:
    write(tmp_path / "run", dict.fromkeys(files, b""))
    assert expected in message(tmp_path / "run" / given)


def test_checkpoint_that_is_named_but_not_there_is_an_error(training: Path) -> None:
    write(training, {"checkpoint": b'model_checkpoint_path: "ckpt-9"\n'})
    text = message(training)
    assert "names ckpt-9, and ckpt-9.index is not there; there is: ckpt-1.index" in text


# What is no source


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "no such file or folder"),
        ("no/such/model", "no such file or folder; give a TF Hub handle, a SavedModel folder"),
        ("no-such.tar.gz", "no such file or folder"),
        ("no-such.h5", "no such file or folder"),
        ("x" * 5000, "File name too long"),
        ("null\0byte", "no such file or folder"),
        (os.devnull, "neither a file nor a folder"),
        ("file:///home/a0", "for a file on this machine give its path"),
        ("ftp://example.com/a0.tar.gz", "a URL starts with http:// or https://"),
        ("tfhub.dev/tensorflow/movinet/a0/base/kinetics-600/classification/3", "with https://"),
        ("www.kaggle.com/models/google/movinet", "a URL starts with https://"),
    ],
)
def test_source_that_is_not_there_says_what_to_give(given: str, expected: str) -> None:
    assert expected in message(given)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a0.onnx", "this format is not read here"),
        ("a0.zip", "unpack it and give the folder"),
        ("saved_model.pb", "one file of a SavedModel; give the folder it is in"),
    ],
)
def test_file_of_another_kind_gets_a_line_of_its_own(
    tmp_path: Path, name: str, expected: str
) -> None:
    (tmp_path / name).write_bytes(b"anything")
    assert expected in message(tmp_path / name)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (
            {},
            "it holds no SavedModel (saved_model.pb) and no TF2 checkpoint (*.index), nor does one",
        ),
        ({}, "there is: nothing"),
        ({"b.txt": b"", "a/c.txt": b""}, "there is: a/; b.txt"),
        ({f"{i}.jpg": b"" for i in range(20)}, "and 12 more"),
        ({"variables/variables.index": b"", f"variables/variables.{SHARD}": b""}, "variables/"),
        ({"saved_model.pb": b""}, "the folder variables is missing next to saved_model.pb"),
        ({"saved_model.pb": b"", "variables": None}, "variables.index is missing"),
        (
            {"saved_model.pb": b"", "variables/variables.index": b""},
            f"variables.{SHARD} is missing",
        ),
        ({"a/saved_model.pb": b"", "b/saved_model.pb": b""}, "several models: a; b; give one"),
        ({"x/y/saved_model.pb": b""}, "there is: x/"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_folder_without_a_model_says_what_is_there(
    tmp_path: Path, members: dict[str, bytes | None], expected: str, packed: bool
) -> None:
    source = tmp_path / "given"
    if packed:
        source.write_bytes(gzip.compress(tar({"./": None, **members})))
    else:
        source.mkdir()
        write(source, members)
    assert expected in message(source)


def test_variables_of_a_model_are_not_the_model(model: Path) -> None:
    assert "give the folder above it" in message(model / "variables")


# Archives that are not unpacked


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "no tar archive: it is empty"),
        (PAGE, "no tar archive: it starts with b'<!DOCTYPE html>"),
        (gzip.compress(b"no tar inside" * 99), "no tar archive"),
        (tar({}), "the archive is empty"),
        (gzip.compress(tar({})), "the archive is empty"),
        (gzip.compress(tar({"../evil": b""})), "not safe to unpack: '../evil' would be extracted"),
        (gzip.compress(tar({"a/../../evil": b""})), "not safe to unpack"),
        (gzip.compress(tar({"/evil": b""})), "not safe to unpack: '/evil' is an absolute path"),
        (tar_with(tarfile.SYMTYPE, "out", "/etc"), "not safe to unpack: 'out' is a link"),
        (tar_with(tarfile.SYMTYPE, "out", "../.."), "not safe to unpack: 'out' is a link"),
        (tar_with(tarfile.LNKTYPE, "out", "../evil"), "not safe to unpack: 'out' is a link"),
        (tar_with(tarfile.CHRTYPE, "out"), "not safe to unpack: 'out' is a link or a special file"),
        (tar_with(tarfile.FIFOTYPE, "out"), "not safe to unpack"),
    ],
    # By name: compressed bytes hold the time, and workers must agree on the names of tests.
    ids=[
        "empty",
        "page",
        "gzip of no tar",
        "no members",
        "gzip of no members",
        "parent",
        "parent inside",
        "absolute",
        "link to absolute",
        "link to parent",
        "hard link",
        "device",
        "pipe",
    ],
)
def test_archive_that_is_none_or_unsafe_is_refused(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    path = folder / "model.tar.gz"
    path.write_bytes(content)
    assert expected in message(path)
    assert [file.name for file in tmp_path.rglob("evil")] == []


def test_archive_cut_anywhere_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "model.tar.gz"
    whole = gzip.compress(tar(dict(TINY)))
    path.write_bytes(whole)
    assert opened(path).kind == "saved_model"
    for length in range(20, len(whole)):
        path.write_bytes(whole[:length])
        assert "damaged" in message(path), length


def test_plain_archive_cut_anywhere_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "model.tar"
    whole = tar(dict(TINY)).rstrip(b"\0")
    # Three headers, two contents of one block and one of 396 bytes, which fill a block each.
    for length in range(512, 6 * 512 + 1, 64):
        path.write_bytes(whole[:length].ljust(length, b"\0"))
        assert "damaged" in message(path), length


def test_archive_with_any_changed_byte_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "model.tar.gz"
    # Stored, not deflated: every byte stands for itself, so that only the checksum can tell.
    whole = gzip.compress(tar(dict(TINY)), compresslevel=0)
    for position in range(600, len(whole) - 4, 101):
        changed = bytearray(whole)
        changed[position] ^= 0x55
        path.write_bytes(changed)
        assert "damaged" in message(path), position


def test_damaged_header_is_not_the_end_of_the_archive(tmp_path: Path) -> None:
    content = bytearray(tar({**TINY, "keras_metadata.pb": b"x"}))
    start = content.index(b"keras_metadata.pb")
    content[start] ^= 0x55
    (tmp_path / "model.tar").write_bytes(content)
    assert "damaged: what follows its entry 3 is unreadable" in message(tmp_path / "model.tar")


def test_archive_that_announces_too_much_is_not_unpacked(tmp_path: Path) -> None:
    info = tarfile.TarInfo("saved_model.pb")
    info.size = 5 * 1024**3
    (tmp_path / "model.tar").write_bytes(info.tobuf() + bytes(1024))
    assert "more than 4294967296 bytes" in message(tmp_path / "model.tar")


def test_sizes_of_all_files_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.tar.gz"
    path.write_bytes(gzip.compress(tar({"a": bytes(60_000), "b": bytes(60_000)})))
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 100_000)
    assert "more than 100000 bytes" in message(path)


def test_zeros_behind_the_end_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.tar.gz"
    path.write_bytes(gzip.compress(tar(dict(TINY)) + bytes(10_000_000)))
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 5_000_000)
    assert "more than 5000000 bytes" in message(path)


def test_archive_of_very_many_files_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.tar.gz"
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    path.write_bytes(gzip.compress(tar(dict(TINY))))
    assert opened(path).kind == "saved_model"
    path.write_bytes(gzip.compress(tar({**TINY, "assets": None})))
    assert "more than 3 files" in message(path)


def test_python_without_safe_unpacking_unpacks_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    assert "has no safe way to unpack it; use 3.10.12" in message(ARCHIVE)
    assert opened(model).kind == "saved_model"


def test_full_disk_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extract", fail)
    text = message(ARCHIVE)
    assert "No space left on device; TMPDIR names another place" in text


# URLs


def test_handle_is_downloaded_once_through_the_redirect(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorflow", "tensorflow_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    handle = "/tensorflow/movinet/a0/base/kinetics-600/classification/3"
    url = hub.publish(handle, ARCHIVE.read_bytes())
    first = opened(url)
    assert hub.requests == [
        f"{handle}?tf-hub-format=compressed",
        f"/storage{handle}.tar.gz",
    ]
    assert opened(url) == first
    assert len(hub.requests) == 2
    assert first.kind == "saved_model"
    assert first.provenance == {"source": url, "sha256": MODEL_SHA256}
    assert first.path.parent == tmp_path / "cache"


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(SourceError, match=r"^cannot read http://host/a\.tar\.gz: a user") as raised:
        opened("http://me:secret@host/a.tar.gz")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("name", ["a0.tar.gz", "a0.tgz", "download"])
def test_archive_on_any_server_is_downloaded(hub: HubServer, name: str) -> None:
    url = hub.serve(f"/{name}", Answer(ARCHIVE.read_bytes()))
    assert opened(url).provenance["sha256"] == MODEL_SHA256


def test_checkpoint_archive_on_a_server_is_a_checkpoint(hub: HubServer, training: Path) -> None:
    members = {path.name: path.read_bytes() for path in training.iterdir()}
    archive = tar(
        {"movinet_a0_base/": None, **{f"movinet_a0_base/{k}": members[k] for k in members}}
    )
    source = opened(hub.serve("/movinet_a0_base.tar.gz", Answer(gzip.compress(archive))))
    assert (source.kind, source.path.name) == ("checkpoint", "ckpt-1.index")
    assert source.provenance["sha256"] == CHECKPOINT_SHA256


GOOD = ARCHIVE.read_bytes()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (None, "HTTP 404 Not Found; give the handle of a TF2 SavedModel on TF Hub or Kaggle"),
        (Answer(PAGE, "text/html"), "no tar archive: it starts with b'<!DOCTYPE"),
        (Answer(b"short page", "text/html"), "no tar archive: it starts with b'short page'"),
        (Answer(b""), "no tar archive: it is empty"),
        (Answer(b"", status=403), "HTTP 403 Forbidden; log in with a browser, download the file"),
        (Answer(GOOD[: len(GOOD) // 2]), "the archive is damaged: Compressed file ended"),
        (
            Answer(GOOD[: len(GOOD) // 2], declared_length=len(GOOD)),
            "the connection ended after 0.4 MB of 0.7 MB; check the address and the network",
        ),
        (Answer(gzip.compress(tar({"../evil": b""}))), "'../evil' would be extracted to"),
        (Answer(gzip.compress(tar({"/evil": b""}))), "'/evil' is an absolute path"),
        (Answer(tar_with(tarfile.SYMTYPE, "out", "/etc")), "'out' is a link or a special file"),
        (Answer(tar_with(tarfile.LNKTYPE, "out", "../evil")), "'out' is a link or a special file"),
        (Answer(tar_with(tarfile.CHRTYPE, "out")), "'out' is a link or a special file"),
        (Answer(gzip.compress(tar({}))), "the archive is empty"),
    ],
)
def test_url_without_a_sound_archive_is_an_error_and_not_cached(
    hub: HubServer, tmp_path: Path, answer: Answer | None, expected: str
) -> None:
    url = hub.serve("/model.tar.gz", answer) if answer else f"{hub.url}/model.tar.gz"
    assert expected in message(url)
    assert [file.name for file in tmp_path.rglob("evil")] == []
    assert list((tmp_path / "cache").iterdir()) == []
    hub.serve("/model.tar.gz", Answer(GOOD))
    assert opened(url).kind == "saved_model"


def test_limits_hold_for_downloads(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = hub.serve("/a.tar.gz", Answer(GOOD))
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    assert "it holds more than 2 files" in message(url)
    monkeypatch.setattr(downloads, "MAX_UNPACKED_BYTES", 1000)
    assert "it takes more than 1000 bytes" in message(url)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("members", "expected"),
    [({"notes.txt": b"x"}, "there is: notes.txt"), ({"a": None}, "there is: a/")],
)
def test_download_without_a_model_says_where_it_is_kept(
    hub: HubServer, tmp_path: Path, members: dict[str, bytes | None], expected: str
) -> None:
    text = message(hub.serve("/a.tar.gz", Answer(gzip.compress(tar(members)))))
    assert expected in text
    assert f"delete {tmp_path / 'cache'}" in text


def test_server_that_refuses_is_named(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        text = message(f"http://127.0.0.1:{port}/a0.tar.gz")
    assert "Connection refused; check the address and the network" in text


def test_host_without_an_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    text = message("https://no-such-host.invalid/a0.tar.gz")
    assert "Name or service not known; check the address and the network" in text


def test_silent_server_is_given_up(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    text = message(hub.serve("/a", Answer(b"", stalls=True)))
    assert "no answer for 0.2 seconds; check the address and the network" in text


def test_cache_that_cannot_be_written_is_named(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "file"))
    text = message(hub.publish("/model/1", GOOD))
    assert str(tmp_path / "file") in text
    assert "set TFHUB_CACHE_DIR to a folder that is writable" in text


def test_download_that_trickles_is_given_up(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "DEADLINE", 0.3)
    text = message(hub.serve("/a", Answer(bytes(10**6), pause=0.05)))
    assert "only 0.0 MB of 1.0 MB came in 0.3 seconds; download it by other means" in text


def test_download_shows_how_far_and_how_fast(hub: HubServer) -> None:
    url = hub.serve("/a", Answer(bytes(20), pause=0.05))
    said: list[str] = []
    with pytest.raises(SourceError), open_source(url, said.append):
        pass
    assert said[0] == f"fetching {url}"
    assert len(said) > 2
    assert all(text == f"fetching {url}: 0.0 MB of 0.0 MB, 0.0 MB/s" for text in said[1:])


# Every spelling that people use.
KAGGLE = "google/movinet/tensorFlow2/a0-base-kinetics-600-classification/3"


@pytest.mark.parametrize(
    "handle",
    [
        KAGGLE,
        "google/movinet/TensorFlow2/a0-base-kinetics-600-classification/3",
        "https://www.kaggle.com/models/google/movinet/TensorFlow2/a0-base-kinetics-600-classification/3",
        "https://kaggle.com/models/google/movinet/tensorflow2/a0-base-kinetics-600-classification/3/",
        "http://www.kaggle.com/models/google/movinet/tensorFlow2/"
        "a0-base-kinetics-600-classification/3?tfhub-redirect=true",
        "https://www.kaggle.com/models/google/movinet/frameworks/TensorFlow2/variations/"
        "a0-base-kinetics-600-classification/versions/3",
        "https://www.kaggle.com/models/google/movinet/tensorFlow2/"
        "a0-base-kinetics-600-classification/versions/3",
        f"https://www.kaggle.com/api/v1/models/{KAGGLE}/download",
    ],
)
def test_kaggle_handle_is_downloaded_however_it_is_spelt(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handle: str
) -> None:
    monkeypatch.setattr(downloads, "KAGGLE", hub.url)
    hub.publish_on_kaggle(KAGGLE, GOOD)
    source = opened(handle)
    assert source.provenance == {"source": handle, "sha256": MODEL_SHA256}
    assert hub.requests == [
        f"/api/v1/models/{KAGGLE}/download",
        f"/kaggle-storage/{KAGGLE}.tar.gz",
    ]
    page = f"{hub.url}/models/google/movinet/TensorFlow2/a0-base-kinetics-600-classification/3"
    assert source.path == tmp_path / "cache" / hashlib.sha1(page.encode()).hexdigest()
    assert opened(KAGGLE).path == source.path
    assert len(hub.requests) == 2


@pytest.mark.parametrize(
    "handle",
    [
        "https://www.kaggle.com/models/google/movinet",
        "https://www.kaggle.com/models/google/movinet/tensorFlow2/a0-base-kinetics-600-classification",
        "https://www.kaggle.com/models/google/movinet/frameworks/TensorFlow2/variations/a0",
    ],
)
def test_kaggle_handle_that_says_too_little_says_what_it_lacks(handle: str) -> None:
    assert "a Kaggle handle names owner, model, framework, variation and version" in message(handle)


def test_local_path_goes_before_a_handle_of_the_same_spelling(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / KAGGLE)
    assert opened(KAGGLE).path == Path(KAGGLE)


@pytest.mark.parametrize("form", ["gs://{}", "https://storage.googleapis.com/{}"])
def test_file_on_cloud_storage_is_downloaded(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    name = "tf_model_garden/vision/movinet/movinet_a0_base.tar.gz"
    monkeypatch.setattr(downloads, "STORAGE", hub.url)
    hub.serve(f"/{name}", Answer(GOOD))
    handle = form.replace("https://storage.googleapis.com", hub.url).format(name)
    assert opened(handle).provenance["sha256"] == MODEL_SHA256


def test_downloads_and_tensorflow_hub_find_what_the_other_has_kept(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorflow_hub = import_tensorflow_hub()
    ours, theirs = hub.publish("/ours/1", GOOD), hub.publish("/theirs/1", GOOD)
    path = opened(ours).path
    there = Path(tensorflow_hub.resolve(theirs))
    count = len(hub.requests)
    assert Path(tensorflow_hub.resolve(ours)) == path
    assert opened(theirs).path == there
    assert len(hub.requests) == count
    for folder, url in ((path, ours), (there, theirs)):
        text = folder.with_name(f"{folder.name}.descriptor.txt").read_text("utf-8")
        assert text.startswith(f"Module: {url}\nDownload Time: ")
    assert len(list(path.parent.iterdir())) == 4


@pytest.mark.parametrize("answer", [Answer(GOOD), Answer(PAGE), None])
def test_tensorflow_hub_downloads_when_it_is_asked_to(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, answer: Answer | None
) -> None:
    tensorflow_hub, asked = import_tensorflow_hub(), []
    resolve = tensorflow_hub.resolve
    monkeypatch.setattr(tensorflow_hub, "resolve", lambda h: asked.append(h) or resolve(h))
    monkeypatch.setenv(downloads.SETTING, "tensorflow_hub")
    url = hub.serve("/a.tar.gz", answer) if answer else f"{hub.url}/a.tar.gz"
    if answer is None:
        assert "HTTP 404 Not Found; give the handle" in message(url)
    elif answer.body == PAGE:
        assert "no tar archive came, or not all of one" in message(url)
    else:
        assert opened(url).provenance["sha256"] == MODEL_SHA256
    assert asked == [url]


def test_two_downloads_at_once_end_with_one_whole_folder(hub: HubServer) -> None:
    url = hub.publish("/model/1", GOOD)
    with ThreadPoolExecutor(4) as pool:
        found = {source.path for source in pool.map(opened, [url] * 4)}
    (path,) = found
    assert (path / "saved_model.pb").is_file()
    assert len(list(path.parent.iterdir())) == 2


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://", "no host given"),
        ("https:///a.tar.gz", "no host given"),
        ("http://[::1/a", "Invalid IPv6 URL"),
        ("http://a b/c", "URL can't contain control characters"),
    ],
)
def test_malformed_url_says_what_is_wrong(url: str, expected: str) -> None:
    assert expected in message(url)


@pytest.mark.parametrize("value", [None, "1"])
def test_download_by_tensorflow_hub_leaves_settings_and_standard_output_alone(
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    value: str | None,
) -> None:
    names = ("TFHUB_DOWNLOAD_PROGRESS", "TFHUB_MODEL_LOAD_FORMAT")
    for name in names:
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    monkeypatch.setenv(downloads.SETTING, "tensorflow_hub")
    opened(hub.serve("/a.tar.gz", Answer(GOOD)))
    assert [os.environ.get(name) for name in names] == [value, value]
    assert socket.getdefaulttimeout() is None
    # Standard error is no terminal here.
    assert capfd.readouterr() == ("", "")


# TensorFlow, imported and kept quiet


@pytest.mark.parametrize("missing", ["tensorflow", "tensorflow_hub"])
def test_missing_tensorflow_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "tensorflow_hub":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setenv(downloads.SETTING, "tensorflow_hub")
    with pytest.raises(TensorFlowMissingError) as caught:
        opened("https://tfhub.dev/tensorflow/movinet/a0/base/kinetics-600/classification/3")
    assert "\n" not in str(caught.value)
    assert missing in str(caught.value)
    assert str(caught.value).endswith("run pip install 'movinet-port[tf]'")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    root = Path(__file__).parent.parent
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_tensorflow_starts_and_runs_without_a_word() -> None:
    done = python(
        "from converters.tensorflow import import_tensorflow, import_tensorflow_hub, quiet\n"
        "tf = import_tensorflow()\n"
        "import_tensorflow_hub()\n"
        "with quiet():\n"
        "    tf.constant(1.0) + 1.0\n"
        "print(tf is import_tensorflow())\n"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


def test_quiet_hides_the_descriptor_and_not_the_progress_bars() -> None:
    done = python(
        "import os, sys\n"
        "from rich.console import Console\n"
        "from converters.tensorflow import quiet\n"
        "console, original = Console(stderr=True), sys.stderr\n"
        "for _ in range(2):\n"
        "    with quiet(), quiet():\n"
        "        os.write(2, b'noise\\n')\n"
        "        console.print('progress')\n"
        "    assert sys.stderr is original\n"
        "    os.write(2, b'after\\n')\n"
    )
    assert done.stderr == "progress\nafter\n" * 2


def test_quiet_lets_exceptions_through_and_ends(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with quiet():
            os.write(2, b"noise")
            raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        fail()
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_verbose_hides_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet(verbose=True):
        os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_quiet_holds_until_the_last_block_ends(capfd: pytest.CaptureFixture[str]) -> None:
    first, second = quiet(), quiet()
    with first:
        second.__enter__()
    os.write(2, b"noise")
    second.__exit__(None, None, None)
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_quiet_works_with_standard_error_closed() -> None:
    done = python(
        "import os\n"
        "from converters.tensorflow import quiet\n"
        "os.close(2)\n"
        "with quiet():\n"
        "    print('runs')\n"
    )
    assert (done.stdout, done.returncode) == ("runs\n", 0)


def test_keras_2_is_asked_for_even_after_another_choice() -> None:
    done = python(
        "from converters.tensorflow import import_tensorflow\n"
        "print(import_tensorflow().keras.layers.Layer.__module__.partition('.')[0])\n",
        TF_USE_LEGACY_KERAS="0",
    )
    assert done.stdout == "tf_keras\n"
