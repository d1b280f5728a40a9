"""Checkpoint files: the saved comes back, the damaged is refused, a failure leaves no mess."""

from __future__ import annotations

import datetime
import errno
import io
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import movinet_port
from movinet_port import (
    Checkpoint,
    CheckpointError,
    MoViNet,
    MovinetPortError,
    load,
    load_checkpoint,
    save,
)

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(movinet_port.__file__).parents[1]
SUFFIXES = [".pt", ".safetensors"]
PROVENANCE = {
    "source": "https://tfhub.dev/tensorflow/movinet/a0/stream/kinetics-600/classification/3",
    "sha256": "ab" * 32,
    "versions": {"torch": "2.13.0", "numbers": [1, 2.5, None, True]},
    "unicode": "ähnlich 動画",
}


@pytest.fixture(scope="module")
def make(tiny_spec: Any, randomised: Any) -> Callable[..., Checkpoint]:
    """Factory: a checkpoint of a tiny network with random weights."""

    def build(mode: str = "stream", seed: int = 0, **fields: Any) -> Checkpoint:
        spec = tiny_spec(mode)
        model = randomised(MoViNet(spec), seed)
        return Checkpoint(
            **{"spec": spec, "state_dict": model.state_dict(), "provenance": PROVENANCE, **fields}
        )

    return build


