"""From a video to labels: base and stream, one or several networks, and what cannot be used."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import videos
from hub_server import Answer, HubServer

import movinet_port
import weights
from movinet_port import Checkpoint, MoViNet, MovinetPortError
from movinet_port.command_line.cli import main
from movinet_port.drawing import History
from movinet_port.ensemble import Ensemble, EnsembleError, create_ensemble
from movinet_port.inputs import InputFormat, published_input
from movinet_port.labels import LabelsError, find_labels
from movinet_port.predict import Predictor, load_predictor
from movinet_port.transforms import ClipTransform
from movinet_port.video import read_video

pytestmark = pytest.mark.usefixtures("one_thread")

FORMAT = InputFormat(size=32, resize=36, frames_per_second=5, frames=6)
NAMES = tuple(f"name {number}" for number in range(7))


class Outcome(NamedTuple):
    code: object
    out: str
    err: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def run(*arguments: str | Path) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["predict", *map(str, arguments)], prog_name="movinet-port")
        return Outcome(ended.value.code or 0, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def checkpoint(mini_spec: Any, randomised: Any) -> Callable[..., Checkpoint]:
    """Factory: a small network with random weights; "base" or "stream"."""

    def build(mode: str = "base", seed: int = 0, **changes: Any) -> Checkpoint:
        model = randomised(MoViNet(mini_spec(mode)), seed)
        options: dict[str, Any] = {"labels": NAMES, "input": FORMAT, **changes}
        return Checkpoint(model.spec, model.state_dict(), **options)

    return build


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, checkpoint: Any) -> dict[str, Path]:
    """Checkpoint files and a video of three seconds, 25 frames each."""
    folder = tmp_path_factory.mktemp("files")
    for mode in ("base", "stream"):
        movinet_port.save(checkpoint(mode), folder / f"{mode}.pt")
        other = InputFormat(size=24, resize=24, frames_per_second=10, frames=9)
        movinet_port.save(checkpoint(mode, seed=1, input=other), folder / f"{mode}2.pt")
    videos.write(folder / "a.mp4", videos.noise(75), 25)
    return {path.name: path for path in folder.iterdir()}


def clip_of(
    path: Path, made_for: InputFormat, start: float = 0.0, frames: int | None = None
) -> Any:
    found = read_video(str(path), made_for.frames_per_second, start=start, frames=frames)
    return ClipTransform(made_for.size, made_for.resize)(found)


def rows(out: str) -> list[Any]:
    return [json.loads(line) for line in out.splitlines()]


def likeliest(row: Any) -> list[tuple[int, float]]:
    return [(guess["class"], guess["probability"]) for guess in row["top"]]


def expected_top(logits: torch.Tensor, count: int = 5) -> list[tuple[int, Any]]:
    probabilities = logits.softmax(-1)[0]
    order = probabilities.argsort(descending=True)[:count].tolist()
    return [(index, pytest.approx(probabilities[index].item(), abs=1e-5)) for index in order]


# What is predicted.


@torch.inference_mode()
def test_a_base_network_sees_the_middle_of_a_video(run: Any, files: Any) -> None:
    outcome = run("--weights", files["base.pt"], "--json", files["a.mp4"])
    assert (outcome.code, outcome.err) == (0, "")
    (row,) = rows(outcome.out)
    # 3 s of video, 1.2 s of clip.
    clip = clip_of(files["a.mp4"], FORMAT, start=0.9, frames=6)
    assert likeliest(row) == expected_top(movinet_port.load(files["base.pt"])(clip))
    assert [guess["label"] for guess in row["top"]] == [NAMES[i] for i, _ in likeliest(row)]
    assert (row["frames"], row["seconds"], row["final"]) == (6, 1.9, True)


@torch.inference_mode()
def test_several_clips_are_averaged_from_beginning_to_end(run: Any, files: Any) -> None:
    outcome = run("--weights", files["base.pt"], "--json", "--clips", 3, files["a.mp4"])
    (row,) = rows(outcome.out)
    model = movinet_port.load(files["base.pt"])
    clips = [clip_of(files["a.mp4"], FORMAT, start, 6) for start in (0, 0.9, 1.8)]
    mean = torch.stack([model(clip).softmax(-1) for clip in clips]).mean(0)
    assert likeliest(row) == expected_top(mean.log())


@torch.inference_mode()
def test_a_video_shorter_than_a_clip_starts_over(run: Any, files: Any) -> None:
    outcome = run("--weights", files["base.pt"], "--json", "--frames", 40, files["a.mp4"])
    (row,) = rows(outcome.out)
    clip = clip_of(files["a.mp4"], FORMAT)
    assert clip.shape[2] == 15
    clip = torch.cat([clip, clip, clip], dim=2)[:, :, :40]
    assert likeliest(row) == expected_top(movinet_port.load(files["base.pt"])(clip))


@torch.inference_mode()
@pytest.mark.parametrize("options", [(), ("--stream",)], ids=["at-once", "running"])
def test_a_stream_ends_with_the_prediction_for_the_whole_video(
    run: Any, files: Any, options: tuple[str, ...]
) -> None:
    outcome = run("--weights", files["stream.pt"], "--json", *options, files["a.mp4"])
    assert (outcome.code, outcome.err) == (0, "")
    *running, last = rows(outcome.out)
    clip = clip_of(files["a.mp4"], FORMAT)
    assert likeliest(last) == expected_top(movinet_port.load(files["stream.pt"])(clip))
    assert last["final"]
    assert len(running) == (15 if options else 0)
    assert not any(row["final"] for row in running)


@torch.inference_mode()
def test_each_running_prediction_is_that_of_the_video_so_far(run: Any, files: Any) -> None:
    outcome = run("--weights", files["stream.pt"], "--json", "--stream", files["a.mp4"])
    clip = clip_of(files["a.mp4"], FORMAT)
    model = movinet_port.load(files["stream.pt"])
    for number, row in enumerate(rows(outcome.out)[:15], start=1):
        assert (row["frames"], row["seconds"]) == (number, pytest.approx((number - 1) / 5))
        model.clean_activation_buffers()
        assert likeliest(row) == expected_top(model(clip[:, :, :number]))


def test_running_predictions_are_printed_line_by_line(run: Any, files: Any) -> None:
    outcome = run("--weights", files["stream.pt"], "--stream", "--top", 2, files["a.mp4"])
    lines = outcome.out.splitlines()
    assert len(lines) == 15 + 2
    assert lines[1].startswith("    0.20 s  ")
    assert all(line.count(" % name ") == 2 for line in lines[:15])
    assert all(line.count(" %  name ") == 1 for line in lines[15:])


@torch.inference_mode()
def test_two_base_networks_give_the_mean_each_of_its_own_clip(run: Any, files: Any) -> None:
    both = ("--weights", files["base.pt"], "--weights", files["base2.pt"])
    (row,) = rows(run(*both, "--json", files["a.mp4"]).out)
    first = clip_of(files["a.mp4"], FORMAT, 0.9, 6)
    second = clip_of(files["a.mp4"], InputFormat(24, 24, 10, 9), 1.05, 9)
    models = [movinet_port.load(files["base.pt"]), movinet_port.load(files["base2.pt"])]
    mean = (models[0](first).softmax(-1) + models[1](second).softmax(-1)) / 2
    assert likeliest(row) == expected_top(mean.log())
    assert likeliest(row) == expected_top(Ensemble(models)([first, second]))


@torch.inference_mode()
def test_two_stream_networks_give_the_mean_of_what_each_saw_by_then(run: Any, files: Any) -> None:
    both = ("--weights", files["stream.pt"], "--weights", files["stream2.pt"])
    found = rows(run(*both, "--json", "--stream", files["a.mp4"]).out)
    # One prediction for each frame of the faster one.
    assert [row["seconds"] for row in found[:-1]] == [pytest.approx(n / 10) for n in range(30)]
    clips = [clip_of(files["a.mp4"], FORMAT), clip_of(files["a.mp4"], InputFormat(24, 24, 10, 9))]
    models = [movinet_port.load(files["stream.pt"]), movinet_port.load(files["stream2.pt"])]
    for number in (0, 5, 29):
        for model in models:
            model.clean_activation_buffers()
        seen = [clips[0][:, :, : number // 2 + 1], clips[1][:, :, : number + 1]]
        assert likeliest(found[number]) == expected_top(Ensemble(models)(seen))


@pytest.mark.parametrize("mode", ["base", "stream"])
def test_an_optimised_network_predicts_the_same(run: Any, files: Any, mode: str) -> None:
    options = ("--weights", files[f"{mode}.pt"], "--json", files["a.mp4"])
    (plain,), (fast,) = (rows(run(*options, *more).out) for more in ((), ("--optimize", "eager")))
    expected = [(index, pytest.approx(value, abs=1e-5)) for index, value in likeliest(plain)]
    assert likeliest(fast) == expected


def test_what_the_checkpoint_says_of_its_input_can_be_overruled(files: Any) -> None:
    predictor = load_predictor([files["base.pt"]], fps=10)
    (member,) = predictor._members
    assert member[1] == InputFormat(size=32, resize=36, frames_per_second=10, frames=12)
    predictor = load_predictor([files["base.pt"]], size=40, frames=3)
    (member,) = predictor._members
    assert member[1] == InputFormat(size=40, resize=40, frames_per_second=5, frames=3)


# The input in the checkpoint.


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_input_travels_in_the_file(tmp_path: Path, checkpoint: Any, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    movinet_port.save(checkpoint(), path)
    assert movinet_port.load_checkpoint(path).input == FORMAT


def test_a_file_without_an_input_still_loads(tmp_path: Path, checkpoint: Any) -> None:
    movinet_port.save(checkpoint(input=None), tmp_path / "a.pt")
    assert "input" not in torch.load(tmp_path / "a.pt", weights_only=True)
    assert movinet_port.load_checkpoint(tmp_path / "a.pt").input is None


def test_a_published_network_without_an_input_gets_the_catalogues() -> None:
    for model in weights.models():
        found = published_input(model.name)
        assert found is not None
        assert (found.size, found.frames_per_second) == (model.resolution, model.frames_per_second)
        assert (found.frames, found.resize) == (model.frames, model.resize)
    assert published_input("custom") is None


@pytest.mark.parametrize(
    "change",
    [{"size": 0}, {"size": "32"}, {"frames": 1.5}, {"fps": 5}, {"resize": True}],
    ids=lambda change: "-".join(change),
)
def test_a_damaged_input_is_one_line(tmp_path: Path, checkpoint: Any, change: Any) -> None:
    movinet_port.save(checkpoint(), tmp_path / "a.pt")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    content["input"].update(change)
    torch.save(content, tmp_path / "a.pt")
    (name,) = change
    with pytest.raises(
        movinet_port.CheckpointError, match=rf"a\.pt: the input's {name} is missing"
    ):
        movinet_port.load_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "change", [{"size": 10**9}, {"frames": 10**9}, {"frames_per_second": 1e9}, {"resize": 5000}]
)
def test_an_input_that_no_memory_has_room_for_is_one_line(
    tmp_path: Path, checkpoint: Any, change: Any
) -> None:
    movinet_port.save(checkpoint(), tmp_path / "a.pt")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    content["input"].update(change)
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(movinet_port.CheckpointError, match=r"a\.pt: the input: .* at most"):
        movinet_port.load_checkpoint(tmp_path / "a.pt")


# Several videos.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four videos, one of them damaged, and a file that is none."""
    root = tmp_path / "videos"
    (root / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.mp4", "c.mkv", "sub/d.mp4")):
        videos.write(root / name, videos.noise(20, seed=number), 10)
    (root / "b.mp4").write_text("damaged")
    (root / "notes.txt").write_text("no video")
    return root


@pytest.mark.parametrize("mode", ["base", "stream"])
def test_a_broken_video_is_reported_and_the_others_are_predicted(
    run: Any, files: Any, folder: Path, mode: str
) -> None:
    outcome = run("--weights", files[f"{mode}.pt"], "--top", 1, folder)
    assert outcome.code == 2
    lines = outcome.out.splitlines()
    assert lines[::2] == [str(folder / name) for name in ("a.mp4", "c.mkv", "sub/d.mp4")]
    assert all(" %  name " in line for line in lines[1::2])
    first, second = outcome.err.splitlines()
    assert first.startswith(f"error: cannot read {folder / 'b.mp4'}: ")
    assert second == "error: 1 of 4 videos could not be predicted"


def test_json_has_a_line_for_a_broken_video_too(run: Any, files: Any, folder: Path) -> None:
    outcome = run("--weights", files["base.pt"], "--json", folder)
    found = rows(outcome.out)
    assert [Path(row["video"]).name for row in found] == ["a.mp4", "b.mp4", "c.mkv", "d.mp4"]
    assert [("error" in row) for row in found] == [False, True, False, False]


def test_shards_share_out_a_folder(run: Any, files: Any, folder: Path) -> None:
    (folder / "b.mp4").unlink()
    options = ("--weights", files["base.pt"], "--json", folder)
    found = [
        [Path(row["video"]).name for row in rows(run(*options, "--shard", f"{part}/2").out)]
        for part in (1, 2)
    ]
    assert found == [["a.mp4", "d.mp4"], ["c.mkv"]]
    outcome = run(*options, "--shard", "4/4")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


# Pictures.


def test_plot_and_annotation_are_written(run: Any, files: Any, tmp_path: Path) -> None:
    plot, video, gif = tmp_path / "a.png", tmp_path / "a.mp4", tmp_path / "a.gif"
    for annotation in (video, gif):
        outcome = run(
            *("--weights", files["stream.pt"], "--plot", plot, "--annotate", annotation),
            *("--top", 2, files["a.mp4"]),
        )
        assert (outcome.code, outcome.err) == (0, "")
        assert len(outcome.out.splitlines()) == 2
        frames = read_video(str(annotation))
        assert frames.shape == (15, 48, 64, 3)
        # Below the writing, the frames are those of the video.
        original = read_video(str(files["a.mp4"]), 5)
        assert (frames[:, 40:].float() - original[:, 40:].float()).abs().mean() < 8
        assert (frames[:, :30].float() - original[:, :30].float()).abs().mean() > 20
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_history_stays_small_and_keeps_the_last_moment() -> None:
    history = History(most=10)
    for number in range(1001):
        history.add(float(number), torch.tensor([number / 1000]))
        assert len(history.series()[0]) <= 12
    seconds, probabilities = history.series()
    assert seconds[0] == 0
    assert seconds[-1] == 1000
    assert np.allclose(probabilities[:, 0] * 1000, seconds)


# Labels.


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOVINET_PORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache"


def serving(monkeypatch: pytest.MonkeyPatch, server: HubServer, text: str, **answer: Any) -> str:
    """Publish a label file, and have the catalogue name it "kinetics-600"."""
    url = server.serve("/labels.txt", Answer(text.encode(), "text/plain", **answer))
    file = weights.LabelFile("kinetics-600", url, 600)
    monkeypatch.setattr(weights, "label_files", lambda: {"kinetics-600": file})
    return url


def test_published_labels_are_downloaded_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = HubServer()
    serving(monkeypatch, server, "".join(f"label {n}\n" for n in range(600)))
    with server.running():
        first = find_labels("kinetics-600", 600)
    # The server is gone.
    assert find_labels("kinetics-600", 600) == first == tuple(f"label {n}" for n in range(600))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("text", "answer", "message"),
    [
        ("a\nb\n", {}, "2 class names, expected 600"),
        ("a\n" * 600, {"declared_length": 9999}, "1200 of 9999 bytes came|IncompleteRead"),
    ],
    ids=["wrong-length", "cut-short"],
)
def test_labels_that_did_not_come_whole_are_not_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch, text: str, answer: Any, message: str
) -> None:
    server = HubServer()
    url = serving(monkeypatch, server, text, **answer)
    with server.running(), pytest.raises(LabelsError, match=f"{url}: .*({message})"):
        find_labels("kinetics-600", 600)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_labels_that_are_not_there_are_one_line(cache: Path) -> None:
    server = HubServer()
    with server.running(), pytest.raises(LabelsError, match=r"none\.txt: HTTP 404 .*; check the"):
        find_labels(f"{server.url}/none.txt", 600)
    with pytest.raises(LabelsError, match="password"):
        find_labels("https://user:secret@127.0.0.1/a.txt", 600)


