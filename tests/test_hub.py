"""Networks by name: create_model's pretrained, torch.hub, weights objects, the Hugging Face hub."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch

import movinet_port
import weights
from movinet_port import CheckpointError, MoViNet, MoViNetWeights, SpecError, create_model
from movinet_port.checkpoint import Checkpoint
from movinet_port.inputs import InputFormat

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOVINET_PORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def a0(tmp_path_factory: pytest.TempPathFactory, randomised: Any) -> Path:
    """A checkpoint of a0 stream with random weights and 600 classes."""
    model = randomised(create_model("a0", "stream"))
    path = tmp_path_factory.mktemp("a0") / "a0.pt"
    movinet_port.save(Checkpoint(model.spec, model.state_dict()), path)
    return path


def same(one: Any, other: Any, but: str = "nothing") -> bool:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    return all(torch.equal(v, second[n]) for n, v in first.items() if not n.startswith(but))


# create_model ----------------------------------------------------------------------------------


def test_pretrained_network_has_the_files_weights(a0: Path) -> None:
    model = create_model("a0", "stream", pretrained=a0)
    assert not model.training
    assert same(model, movinet_port.load(a0))


def test_pretrained_network_may_have_other_classes(a0: Path) -> None:
    model = create_model("a0", "stream", 7, pretrained=a0, dropout=0.5, stochastic_depth=0.3)
    assert model.spec.num_classes == 7
    assert model.classifier.output.conv.out_channels == 7
    loaded = movinet_port.load(a0)
    loaded.reset_classifier(7)
    assert same(model, loaded, but="classifier.output")
    assert model.classifier.dropout.p == 0.5
    assert model.block4_layer3.stochastic_depth.drop_rate == pytest.approx(0.3)


def test_pretrained_network_may_compute_another_gate(a0: Path) -> None:
    model = create_model("a0", "stream", pretrained=a0, gate="hard_sigmoid_relu6")
    assert model.spec.gate == "hard_sigmoid_relu6"
    assert same(model, movinet_port.load(a0))


def test_pretrained_true_takes_what_was_converted_into_the_cache(a0: Path, cache: Path) -> None:
    command = "movinet-port convert --model a0 --mode stream -o "
    with pytest.raises(CheckpointError, match=f"mkdir -p .*{command}.*movinet_a0_stream.pt"):
        create_model("a0", "stream", pretrained=True)
    (cache / "checkpoints").mkdir(parents=True)
    (cache / "checkpoints/movinet_a0_stream.pt").write_bytes(a0.read_bytes())
    assert same(create_model("a0", "stream", pretrained=True), movinet_port.load(a0))
    assert same(MoViNetWeights.A0_STREAM.load(), movinet_port.load(a0))


def test_file_of_another_network_is_refused(a0: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a0 stream, expected a0 base"):
        create_model("a0", "base", pretrained=a0)
    with pytest.raises(CheckpointError, match="holds a0 stream, expected a1 stream"):
        create_model("a1", "stream", pretrained=a0)
    with pytest.raises(SpecError, match="'a9'"):
        create_model("a9", "stream", pretrained=a0)


# torch.hub -------------------------------------------------------------------------------------


def hub_load(entry: str, **options: Any) -> Any:
    return torch.hub.load(str(ROOT), entry, source="local", **options)


def test_torch_hub_has_every_published_network() -> None:
    found = torch.hub.list(str(ROOT))  # a path without a tag is no repository of GitHub
    assert sorted(found) == sorted(f"movinet_{m.name}_{m.mode}" for m in weights.models())


@pytest.fixture(autouse=True)
def local_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_get_cache_or_reload", lambda repository, *_, **__: repository)


def test_torch_hub_loads_weights(a0: Path) -> None:
    assert same(hub_load("movinet_a0_stream", weights=str(a0)), movinet_port.load(a0))


def test_torch_hub_builds_without_weights() -> None:
    model = hub_load("movinet_a0_base", num_classes=3, dropout=0.1)
    assert (model.spec.name, model.spec.mode, model.spec.num_classes) == ("a0", "base", 3)


def test_torch_hub_says_what_it_takes() -> None:
    assert "weights: a file" in torch.hub.help(str(ROOT), "movinet_a3_base")


# Weights objects -------------------------------------------------------------------------------


def test_there_is_a_weights_object_for_every_published_network() -> None:
    names = [f"{model.name}_{model.mode}".upper() for model in weights.models()]
    assert [member.name for member in MoViNetWeights] == names


def test_weights_object_has_what_the_authors_publish() -> None:
    found = MoViNetWeights["A2_STREAM"]
    assert found.meta["_metrics"] == {"Kinetics-600": {"acc@1": 78.40, "acc@5": 94.05}}
    assert found.meta["min_size"] == (224, 224)
    assert (found.meta["frames"], found.meta["frames_per_second"]) == (50, 5)
    assert (
        found.url == "https://tfhub.dev/tensorflow/movinet/a2/stream/kinetics-600/classification/3"
    )


@pytest.mark.parametrize(("name", "size"), [("A0_BASE", 172), ("A5_STREAM", 320)])
def test_transforms_make_the_networks_input(name: str, size: int) -> None:
    frames = torch.randint(0, 256, (2, 400, 500, 3), dtype=torch.uint8)
    assert MoViNetWeights[name].transforms()(frames).shape == (1, 3, 2, size, size)


# Hugging Face ----------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tiny_spec: Any, randomised: Any) -> Checkpoint:
    model = randomised(MoViNet(tiny_spec("stream")))
    clip = InputFormat(size=32, resize=36, frames_per_second=5.0, frames=8)
    return Checkpoint(
        model.spec, model.state_dict(), {"source": "a test"}, ("run", "sit", "ünï"), clip
    )


def assert_equal(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.spec == expected.spec
    assert found.labels == expected.labels
    assert found.input == expected.input
    assert found.provenance == expected.provenance
    assert found.state_dict.keys() == expected.state_dict.keys()
    assert all(torch.equal(v, expected.state_dict[n]) for n, v in found.state_dict.items())


def test_saved_folder_gives_the_same_network_back(checkpoint: Checkpoint, tmp_path: Path) -> None:
    hub = pytest.importorskip("movinet_port.hub", exc_type=movinet_port.MovinetPortError)
    hub.HubMoViNet.from_checkpoint(checkpoint).save_pretrained(tmp_path / "model")
    written = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert written == ["README.md", "config.json", "model.safetensors"]
    model = hub.HubMoViNet.from_pretrained(tmp_path / "model")
    assert not model.training
    assert_equal(model.to_checkpoint(), checkpoint)
    # Without huggingface_hub.
    assert_equal(movinet_port.load_checkpoint(tmp_path / "model/model.safetensors"), checkpoint)
    config = json.loads((tmp_path / "model/config.json").read_text("utf-8"))
    assert config["spec"] == checkpoint.spec.to_dict()
    assert config["labels"] == ["run", "sit", "ünï"]
    card = (tmp_path / "model/README.md").read_text("utf-8")
    assert "library_name: movinet-port" in card
    assert "arxiv.org/abs/2103.11511" in card


@pytest.mark.parametrize("source", ["missing", "no/such/name/at/all"])
def test_source_that_is_no_repository_is_one_line(source: str, tmp_path: Path) -> None:
    hub = pytest.importorskip("movinet_port.hub", exc_type=movinet_port.MovinetPortError)
    with pytest.raises(CheckpointError, match="neither a folder nor a repository") as raised:
        hub.HubMoViNet.from_pretrained(source, local_files_only=True, cache_dir=tmp_path)
    assert len(str(raised.value).splitlines()) == 1


class Repositories:
    """A server on this machine that takes and gives files as huggingface.co does."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        repositories = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.path.endswith("/create"):
                    answer: Any = {"url": f"{repositories.url}/me/mini"}
                elif "/preupload/" in self.path:
                    files = json.loads(body)["files"]
                    modes = [{"path": f["path"], "uploadMode": "regular"} for f in files]
                    answer = {"files": [{**mode, "shouldIgnore": False} for mode in modes]}
                elif "/commit/" in self.path:
                    for line in body.splitlines():
                        entry = json.loads(line)
                        if entry["key"] == "file":
                            content = base64.b64decode(entry["value"]["content"])
                            repositories.files[entry["value"]["path"]] = content
                    answer = {
                        "commitUrl": f"{repositories.url}/me/mini/commit/{'1' * 40}",
                        "commitOid": "1" * 40,
                    }
                else:
                    answer = {}
                self._send(200, json.dumps(answer).encode(), "application/json")

            def do_HEAD(self) -> None:
                self._give(body=False)

            def do_GET(self) -> None:
                self._give(body=True)

            def _give(self, body: bool) -> None:
                content = repositories.files.get(unquote(self.path).rpartition("/")[2])
                if content is None:
                    return self._send(404, b"", "text/plain", body)
                return self._send(200, content, "application/octet-stream", body)

            def _send(self, code: int, content: bytes, kind: str, body: bool = True) -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", '"abc"')
                self.send_header("X-Repo-Commit", "1" * 40)
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