def assert_bit_equal(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        one, other = (t.contiguous().reshape(-1).view(torch.uint8) for t in (found[name], tensor))
        assert torch.equal(one, other), name


def content_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a ``.pt`` file holds, spelt out once more on purpose."""
    return {
        "format_version": 1,
        "spec": checkpoint.spec.to_dict(),
        "provenance": dict(checkpoint.provenance),
        "state_dict": dict(checkpoint.state_dict),
    }


# Round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("mode", ["base", "stream"])
def test_saved_network_comes_back_bit_equal(
    make: Any, tmp_path: Path, video: Any, mode: str, suffix: str
) -> None:
    checkpoint = make(mode)
    save(checkpoint, tmp_path / f"network{suffix}")
    again = load_checkpoint(tmp_path / f"network{suffix}")
    assert again.spec == checkpoint.spec
    assert again.provenance == PROVENANCE
    assert again.labels is None
    assert_bit_equal(again.state_dict, checkpoint.state_dict)
    model = load(tmp_path / f"network{suffix}")
    assert model.spec == checkpoint.spec
    assert_bit_equal(model.state_dict(), checkpoint.state_dict)
    expected = MoViNet(checkpoint.spec).eval()
    expected.load_state_dict(checkpoint.state_dict)
    clip = video(dtype=torch.float32)
    assert torch.equal(model(clip), expected(clip))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16], ids=["double", "half", "bfloat16"]
)
def test_type_of_the_weights_is_kept(
    make: Any, tmp_path: Path, suffix: str, dtype: torch.dtype
) -> None:
    state_dict = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in make().state_dict.items()
    }
    state_dict["stem.norm.bias"][:2] = torch.tensor([-0.0, torch.inf], dtype=dtype)
    save(make(state_dict=state_dict), tmp_path / f"network{suffix}")
    assert_bit_equal(load(tmp_path / f"network{suffix}").state_dict(), state_dict)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_labels_come_back(make: Any, tmp_path: Path, suffix: str) -> None:
    labels = ("abseiling", "zumba", "käse 動画")
    save(make(labels=labels), tmp_path / f"network{suffix}")
    assert load_checkpoint(tmp_path / f"network{suffix}").labels == labels
    assert load(tmp_path / f"network{suffix}").labels == labels


@pytest.mark.parametrize("as_path", [str, Path])
@pytest.mark.parametrize("suffix", [*SUFFIXES, ".pth", ""])
def test_path_is_text_or_path_with_any_suffix(
    make: Any, tmp_path: Path, as_path: Any, suffix: str
) -> None:
    path = as_path(tmp_path / f"ein Netz{suffix}")
    save(make(), path)
    assert_bit_equal(load(path).state_dict(), make().state_dict)


@pytest.mark.parametrize(
    ("labels", "keys"),
    [
        (None, {"format_version", "spec", "provenance", "state_dict"}),
        (("a", "b", "c"), {"format_version", "spec", "provenance", "state_dict", "labels"}),
    ],
)
def test_pt_file_opens_with_torch_alone(
    make: Any, tmp_path: Path, labels: Any, keys: set[str]
) -> None:
    checkpoint = make(labels=labels)
    save(checkpoint, tmp_path / "network.pt")
    content = torch.load(tmp_path / "network.pt", weights_only=True)
    assert content.keys() == keys
    assert content["format_version"] == 1
    assert content["spec"] == checkpoint.spec.to_dict()
    assert content["provenance"] == PROVENANCE
    assert_bit_equal(content["state_dict"], checkpoint.state_dict)


def test_safetensors_file_opens_with_safetensors_alone(make: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, safe_open

    checkpoint = make()
    save(checkpoint, tmp_path / "network.safetensors")
    assert_bit_equal(load_file(tmp_path / "network.safetensors"), checkpoint.state_dict)
    with safe_open(tmp_path / "network.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format_version"] == "1"
    assert json.loads(metadata["spec"]) == checkpoint.spec.to_dict()
    assert json.loads(metadata["provenance"]) == PROVENANCE


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_loaded_network_is_in_eval_mode_and_can_be_trained(
    make: Any, tmp_path: Path, video: Any, suffix: str
) -> None:
    save(make(), tmp_path / f"network{suffix}")
    model = load(tmp_path / f"network{suffix}")
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
    model.train()
    model(video(dtype=torch.float32)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_loading_imports_no_tensorflow(make: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"network{suffix}"
    save(make(), path)
    code = "import movinet_port, sys; print(type(movinet_port.load(sys.argv[1])).__name__)"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "MoViNet\n"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "torch" in imported
    unwanted = {"tensorflow", "tf_keras", "keras", "tensorflow_hub", "h5py", "converters", "parity"}
    assert not {name for name in imported if name.partition(".")[0] in unwanted}


def test_networks_of_one_checkpoint_share_no_weights(make: Any) -> None:
    checkpoint = make()
    kept = {name: tensor.clone() for name, tensor in checkpoint.state_dict.items()}
    one, two = checkpoint.build(), checkpoint.build()
    with torch.no_grad():
        for tensor in one.state_dict().values():
            tensor.zero_()
    assert_bit_equal(two.state_dict(), kept)
    assert_bit_equal(checkpoint.state_dict, kept)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_weights_may_be_views_and_share_memory(make: Any, tmp_path: Path, suffix: str) -> None:
    """As they are when a converter transposes and slices arrays."""
    state_dict = dict(make().state_dict)
    kernel = state_dict["classifier.hidden.conv.weight"]
    everything = torch.zeros(1000, *kernel.shape)
    everything[500] = kernel
    state_dict["classifier.hidden.conv.weight"] = everything[500].transpose(0, 1).transpose(0, 1)
    transposed = state_dict["head.conv.weight"].transpose(0, 1).contiguous().transpose(0, 1)
    assert not transposed.is_contiguous()
    state_dict["head.conv.weight"] = transposed
    state_dict["head.norm.weight"] = state_dict["head.norm.bias"]
    path = tmp_path / f"network{suffix}"
    save(make(state_dict=state_dict), path)
    assert path.stat().st_size < everything.untyped_storage().nbytes() / 5
    model = load(path)
    assert_bit_equal(model.state_dict(), state_dict)
    with torch.no_grad():
        model.head.norm.weight.zero_()
    assert torch.equal(model.head.norm.bias, state_dict["head.norm.bias"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_parameters_count_as_weights(make: Any, tmp_path: Path, suffix: str) -> None:
    checkpoint = make()
    state_dict = checkpoint.build().state_dict(keep_vars=True)
    save(make(state_dict=state_dict), tmp_path / f"network{suffix}")
    again = load_checkpoint(tmp_path / f"network{suffix}").state_dict
    assert_bit_equal(again, checkpoint.state_dict)
    assert {type(tensor) for tensor in again.values()} == {Tensor}


# Damaged files ---------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    """The message with which the file is refused."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


class Bomb:
    """Pickles as a call that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_file_is_refused(tmp_path: Path, suffix: str) -> None:
    assert "no such file" in refusal(tmp_path / f"missing{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_folder_is_refused_as_a_folder(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"folder{suffix}"
    path.mkdir()
    assert "folder" in refusal(path).replace(str(path), "")


def test_compiled_network_is_refused_as_one(tmp_path: Path) -> None:
    path = tmp_path / "a0.pt2"
    path.write_bytes(b"native code")
    with pytest.raises(CheckpointError, match="it is compiled"):
        load_checkpoint(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "data", [b"", b"\0" * 100, b"PK\x03\x04", b"\x80\x02.", b"{}", b"not one\n"]
)
def test_file_of_something_else_is_refused(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"network{suffix}"
    path.write_bytes(data)
    refusal(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_truncated_file_is_refused(make: Any, tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"network{suffix}"
    save(make(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refusal(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"network{suffix}"
        path.write_bytes(data)
        refusal(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_file_with_damage_inside_is_refused_or_loads(
    make: Any, tmp_path: Path, suffix: str
) -> None:
    """Whatever byte of the header is hit, nothing but a CheckpointError comes out."""
    path = tmp_path / f"network{suffix}"
    save(make(), path)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    messages: list[str] = []
    for _ in range(150):
        damaged = bytearray(whole)
        # The headers: at the start in the one format, at the end in the other.
        for place in random.integers(0, 4000, size=2):
            damaged[place if suffix == ".safetensors" else -1 - place] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            load(path)
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda make: torch.zeros(3), id="tensor"),
        pytest.param(lambda make: [1, 2, 3], id="list"),
        pytest.param(lambda make: {}, id="empty"),
        pytest.param(lambda make: dict(make().state_dict), id="state_dict"),
        pytest.param(lambda make: make().build(), id="module"),
        pytest.param(lambda make: {"model": 1, 2: 3, ("a", "b"): 4}, id="other_keys"),
    ],
)
def test_another_torch_file_is_refused_with_what_to_do(
    make: Any, tmp_path: Path, content: Any
) -> None:
    path = tmp_path / "network.pt"
    torch.save(content(make), path)
    assert "convert" in refusal(path)


def test_zip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("saved_model.pb", b"something")
    refusal(path)


def test_safetensors_file_of_another_program_is_refused(make: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "network.safetensors"
    for metadata in (None, {"format": "pt"}, {"spec": "{}"}):
        save_file(dict(make().state_dict), path, metadata)
        assert "convert" in refusal(path)


@pytest.mark.parametrize("where", ["whole", "spec", "provenance", "state_dict", "legacy", "bare"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_code_in_a_file_is_never_executed(
    make: Any, tmp_path: Path, where: str, suffix: str
) -> None:
    path, trace = tmp_path / f"network{suffix}", tmp_path / "trace"
    content: Any = content_of(make())
    if where in ("spec", "provenance", "state_dict"):
        content[where]["bomb"] = Bomb(trace)
    else:
        content = Bomb(trace)
    if where == "bare":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=where != "legacy")
    refusal(path)
    assert not trace.exists()
    # The trap works: the file was one to be refused.
    with path.open("rb") as file:
        torch.load(file, weights_only=False) if where != "bare" else pickle.load(file)
    assert trace.exists()


class _Gone:
    def __repr__(self) -> str:
        return "gone"


GONE = _Gone()


def put(place: dict[str, Any], key: str, value: Any) -> None:
    """Damage a dict: replace, add or remove one value."""
    if value is GONE:
        del place[key]
    else:
        place[key] = value


def short(value: Any) -> str:
    """A test's id that fits on a line."""
    return repr(value)[:30]


WEIGHT = "block0_layer1.depthwise.conv.weight"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("format_version", GONE, "format_version"),
        ("spec", GONE, "spec"),
        ("provenance", GONE, "provenance"),
        ("state_dict", GONE, "state_dict"),
        ("format_version", 2, "format version 2"),
        ("format_version", 0, "format version 0"),
        ("format_version", "1", "format"),
        ("format_version", None, "format"),
        ("format_version", torch.tensor([1, 2]), "format"),
        ("spec", None, "spec"),
        ("spec", [], "spec"),
        ("spec", {}, "spec"),
        ("provenance", "somewhere", "provenance"),
        ("state_dict", [], "state_dict"),
        ("state_dict", None, "state_dict"),
        ("labels", 5, "labels|class names"),
        ("labels", ["one"], "class names"),
        ("labels", [1, 2, 3], "class name"),
    ],
    ids=short,
)
def test_damaged_content_is_named(
    make: Any, tmp_path: Path, key: str, value: Any, expected: str
) -> None:
    path = tmp_path / "network.pt"
    content = content_of(make())
    put(content, key, value)
    torch.save(content, path)
    assert any(word in refusal(path).replace(str(path), "") for word in expected.split("|"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (WEIGHT, GONE, f"{WEIGHT} is missing"),
        ("block9_layer9.rezero.scale", torch.zeros(()), "block9_layer9.rezero.scale"),
        ("two\nlines", torch.zeros(()), "two"),
        (WEIGHT, torch.zeros(12, 1, 1, 3, 5), "(12, 1, 1, 3, 5), expected (12, 1, 1, 3, 3)"),
        ("block0_layer0.rezero.scale", torch.zeros(1), "block0_layer0.rezero.scale"),
        (WEIGHT, torch.zeros(12, 1, 1, 3, 3, dtype=torch.int64), WEIGHT),
        ("stem.norm.num_batches_tracked", torch.zeros(()), "stem.norm.num_batches_tracked"),
    ],
    ids=short,
)
def test_weights_that_do_not_fit_are_named(
    make: Any, tmp_path: Path, suffix: str, key: str, value: Any, expected: str
) -> None:
    path = tmp_path / f"network{suffix}"
    state_dict = dict(make().state_dict)
    put(state_dict, key, value)
    save(make(state_dict=state_dict), path)
    assert expected in refusal(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_weights_of_another_network_are_refused_in_a_line_that_can_be_read(
    make: Any, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"network{suffix}"
    save(make(state_dict=dict(list(make().state_dict.items())[:3])), path)
    message = refusal(path)
    assert "is missing" in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    "change", [Tensor.to_sparse, lambda tensor: tensor.to("meta")], ids=["sparse", "meta"]
)
def test_weights_that_hold_no_numbers_of_their_own_are_refused(
    make: Any, tmp_path: Path, change: Any
) -> None:
    path = tmp_path / "network.pt"
    content = content_of(make())
    content["state_dict"][WEIGHT] = change(content["state_dict"][WEIGHT])
    torch.save(content, path)
    assert WEIGHT in refusal(path)


@pytest.mark.parametrize("value", [5, "weights", None, [1.0]])
def test_weights_that_are_no_tensors_are_refused(make: Any, tmp_path: Path, value: Any) -> None:
    path = tmp_path / "network.pt"
    content = content_of(make())
    content["state_dict"][WEIGHT] = value
    torch.save(content, path)
    refusal(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("stride", 2, "stride"),
        ("stem", GONE, "stem"),
        ("num_classes", "3", "num_classes"),
        ("num_classes", 3.0, "num_classes"),
        ("num_classes", 10**30, "spec"),
        ("causal", "False", "causal"),
        ("gate", "hard", "gate"),
        ("norm_epsilon", "0.001", "norm_epsilon"),
        ("norm_epsilon", None, "norm_epsilon"),
        ("blocks", [], "block"),
        ("blocks", [5], "block"),
        ("head", {"project_filters": "16", "head_filters": 16}, "head"),
        ("stem", {"filters": "4"}, "stem"),
        ("stem", {"filters": 4, "kernels": 3}, "kernels"),
        ("stem", {"filters": 4, "kernel_size": [3, 3]}, "stem"),
    ],
    ids=short,
)
def test_spec_that_is_none_is_named(
    make: Any, tmp_path: Path, suffix: str, key: str, value: Any, expected: str
) -> None:
    path = tmp_path / f"network{suffix}"
    content = content_of(make())
    put(content["spec"], key, value)
    if suffix == ".pt":
        torch.save(content, path)
    else:
        from safetensors.torch import save_file

        metadata = {key: json.dumps(value) for key, value in content.items() if key != "state_dict"}
        save_file(content["state_dict"], path, metadata)
    assert expected in refusal(path).replace(str(path), "").lower()


