"""The command ``movinet-port predict``."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from movinet_port.command_line.output import say
from movinet_port.errors import MovinetPortError, one_line, printable
from movinet_port.files import check_outputs
from movinet_port.progress import show_bar

if TYPE_CHECKING:
    from torch import Tensor

    from movinet_port.drawing import History
    from movinet_port.predict import Guess, Prediction, Predictor, RunningPrediction


@click.command()
@click.argument("videos", nargs=-1, required=True, metavar="VIDEO...")
@click.option(
    "--weights",
    required=True,
    multiple=True,
    type=click.Path(dir_okay=False),
    help="Converted file. Given twice or more: the mean of the networks (A6 is A4 and A5).",
)
@click.option(
    "--stream",
    "running",
    is_flag=True,
    help="Print the running prediction as frames arrive; for stream networks.",
)
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes.")
@click.option(
    "--labels",
    "label_source",
    metavar="FILE|URL|kinetics-600",
    help="The classes' names, one per line; kinetics-600 is downloaded once. Default: the "
    "checkpoint's.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False),
    metavar="PNG",
    help="Draw the probabilities over time; for stream networks, one video at a time.",
)
@click.option(
    "--annotate",
    type=click.Path(dir_okay=False),
    metavar="MP4|GIF",
    help="Write the video with the running prediction on it; likewise.",
)
@click.option(
    "--clips",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="For base networks: average so many, spread over the video. One is taken from its middle.",
)
@click.option("--size", type=click.IntRange(1), help="Height and width of the input.")
@click.option("--resize", type=click.IntRange(1), help="Scale the shorter side to this first.")
@click.option("--fps", type=click.FloatRange(0, min_open=True), help="Frames per second.")
@click.option("--frames", type=click.IntRange(1), help="Of a base network's clip.")
@click.option("--shard", metavar="I/N", help="Only every Nth of the videos, from the Ith.")
@click.option(
    "--optimize",
    type=click.Choice(["eager", "compile"]),
    help="Run the network folded, the same within rounding: faster. compile needs a C++ compiler "
    "and minutes.",
)
@click.option("--device", default="cpu", show_default=True, help="Such as cuda or mps.")
def predict(
    videos: tuple[str, ...],
    weights: tuple[str, ...],
    running: bool,
    top: int,
    label_source: str | None,
    as_json: bool,
    plot: str | None,
    annotate: str | None,
    clips: int,
    size: int | None,
    resize: int | None,
    fps: float | None,
    frames: int | None,
    shard: str | None,
    optimize: str | None,
    device: str,
) -> None:
    """Say what is in videos.

    A VIDEO is a file, a folder of them, a URL, or a camera of this machine ("webcam", "webcam:1").
    The size and rate of the input are the checkpoint's, unless options say otherwise.

    Exit code 0: all videos are predicted. 2: one of them or the command line cannot be used; the
    other videos are predicted nevertheless.
    """
    from movinet_port.drawing import require_matplotlib, require_pillow
    from movinet_port.labels import find_labels
    from movinet_port.predict import PredictError, find_videos, load_predictor
    from movinet_port.video import check_writable, import_av

    # What is wrong with the command line is said before anything large is read.
    part = None if shard is None else _shard(shard)
    if sys.stdout is None and plot is None and annotate is None:
        raise PredictError(
            "standard output is closed, so that there is nowhere to print predictions: leave it "
            "open, or give --plot or --annotate"
        )
    import_av()
    if plot is not None:
        require_matplotlib()
    if annotate is not None:
        require_pillow()
        check_writable(annotate)
    found = find_videos(videos)
    if part is not None:
        found = found[part[0] - 1 :: part[1]]
    check_outputs(
        {"--plot": plot, "--annotate": annotate},
        [
            *(("the video", video) for video in found),
            *(("the network", path) for path in weights),
            ("the file of labels", label_source),
        ],
    )
    if (plot is not None or annotate is not None) and len(found) != 1:
        raise PredictError(f"--plot and --annotate draw one video, found {len(found)}")
    predictor = load_predictor(
        weights,
        size=size,
        resize=resize,
        fps=fps,
        frames=frames,
        device=device,
        optimize=optimize,
    )
    if label_source is not None:
        predictor.labels = find_labels(label_source, predictor.num_classes)
    streams = predictor.mode == "stream"
    if not streams and (running or plot is not None or annotate is not None):
        raise PredictError(
            "--stream, --plot and --annotate show a running prediction, and a base network sees "
            "whole clips only: give the weights of a stream network"
        )
    if streams and clips > 1:
        raise PredictError("--clips is for base networks: a stream network sees the whole video")
    output = _Output(predictor, top, as_json, running, several=len(found) > 1)
    failed = 0
    with show_bar(len(found)) as bar:
        for video in found:
            bar.begin(Path(video).name)
            output.aside = bar.aside
            try:
                if streams:
                    _predict_stream(predictor, video, output, plot, annotate, top)
                else:
                    output.result(video, predictor.predict(video, clips))
            except MovinetPortError as error:
                output.failure(video, error)
                if len(found) == 1:
                    raise
                failed += 1
                with bar.aside():
                    say(f"error: {one_line(str(error))}", err=True)
            bar.advance()
    if predictor.labels is None and predictor.num_classes == 600 and failed < len(found):
        click.echo("note: --labels kinetics-600 gives these classes their names", err=True)
    if failed:
        raise PredictError(f"{failed} of {len(found)} videos could not be predicted")


def _shard(text: str) -> tuple[int, int]:
    parts = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    part, parts_in_all = map(int, parts.groups()) if parts else (0, 0)
    if not 1 <= part <= parts_in_all:
        raise click.BadParameter(
            f"{text!r}: expected I/N such as 1/4, with I from 1 to N", param_hint="--shard"
        )
    return part, parts_in_all


def _predict_stream(
    predictor: Predictor,
    video: str,
    output: _Output,
    plot: str | None,
    annotate: str | None,
    top: int,
) -> None:
    from movinet_port.drawing import History
    from movinet_port.predict import CHUNK, Prediction
    from movinet_port.video import write_video

    # Nobody waits for each frame where nothing is shown for it.
    each = output.running or plot is not None or annotate is not None
    history = History() if plot is not None else None
    seen: list[RunningPrediction] = []
    moments = _until_interrupted(video, predictor.stream(video, 1 if each else CHUNK))
    with contextlib.closing(moments):
        shown = _watch(video, moments, output, history, seen)
        if annotate is not None:
            images = (_annotated(predictor, moment, top) for moment in shown)
            write_video(annotate, images, predictor.fps)
        else:
            for _ in shown:
                pass
    last = seen[-1]
    if history is not None and plot is not None:
        _plot(plot, video, predictor, history, top)
    output.result(video, Prediction(last.seconds, last.frames, last.probabilities))


def _until_interrupted(
    video: str, moments: Generator[RunningPrediction, None, None]
) -> Generator[RunningPrediction, None, None]:
    """Let the first Ctrl-C end what has no other end, so that what was seen is not lost."""
    from movinet_port.video import is_live

    interrupted = False

    def stop(number: int, frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        # The second one is for a camera that sends nothing.
        signal.signal(signal.SIGINT, before)

    with contextlib.closing(moments):
        if not is_live(video) or threading.current_thread() is not threading.main_thread():
            yield from moments
            return
        before = signal.signal(signal.SIGINT, stop)
        try:
            for moment in moments:
                yield moment
                if interrupted:
                    return
        finally:
            signal.signal(signal.SIGINT, before)


def _watch(
    video: str,
    moments: Iterator[RunningPrediction],
    output: _Output,
    history: History | None,
    seen: list[RunningPrediction],
) -> Iterator[RunningPrediction]:
    for moment in moments:
        seen[:] = [moment]
        output.moment(video, moment)
        if history is not None:
            history.add(moment.seconds, moment.probabilities)
        yield moment


def _annotated(predictor: Predictor, moment: RunningPrediction, top: int) -> Tensor:
    from movinet_port.drawing import annotated

    guesses = predictor.top(moment.probabilities, top)
    lines = [(guess.name, guess.probability) for guess in guesses]
    return annotated(moment.image, lines, moment.seconds)


def _plot(path: str, video: str, predictor: Predictor, history: History, top: int) -> None:
    from movinet_port.drawing import plot_over_time
    from movinet_port.video import display_name

    seconds, probabilities = history.series()
    # The classes that were likeliest at any time, and not only at the end.
    peaks = predictor.top(probabilities.amax(0), top)
    drawn = probabilities[:, [guess.index for guess in peaks]]
    names = [printable(guess.name) for guess in peaks]
    plot_over_time(path, seconds, drawn, names, printable(display_name(Path(video).name)))


class _Output:
    """Prints predictions, as text or as JSON lines."""

    def __init__(
        self, predictor: Predictor, top: int, as_json: bool, running: bool, several: bool
    ) -> None:
        self.running = running
        self.aside: Any = contextlib.nullcontext
        self._predictor = predictor
        self._top = top
        self._as_json = as_json
        self._several = several

    def moment(self, video: str, moment: RunningPrediction) -> None:
        """Print the running prediction, if it is wanted."""
        if not self.running:
            return
        guesses = self._guesses(moment.probabilities)
        if self._as_json:
            self._print_json(video, moment, guesses, final=False)
            return
        text = "  ".join(f"{100 * g.probability:5.1f} % {printable(g.name)}" for g in guesses)
        self._print(f"{moment.seconds:8.2f} s  {text}")

    def result(self, video: str, prediction: Prediction) -> None:
        """Print the prediction for a video."""
        guesses = self._guesses(prediction.probabilities)
        if self._as_json:
            self._print_json(video, prediction, guesses, final=True)
            return
        lines = [f"{100 * g.probability:6.2f} %  {printable(g.name)}" for g in guesses]
        self._print("\n".join([self._title(video)] * self._several + lines))

    def failure(self, video: str, error: MovinetPortError) -> None:
        """Print why a video has no prediction, if others read it in JSON."""
        from movinet_port.video import display_name

        if self._as_json:
            self._print(json.dumps({"video": display_name(video), "error": one_line(str(error))}))

    def _guesses(self, probabilities: Tensor) -> list[Guess]:
        return self._predictor.top(probabilities, self._top)

    def _title(self, video: str) -> str:
        from movinet_port.video import display_name

        return printable(display_name(video))

    def _print_json(
        self,
        video: str,
        prediction: RunningPrediction | Prediction,
        guesses: list[Guess],
        final: bool,
    ) -> None:
        from movinet_port.video import display_name

        top = [
            {"class": g.index, "label": g.label, "probability": round(g.probability, 6)}
            for g in guesses
        ]
        row = {
            "video": display_name(video),
            "seconds": round(prediction.seconds, 3),
            "frames": prediction.frames,
            "final": final,
            "top": top,
        }
        self._print(json.dumps(row))

    def _print(self, text: str) -> None:
        with self.aside():
            click.echo(text)