PUSH_AND_PULL = """
import sys, movinet_port
from movinet_port.hub import HubMoViNet
model = HubMoViNet.from_checkpoint(movinet_port.load_checkpoint("mini.pt"))
model.push_to_hub("me/mini", token="hf_not_a_token")
movinet_port.save(HubMoViNet.from_pretrained("me/mini").to_checkpoint(), "back.pt")
"""


def test_pushed_network_comes_back_from_the_hub(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pytest.importorskip("movinet_port.hub", exc_type=movinet_port.MovinetPortError)
    movinet_port.save(checkpoint, tmp_path / "mini.pt")
    repositories = Repositories()
    with repositories.running():
        environment = {
            **os.environ,
            "HF_ENDPOINT": repositories.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "no_proxy": "*",
            "PYTHONPATH": str(ROOT),
        }
        ended = subprocess.run(
            [sys.executable, "-c", PUSH_AND_PULL],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert ended.returncode == 0, ended.stderr
    assert sorted(repositories.files) == ["README.md", "config.json", "model.safetensors"]
    assert_equal(movinet_port.load_checkpoint(tmp_path / "back.pt"), checkpoint)


def test_importing_movinet_port_imports_nothing_of_these() -> None:
    script = "import sys, movinet_port; print(*sorted(m.partition('.')[0] for m in sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported = set(ended.stdout.split())
    assert "torch" in imported
    assert not imported & {"huggingface_hub", "av", "weights", "converters", "tensorflow", "click"}