def test_spec_whose_sizes_overflow_is_refused(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    content = content_of(make("base"))
    content["spec"]["stem"]["kernel_size"] = [2**20] * 3
    torch.save(content, path)
    assert "spec" in refusal(path)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "5", "null", '"a"', "NaN"])
def test_header_of_broken_json_is_refused(make: Any, tmp_path: Path, text: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "network.safetensors"
    metadata = {"format_version": "1", "spec": text, "provenance": "{}"}
    save_file(dict(make().state_dict), path, metadata)
    assert len(refusal(path)) < 1000


def test_file_that_cannot_be_opened_is_refused(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For root every file can be, so the refusal of the system is put in its mouth."""

    def deny(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    for suffix, opener in ((".pt", "torch.load"), (".safetensors", "safetensors.safe_open")):
        path = tmp_path / f"network{suffix}"
        save(make(), path)
        monkeypatch.setattr(opener, deny)
        assert "ermission" in refusal(path)


# Writing ---------------------------------------------------------------------------------------


def one_line(error: BaseException, path: Path) -> str:
    message = str(error)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_file_in_a_missing_folder_is_a_clear_error(make: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "missing" / f"network{suffix}"
    with pytest.raises(MovinetPortError, match="No such file or directory") as caught:
        save(make(), path)
    one_line(caught.value, path)
    assert not path.parent.exists()


def test_file_below_a_file_is_a_clear_error(make: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(MovinetPortError, match="Not a directory") as caught:
        save(make(), tmp_path / "file" / "network.pt")
    one_line(caught.value, tmp_path / "file" / "network.pt")


def test_saving_over_a_folder_is_a_clear_error(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    path.mkdir()
    with pytest.raises(MovinetPortError, match="folder") as caught:
        save(make(), path)
    one_line(caught.value, path)
    assert list(tmp_path.rglob("*")) == [path]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_saving_over_what_is_no_file_is_a_clear_error(make: Any, tmp_path: Path) -> None:
    """As over /dev/null, which root could replace."""
    path = tmp_path / "network.pt"
    os.mkfifo(path)
    with pytest.raises(MovinetPortError, match="file") as caught:
        save(make(), path)
    one_line(caught.value, path)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert list(tmp_path.iterdir()) == [path]


def test_folder_without_permission_is_a_clear_error(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", deny)
    with pytest.raises(MovinetPortError, match="Permission denied") as caught:
        save(make(), tmp_path / "network.pt")
    one_line(caught.value, tmp_path / "network.pt")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
@pytest.mark.parametrize(
    "step", ["write", "os.fsync", "pathlib.Path.chmod", "pathlib.Path.replace"]
)
def test_full_disk_is_a_clear_error_and_leaves_what_was_there(
    make: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    existing: bool,
    suffix: str,
) -> None:
    path = tmp_path / f"network{suffix}"
    if existing:
        save(make(), path)
    before = path.read_bytes() if existing else None

    def fill(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    if step == "write":
        step = "torch.save" if suffix == ".pt" else "safetensors.torch.save_file"
    with monkeypatch.context() as patch:
        patch.setattr(step, fill)
        with pytest.raises(MovinetPortError, match="No space left on device") as caught:
            save(make(seed=1), path)
    one_line(caught.value, path)
    assert list(tmp_path.iterdir()) == ([path] if existing else [])
    assert not existing or path.read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_file_that_the_system_cuts_short_is_a_clear_error(
    make: Any, tmp_path: Path, suffix: str
) -> None:
    """A real refusal of the system, inside the writers' native code."""
    path = tmp_path / f"network{suffix}"
    save(make(), path)
    before = path.read_bytes()
    code = """
        import resource, sys
        import torch
        import movinet_port
        checkpoint = movinet_port.load_checkpoint(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            movinet_port.save(checkpoint, sys.argv[1])
        except movinet_port.MovinetPortError as error:
            print(error)
    """
    done = run(code, path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot write {path}: ")
    assert done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def run(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_writer_leaves_the_older_file(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    save(make(), path)
    before = path.read_bytes()
    code = """
        import io, os, signal, sys
        import torch
        import movinet_port
        checkpoint = movinet_port.load_checkpoint(sys.argv[1])
        torch_save = torch.save

        def half_way(content, target):
            whole = io.BytesIO()
            torch_save(content, whole)
            with open(target, "wb") as file:
                file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half_way
        movinet_port.save(checkpoint, sys.argv[1])
    """
    assert run(code, path).returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert_bit_equal(load(path).state_dict(), make().state_dict)
    # What it left is no obstacle.
    save(make(seed=1), path)
    assert_bit_equal(load(path).state_dict(), make(seed=1).state_dict)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, MemoryError])
def test_interrupted_writer_leaves_the_older_file_and_nothing_else(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    path = tmp_path / "network.pt"
    save(make(), path)
    before = path.read_bytes()

    def stop(content: Any, target: Any) -> None:
        Path(target).write_bytes(b"half")
        raise interrupt

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", stop)
        with pytest.raises((interrupt, MovinetPortError)):
            save(make(seed=1), path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_folder_that_cannot_be_synced_is_no_traceback(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems refuse it; the file is there by then."""
    sync = os.fsync

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(handle)

    monkeypatch.setattr("os.fsync", refuse)
    save(make(), tmp_path / "network.pt")
    assert_bit_equal(load(tmp_path / "network.pt").state_dict(), make().state_dict)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saving_again_replaces_the_file(make: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"network{suffix}"
    save(make("base"), path)
    save(make("stream", seed=1), path)
    assert list(tmp_path.iterdir()) == [path]
    assert load(path).spec.causal
    assert_bit_equal(load(path).state_dict(), make("stream", seed=1).state_dict)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_loaded_network_does_not_depend_on_its_file(
    make: Any, tmp_path: Path, video: Any, suffix: str
) -> None:
    path = tmp_path / f"network{suffix}"
    save(make(), path)
    model = load(path)
    save(make(seed=1), path)
    path.write_bytes(b"gone")
    path.unlink()
    assert_bit_equal(model.state_dict(), make().state_dict)
    assert model(video(dtype=torch.float32)).isfinite().all()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a umask")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_file_has_the_usual_permissions(make: Any, tmp_path: Path, mask: int, mode: int) -> None:
    old = os.umask(mask)
    try:
        save(make(), tmp_path / "network.pt")
        assert os.umask(mask) == mask  # and the mask is as it was
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "network.pt").stat().st_mode) == mode


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "value",
    [
        Path("somewhere"),
        datetime.datetime(2024, 1, 1),
        np.float32(1.5),
        np.int64(1),
        {1, 2},
        b"bytes",
        torch.zeros(2),
        object(),
        lambda: None,
    ],
    ids=lambda value: type(value).__name__,
)
def test_provenance_that_is_not_plain_data_is_refused_when_saved(
    make: Any, tmp_path: Path, suffix: str, value: Any
) -> None:
    """Not when the file is read: then the conversion is long over."""
    path = tmp_path / f"network{suffix}"
    with pytest.raises(MovinetPortError, match="provenance") as caught:
        save(make(provenance={"source": {"value": value}}), path)
    one_line(caught.value, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_numpy_values_that_pass_for_pythons_can_be_read_again(
    make: Any, tmp_path: Path, suffix: str
) -> None:
    """`numpy.float64` is a float and `numpy.str_` a text, but torch.load refuses either."""
    path = tmp_path / f"network{suffix}"
    labels = tuple(np.array(["a", "b", "c"]))
    save(make(provenance={"share": np.float64(0.5)}, labels=labels), path)
    assert load_checkpoint(path).provenance == {"share": 0.5}
    assert load(path).labels == ("a", "b", "c")


def test_checkpoint_survives_a_buffer_of_torch(make: Any, tmp_path: Path) -> None:
    """The content, saved by torch elsewhere, is a checkpoint as well."""
    checkpoint = make()
    file = io.BytesIO()
    torch.save(content_of(checkpoint), file)
    (tmp_path / "network.pt").write_bytes(file.getvalue())
    assert_bit_equal(load(tmp_path / "network.pt").state_dict(), checkpoint.state_dict)
