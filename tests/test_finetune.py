"""Fine-tuning on generated videos: what it reaches, resuming, several processes."""

from __future__ import annotations

import csv
import functools
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from movinet_port import MoViNet, load_checkpoint, save
from movinet_port.checkpoint import Checkpoint
from movinet_port.command_line.cli import main
from movinet_port.errors import MovinetPortError
from movinet_port.inputs import InputFormat

pytest.importorskip("av", reason="reading videos needs PyAV, the extra 'video'")

from movinet_port import training
from movinet_port.training import Augmentation, Batches, VideoClips
from movinet_port.video import write_video

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data"
CLIP = InputFormat(size=32, resize=32, frames_per_second=5.0, frames=8)
MOVES = {"down": (2, 0), "left": (0, -2), "right": (0, 2), "up": (-2, 0)}
CLASSES = tuple(MOVES)


def texture() -> Tensor:
    """A pattern that repeats every 16 pixels, (3, 48, 48)."""
    cells = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).tile(1, 1, 3, 3)
    return F.interpolate(cells, (48, 48), mode="bicubic")[0].clamp(0, 1)


def write_moving(folder: Path, videos: int, generator: torch.Generator) -> None:
    """One subfolder for each direction. No frame alone tells the class: it starts anywhere."""
    for name, (down, right) in MOVES.items():
        (folder / name).mkdir(parents=True)
        for number in range(videos):
            start = torch.randint(0, 16, (2,), generator=generator).tolist()
            images = [
                texture().roll((start[0] + down * t, start[1] + right * t), (1, 2))[:, :36, :36]
                for t in range(10)
            ]
            bytes_ = [(255 * image).to(torch.uint8).permute(1, 2, 0) for image in images]
            write_video(str(folder / name / f"{number}.mp4"), bytes_, 5)


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 videos of each class to train on and 8 to validate on."""
    folder = tmp_path_factory.mktemp("moving")
    generator = torch.Generator().manual_seed(0)
    write_moving(folder / "train", 16, generator)
    write_moving(folder / "val", 8, generator)
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 videos of each class, no split."""
    folder = tmp_path_factory.mktemp("few")
    write_moving(folder, 4, torch.Generator().manual_seed(1))
    return folder


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Factory: the converted file of a sample in tests/data, of random weights."""
    folder = tmp_path_factory.mktemp("weights")

    @functools.cache
    def convert(name: str) -> Path:
        from converters import convert as converted

        path = folder / f"{name}.pt"
        save(converted(DATA / f"{name}.tar.gz", verify=False), path)
        return path

    return convert


@pytest.fixture(scope="module")
def tiny(
    tmp_path_factory: pytest.TempPathFactory, tiny_spec: Any, randomised: Any
) -> Callable[[str], Path]:
    """Factory: a checkpoint of the tiny network, "base" or "stream"."""
    folder = tmp_path_factory.mktemp("tiny")

    @functools.cache
    def write(mode: str) -> Path:
        model = randomised(MoViNet(tiny_spec(mode)))
        path = folder / f"{mode}.pt"
        save(Checkpoint(model.spec, model.state_dict(), {}, None, CLIP), path)
        return path

    return write


def finetune(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["finetune", *map(str, arguments)], prog_name="movinet-port")
    return int(ended.value.code or 0)


def read_log(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# What it reaches -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [("era3_mini_base", []), ("era1_mini_stream", ["--clip-frames", 4])],
    ids=["base, whole clips", "stream, clip after clip"],
)
def test_finetuning_tells_four_directions_apart(
    name: str, options: list[object], moving: Path, mini: Callable[[str], Path], tmp_path: Path
) -> None:
    code = finetune(
        moving, "--weights", mini(name), "-o", tmp_path / "run", *options,
        "--epochs", 10, "--learning-rate", 0.01, "--dropout", 0, "--stochastic-depth", 0,
        "--frames", 8, "--size", 32, "--fps", 5, "--min-scale", 1, "--workers", 0,
    )  # fmt: skip
    assert code == 0
    log = read_log(tmp_path / "run")
    assert [row["epoch"] for row in log] == [str(number) for number in range(1, 11)]
    assert max(float(row["val_accuracy"]) for row in log) > 0.95
    best = load_checkpoint(tmp_path / "run/best.pt")
    assert best.labels == CLASSES
    assert best.input == CLIP
    assert best.provenance["started from"]["source"].endswith(f"{name}.tar.gz")
    # The file by itself recognises the videos, without anything of training.
    model, right = best.build(), 0
    for target, label in enumerate(CLASSES):
        for path in sorted((moving / "val" / label).iterdir()):
            model.clean_activation_buffers()
            with torch.no_grad():
                right += model(training.data.read_clip(path, CLIP)[None]).argmax().item() == target
    assert right / 32 == max(float(row["val_accuracy"]) for row in log)


def test_prediction_names_the_classes_that_were_trained(
    few: Path, tiny: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--weights", tiny("base"), "--epochs", 1, "--workers", 0]
    assert finetune(few, *options, "-o", tmp_path / "run") == 0
    capsys.readouterr()
    weights, video = tmp_path / "run/best.pt", few / "up/0.mp4"
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--weights", str(weights), "--top", "4", str(video)])
    assert not ended.value.code
    text = capsys.readouterr().out
    assert all(re.search(rf"\b{name}\b", text) for name in CLASSES)


# Stopping and going on -------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, Tensor]:
    return dict(load_checkpoint(folder / "last.pt").state_dict)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["base", "stream"])
def test_resumed_run_has_the_bits_of_one_that_never_stopped(
    mode: str,
    precision: str,
    few: Path,
    tiny: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = [
        few, "--weights", tiny(mode), "--epochs", 3, "--batch", 4, "--learning-rate", 0.01,
        "--precision", precision, "--workers", 0, "--resume",
    ]  # fmt: skip
    assert finetune(*options, "-o", tmp_path / "whole") == 0

    read = training.data.random_clip
    reads: list[Path] = []

    def failing(path: Path, *args: Any) -> Tensor:
        reads.append(path)
        if len(reads) > 18:  # in the second epoch
            raise KeyboardInterrupt
        return read(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(training.data, "random_clip", failing)
        assert finetune(*options, "-o", tmp_path / "stopped") == 130
    assert len(read_log(tmp_path / "stopped")) == 1
    assert finetune(*options, "-o", tmp_path / "stopped") == 0

    whole, stopped = contents(tmp_path / "whole"), contents(tmp_path / "stopped")
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())
    for one, other in zip(
        read_log(tmp_path / "whole"), read_log(tmp_path / "stopped"), strict=True
    ):
        assert {**one, "seconds": ""} == {**other, "seconds": ""}


def test_run_is_neither_overwritten_nor_mixed_with_another(
    few: Path, tiny: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        few, "--weights", tiny("base"), "--epochs", 1, "--batch", 6, "--workers", 0,
        "-o", tmp_path / "run",
    ]  # fmt: skip
    assert finetune(*options) == 0
    before = (tmp_path / "run/state.pt").read_bytes()
    capsys.readouterr()
    assert finetune(*options) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert finetune(*options, "--resume", "--learning-rate", 0.5) == 2
    assert "learning_rate was 0.001, is 0.5" in capsys.readouterr().err
    assert finetune(*options, "--resume", "--dropout", 0.5) == 2
    assert "dropout was 0.2, is 0.5" in capsys.readouterr().err
    assert (tmp_path / "run/state.pt").read_bytes() == before


# Several processes -----------------------------------------------------------------------------


EXAMPLE = ROOT / "examples/finetune.py"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_two_processes_have_the_loss_curve_of_one_with_twice_the_batch(
    few: Path, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(batch: int, out: str) -> list[str]:
        options = [
            EXAMPLE, few, "--weights", tiny("stream"), "--epochs", 3, "--learning-rate", 0.003,
            "--clip-frames", 4, "--out", tmp_path / out, "--batch", batch, "--device", "cpu",
            "--dropout", 0, "--stochastic-depth", 0, "--workers", 0,
        ]  # fmt: skip
        return [str(option) for option in options]

    monkeypatch.setattr(sys, "argv", command(6, "one"))
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ended = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", *command(3, "two")],
        env={**os.environ, **ONE_THREAD},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    one, two = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    for name in ("train_loss", "val_loss"):
        expected, found = ([float(row[name]) for row in rows] for rows in (one, two))
        assert found == pytest.approx(expected, rel=1e-5)
        assert len(set(expected)) == 3
    first, second = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert first.keys() == second.keys()
    # A constant that the next batch norm subtracts has no gradient but rounding, which AdamW scales
    # up to whole steps; it shows in that norm's mean.
    undetermined = (".projection.norm.bias", ".skip.norm.bias", ".running_mean")
    determined = [key for key in first if not key.endswith(undetermined)]
    assert len(determined) > len(first) / 2
    for key in determined:
        torch.testing.assert_close(second[key], first[key], rtol=1e-3, atol=1e-4)


SYNCHRONISED = """
import sys, torch
from torch import distributed as dist, nn
from movinet_port.training import SyncBatchNorm3d
store, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
x = torch.randn(6, 3, 2, 4, 5, dtype=torch.float64) * 3 + 1
weights = torch.randn(6, 3, 2, 4, 5, dtype=torch.float64)
whole, part = nn.BatchNorm3d(3).double(), SyncBatchNorm3d(3).double()
inputs = [x.clone().requires_grad_(), x[3 * rank : 3 * rank + 3].clone().requires_grad_()]
expected = whole(inputs[0])
found = part(inputs[1])
mine = slice(3 * rank, 3 * rank + 3)
(expected * weights).sum().backward()
(found * weights[mine]).sum().backward()
close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
close(found, expected[mine])
close(inputs[1].grad, inputs[0].grad[mine])
for name, value in whole.state_dict().items():
    close(part.state_dict()[name], value)