def test_the_published_label_file_is_the_authors() -> None:
    file = weights.label_files()["kinetics-600"]
    assert file.classes == 600
    assert file.url.startswith("https://raw.githubusercontent.com/tensorflow/models/")
    assert file.url.endswith("/official/projects/movinet/files/kinetics_600_labels.txt")


# What cannot be used: one line, exit code 2.


def _bad(name: str, tmp_path: Path, files: dict[str, Path], checkpoint: Any) -> list[Any]:
    """Return the arguments of a command that cannot succeed."""
    base, stream, video = (files[key] for key in ("base.pt", "stream.pt", "a.mp4"))
    labels = tmp_path / "labels.txt"
    labels.write_text("one\ntwo\n")
    nameless = tmp_path / "nameless.pt"
    movinet_port.save(checkpoint(input=None), nameless)
    other = tmp_path / "other.pt"
    movinet_port.save(checkpoint(labels=tuple(reversed(NAMES))), other)
    (tmp_path / "none").mkdir()
    return {
        "no-weights": [video],
        "weights-missing": ["--weights", tmp_path / "none.pt", video],
        "no-videos": ["--weights", base, tmp_path / "none"],
        "labels-of-wrong-length": ["--weights", base, "--labels", labels, video],
        "labels-missing": ["--weights", base, "--labels", tmp_path / "none.txt", video],
        "input-unknown": ["--weights", nameless, video],
        "running-base": ["--weights", base, "--stream", video],
        "clips-of-a-stream": ["--weights", stream, "--clips", "2", video],
        "base-with-stream": ["--weights", base, "--weights", stream, video],
        "other-labels": ["--weights", base, "--weights", other, video],
        "shard": ["--weights", base, "--shard", "3/2", video],
        "annotate": ["--weights", stream, "--annotate", tmp_path / "a.avi", video],
        "plot-of-two": ["--weights", stream, "--plot", tmp_path / "a.png", video, video],
        "plot-nowhere": ["--weights", stream, "--plot", tmp_path / "x" / "a.png", video],
        "device": ["--weights", base, "--device", "abacus", video],
        "size": ["--weights", base, "--size", "100000", video],
        "resize": ["--weights", base, "--resize", "100000", video],
        "frames": ["--weights", base, "--frames", "1000000", video],
        "frames-of-a-stream": ["--weights", stream, "--size", "4096", "--frames", "17", video],
        "fps": ["--weights", base, "--fps", "1e9", video],
        "fps-nan": ["--weights", base, "--fps", "nan", video],
        "fps-infinite": ["--weights", stream, "--fps", "inf", video],
        "two-cameras": ["--weights", stream, "--weights", files["stream2.pt"], "webcam"],
    }[name]


