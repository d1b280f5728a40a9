"""Pictures of predictions: probabilities over time, and frames with their classes written on.

They need Matplotlib, and Pillow, which comes with it (the extra ``plot``).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from movinet_port.errors import MovinetPortError
from movinet_port.files import whole_file


class DrawingError(MovinetPortError):
    """A picture cannot be drawn."""


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DrawingError("drawing needs Matplotlib: pip install 'movinet-port[plot]'") from error


def require_matplotlib() -> None:
    """Raise `DrawingError` unless Matplotlib is installed."""
    _imported("matplotlib")


def require_pillow() -> None:
    """Raise `DrawingError` unless Pillow is installed."""
    _imported("PIL.Image")


class History:
    """Probabilities over time in bounded memory: when it is full, every other moment goes."""

    def __init__(self, most: int = 500) -> None:
        self._most = most
        self._every = 1
        self._count = 0
        self._last: tuple[float, Tensor] | None = None
        self._kept: list[tuple[float, Tensor]] = []

    def add(self, seconds: float, probabilities: Tensor) -> None:
        """Keep a moment, (classes,), or let it pass."""
        self._last = (seconds, probabilities)
        if self._count % self._every == 0:
            self._kept.append(self._last)
        self._count += 1
        if len(self._kept) > self._most:
            self._kept = self._kept[::2]
            self._every *= 2

    def series(self) -> tuple[list[float], Tensor]:
        """Return the seconds, and the probabilities, (moments, classes)."""
        moments = list(self._kept)
        if self._last is not None and (not moments or moments[-1] is not self._last):
            moments.append(self._last)
        if not moments:
            raise DrawingError("there is nothing to draw: no predictions were made")
        return [seconds for seconds, _ in moments], torch.stack([p for _, p in moments])


def plot_over_time(
    path: str, seconds: Sequence[float], probabilities: Tensor, names: Sequence[str], title: str
) -> None:
    """Write a PNG with the probability of each class over time; it appears whole or not at all.

    Args:
        path: the file.
        seconds: when each prediction was made.
        probabilities: (moments, classes) of the classes to draw.
        names: theirs.
        title: above the picture.

    Raises:
        MovinetPortError: Matplotlib is not installed, or the file cannot be written.
    """
    _imported("matplotlib")
    figure = _imported("matplotlib.figure").Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    # A name may hold a dollar sign, which would start a formula.
    names = [name.replace("$", r"\$") for name in names]
    for name, values in zip(names, probabilities.T.tolist(), strict=True):
        axes.plot(seconds, values, label=name, marker="." if len(seconds) < 3 else "")
    axes.set(
        xlabel="seconds", ylabel="probability", ylim=(0, 1.02), title=title.replace("$", r"\$")
    )
    axes.margins(x=0.01)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def annotated(image: Tensor, lines: Sequence[tuple[str, float]], seconds: float) -> Tensor:
    """Return a frame with class names and bars of their probabilities at its top.

    Args:
        image: RGB, (height, width, 3), uint8.
        lines: names and probabilities.
        seconds: the frame's time.

    Raises:
        DrawingError: Pillow is not installed.
    """
    pil, draw_module, fonts = (
        _imported(f"PIL.{module}") for module in ("Image", "ImageDraw", "ImageFont")
    )
    picture = pil.fromarray(image.numpy()).convert("RGB")
    text_size = max(8, min(picture.size) // 20)
    font = fonts.load_default(size=text_size)
    row = round(text_size * 1.35)
    shade = pil.new("RGBA", picture.size)
    draw = draw_module.Draw(shade)
    draw.rectangle((0, 0, picture.width, row * (len(lines) + 1)), fill=(0, 0, 0, 150))
    draw.text((row // 3, 0), f"{seconds:.1f} s", font=font, fill=(200, 200, 200, 255))
    for number, (name, probability) in enumerate(lines, start=1):
        top = number * row
        length = round(probability * picture.width)
        if length:
            draw.rectangle((0, top + 1, length, top + row - 1), fill=(30, 110, 200, 170))
        text = f"{100 * probability:.0f} %  {name}"
        draw.text((row // 3, top), text, font=font, fill=(255, 255, 255, 255))
    picture.paste(shade, mask=shade)
    return torch.from_numpy(np.array(picture))