dist.destroy_process_group()
"""


def test_synchronised_norm_is_the_norm_of_the_whole_batch(tmp_path: Path) -> None:
    """Its output, its gradient and its statistics; in float64, with two processes."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SYNCHRONISED, str(tmp_path / "store"), str(rank)],
            env={**os.environ, **ONE_THREAD},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors


def test_processes_share_out_the_batches_of_one() -> None:
    alone = Batches(23, 6, seed=3)
    shared = [Batches(23, 3, rank=rank, world_size=2, seed=3) for rank in range(2)]
    for epoch in (1, 2):
        for batches in (alone, *shared):
            batches.epoch = epoch
        together = [sorted(a + b) for a, b in zip(*shared, strict=True)]
        assert together == [sorted(batch) for batch in alone]
        seen = [index for batch in alone for index in batch]
        assert len(seen) == 24
        assert set(seen) == set(range(23))
    alone.epoch = 1
    assert seen != [index for batch in alone for index in batch]


# What learns -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "prefixes"),
    [
        ("head", ("classifier",)),
        ("1", ("block4_", "head.", "classifier.")),
        (2, ("block3_", "block4_", "head.", "classifier.")),
        ("all", ("",)),
    ],
)
def test_only_what_learns_changes_and_the_rest_is_as_in_evaluation(
    train: str | int, prefixes: tuple[str, ...], mini_spec: Any, randomised: Any, video: Any
) -> None:
    model = randomised(MoViNet(mini_spec("stream"), stochastic_depth=0.9))
    training.freeze(model, train)
    training.set_training_mode(model)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model.clean_activation_buffers()
        F.cross_entropy(model(video(4, 3, dtype=torch.float32)), torch.arange(4)).backward()
        optimizer.step()
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed
    assert all(name.startswith(prefixes) for name in changed)
    statistics = {name for name in before if name.startswith(prefixes) and "running" in name}
    assert statistics <= changed