BAD = {
    "no-weights": "Missing option '--weights'",
    "weights-missing": "none.pt: no such file",
    "no-videos": "no videos in",
    "labels-of-wrong-length": "labels.txt: 2 class names, expected 7",
    "labels-missing": "none.txt: No such file",
    "input-unknown": "nameless.pt does not say what clips its network was made for: give --size",
    "running-base": "give the weights of a stream network",
    "clips-of-a-stream": "--clips is for base networks",
    "base-with-stream": "need the same mode, found base and stream",
    "other-labels": "need the same class names",
    "shard": "expected I/N such as 1/4",
    "annotate": "expected a name that ends in .mp4",
    "plot-of-two": "draw one video, found 2",
    "plot-nowhere": "No such file or directory",
    "device": "cannot run on 'abacus'",
    "size": "6 frames of 100000 x 100000 pixels: expected sides of at most 4096 pixels",
    "resize": "100000 x 100000 pixels: expected sides of at most 4096 pixels",
    "frames": "1000000 frames of 32 x 32 pixels: expected",
    "frames-of-a-stream": "17 frames of 4096 x 4096 pixels: expected",
    "fps": "--fps 1e+09: expected a rate above 0, and at most 1000",
    "fps-nan": "--fps nan: expected a rate above 0",
    "fps-infinite": "--fps inf: expected a rate above 0",
    "two-cameras": "give one --weights",
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_one_line(
    run: Any, tmp_path: Path, files: Any, checkpoint: Any, name: str
) -> None:
    outcome = run(*_bad(name, tmp_path, files, checkpoint))
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    assert BAD[name] in line
    assert not list(tmp_path.glob("a.*"))


def test_where_to_get_the_600_names_is_said_beside_a_prediction_only(
    run: Any, files: Any, tmp_path: Path, mini_spec: Any, randomised: Any
) -> None:
    model = randomised(MoViNet(mini_spec("base", num_classes=600)))
    weights = tmp_path / "600.pt"
    movinet_port.save(Checkpoint(model.spec, model.state_dict(), input=FORMAT), weights)
    assert "--labels kinetics-600" in run("--weights", weights, files["a.mp4"]).err
    broken = run("--weights", weights, videos.write_sound(tmp_path / "a.wav"))
    assert (broken.code, len(broken.err.splitlines())) == (2, 1)


@pytest.mark.parametrize("mode", ["base", "stream"])
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_single_broken_video_is_one_line(
    run: Any, files: Any, tmp_path: Path, mode: str, as_json: bool
) -> None:
    path = videos.write_sound(tmp_path / "a.wav")
    outcome = run("--weights", files[f"{mode}.pt"], *["--json"] * as_json, path)
    assert (outcome.code, outcome.err) == (
        2,
        f"error: cannot read {path}: no video in it, only audio\n",
    )
    assert len(outcome.out.splitlines()) == as_json


@pytest.mark.parametrize(
    ("package", "options"),
    [("av", ()), ("matplotlib", ("--plot", "a.png")), ("PIL.Image", ("--annotate", "a.gif"))],
)
def test_a_missing_package_names_its_extra(
    run: Any, files: Any, monkeypatch: pytest.MonkeyPatch, package: str, options: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    outcome = run("--weights", files["stream.pt"], *options, files["a.mp4"])
    assert outcome.code == 2
    extra = "video" if package == "av" else "plot"
    assert outcome.err.endswith(f"pip install 'movinet-port[{extra}]'\n")
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="names the camera as Linux does")
def test_ctrl_c_ends_a_camera_with_what_was_seen(files: Any, tmp_path: Path) -> None:
    # A picture without an end, at its own pace, in place of a camera.
    program = (
        "import sys; from movinet_port import video;"
        "from movinet_port.command_line.cli import main;"
        "video._CAMERAS['linux'] = ('lavfi', 'testsrc=size=64x48:rate=10,realtime');"
        "main(sys.argv[1:])"
    )
    plot = tmp_path / "a.png"
    command = [sys.executable, "-c", program, "predict", "--weights", str(files["stream.pt"])]
    command += ["--stream", "--top", "1", "--plot", str(plot), "webcam"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=_interruptible
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read().splitlines()
    assert first.startswith("    0.00 s  ")
    assert process.returncode == 0
    assert " %  name " in rest[-1]
    assert plot.stat().st_size > 1000


def _interruptible() -> None:
    # In the background, shells have their children ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Ensembles in Python.


@torch.inference_mode()
def test_the_softmax_of_an_ensemble_is_the_mean_softmax(checkpoint: Any, video: Any) -> None:
    models = [checkpoint(seed=seed).build() for seed in (0, 1, 2)]
    clip = video(dtype=torch.float32)
    expected = torch.stack([model(clip).softmax(-1) for model in models]).mean(0)
    assert torch.allclose(Ensemble(models)(clip).softmax(-1), expected, atol=1e-6)
    assert torch.allclose(Ensemble(models)([clip] * 3).softmax(-1), expected, atol=1e-6)


@torch.inference_mode()
def test_a_stream_ensemble_carries_on_and_starts_anew(checkpoint: Any, video: Any) -> None:
    models = [checkpoint("stream", seed=seed).build() for seed in (0, 1)]
    ensemble, clip = Ensemble(models), video(dtype=torch.float32)
    whole = ensemble(clip)
    ensemble.clean_activation_buffers()
    ensemble(clip[:, :, :3])
    assert torch.allclose(ensemble(clip[:, :, 3:]), whole, atol=1e-5)


def test_networks_that_do_not_go_together_are_refused(checkpoint: Any, video: Any) -> None:
    base = checkpoint().build()
    with pytest.raises(EnsembleError, match="same mode, found base and stream"):
        Ensemble([base, checkpoint("stream").build()])
    with pytest.raises(EnsembleError, match="at least one"):
        Ensemble([])
    with pytest.raises(EnsembleError, match="3 clips for 2 networks"):
        Ensemble([base, base])([video()] * 3)
    with pytest.raises(MovinetPortError, match="2 class names, expected 7"):
        Predictor([base], [FORMAT], ["too", "few"])


def test_a6_is_a4_and_a5() -> None:
    with torch.device("meta"):
        ensemble = create_ensemble(num_classes=3)
    assert [member.spec.name for member in ensemble.members] == ["a4", "a5"]