def test_frozen_norms_keep_their_statistics_and_learn_their_scales(
    mini_spec: Any, randomised: Any, video: Any
) -> None:
    model = randomised(MoViNet(mini_spec()))
    training.set_training_mode(model, freeze_norms=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    F.cross_entropy(model(video(2, 3, dtype=torch.float32)), torch.arange(2)).backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    assert all(norm.weight.grad.ne(0).any() for norm in norms)


@pytest.mark.parametrize("train", ["tail", "0", 6, "-1"])
def test_part_that_there_is_not_is_one_line(train: str | int, mini_spec: Any) -> None:
    with pytest.raises(MovinetPortError, match=r"'all', 'head', or a number.*from 1 to 5"):
        training.freeze(MoViNet(mini_spec()), train)


# What is read ----------------------------------------------------------------------------------


def test_random_clip_depends_on_seed_epoch_and_video_alone(few: Path) -> None:
    _, train, _ = training.find_splits(few)

    def clips(seed: int, epoch: int, order: list[int]) -> dict[int, Tensor]:
        data = VideoClips(train, CLIP, Augmentation(0.5, flip=True), seed=seed)
        data.epoch = epoch
        return {index: data[index][0] for index in order}

    one, other = clips(0, 1, [0, 5, 2]), clips(0, 1, [2, 0, 5])
    assert all(torch.equal(one[index], other[index]) for index in one)
    assert not torch.equal(one[0], clips(0, 2, [0])[0])
    assert not torch.equal(one[0], clips(1, 1, [0])[0])
    assert all(clip.shape == (3, 8, 32, 32) for clip in one.values())
    assert all(clip.min() >= 0 and clip.max() <= 1 for clip in one.values())


def test_kept_videos_depend_on_their_names_alone(few: Path) -> None:
    classes, train, val = training.find_splits(few, fraction=0.25)
    assert classes == CLASSES
    assert [video.target for video in val] == [0, 1, 2, 3]
    assert len(train) == 12
    assert not {video.path for video in train} & {video.path for video in val}
    assert training.find_splits(few, fraction=0.25) == (classes, train, val)


def empty_class(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    (folder / "b/1.mp4").touch()


def one_class(folder: Path) -> None:
    (folder / "a").mkdir()


def one_video(folder: Path) -> None:
    for name in "ab":
        (folder / name).mkdir()
        (folder / name / "1.mp4").touch()


def other_class(folder: Path) -> None:
    for name in ("train/run", "train/sit", "val/runs"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.mp4").touch()


@pytest.mark.parametrize(
    ("make", "options", "parts"),
    [
        (empty_class, [], ["a holds no video", ".mp4"]),
        (one_class, [], ["has 1 subfolders", "at least two"]),
        (one_video, ["--val-fraction", 0.9], ["1 videos, too few", "--val"]),
        (other_class, [], ["val has 1 subfolders"]),
        (one_video, ["--val", "nowhere"], ["nowhere", "no such folder"]),
        (one_video, ["--val-fraction", 0], ["1.mp4", "empty"]),
        (one_video, ["--clip-frames", 4], ["--clip-frames is for stream networks"]),
        (one_video, ["--train", "hed"], ["'hed'", "'head'"]),
        (
            one_video,
            ["--val-fraction", 0, "--workers", 1],
            ["cannot read", ".mp4: the file is empty"],
        ),
        (one_video, ["--device", "gpu"], ["'gpu'"]),
    ],
)
def test_data_that_cannot_be_used_are_one_line(
    make: Callable[[Path], None],
    options: list[object],
    parts: list[str],
    tiny: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    common = ["--weights", tiny("base"), "-o", tmp_path / "run", "--workers", 0]
    assert finetune(tmp_path / "data", *common, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line
    assert not (tmp_path / "run").exists()


def test_without_validation_only_the_last_model_is_written(
    few: Path, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    options = ["--val-fraction", 0, "--epochs", 1, "--workers", 0, "--train", "head"]
    assert finetune(few, "--weights", tiny("base"), "-o", tmp_path / "run", *options) == 0
    written = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert written == ["last.pt", "log.csv", "state.pt"]
    (row,) = read_log(tmp_path / "run")
    assert row["val_accuracy"] == "nan"


def test_network_of_unknown_clips_needs_the_sizes(
    few: Path, mini: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(few, "--weights", mini("era3_mini_base"), "-o", tmp_path / "run") == 2
    assert "give --frames, --size and --fps" in capsys.readouterr().err
