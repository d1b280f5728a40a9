"""Draws the figures of ``bench.json``; matplotlib comes with the extra ``bench``.

python benchmarks/plots.py build/bench.json docs
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

INK, OURS, OTHERS, LINE = "#333333", "#1f6f8b", "#c9c9c9", "#d1495b"


def draw(source: Path, folder: Path) -> list[Path]:
    """Draw every plot that the file has figures for.

    Args:
        source: what `benchmarks.speed` wrote.
        folder: where ``bench-*.png`` go.

    Returns:
        The files.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": INK,
            "figure.dpi": 130,
        }
    )
    data = json.loads(source.read_text(encoding="utf-8"))
    about, sections = data["machine"], data["sections"]
    note = f"{about['cpu']}, {about['threads']} threads, {about['date'][:10]}"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, plot in PLOTS.items():
        figure = plot(plt, sections)
        if figure is None:
            continue
        figure.text(0.99, 0.005, note, ha="right", va="bottom", fontsize=6, color="#777777")
        path = folder / f"bench-{name}.png"
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)
        written.append(path)
    return written


def _measured(section: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row for row in section["rows"] if row["rounds"]]


def _bars(plt: Any, sections: Mapping[str, Any], prefix: str) -> Any:
    from matplotlib.ticker import LogLocator, NullFormatter

    keys = [key for key in sections if key.startswith(prefix) and _measured(sections[key])]
    if not keys:
        return None
    rows = [len(_measured(sections[key])) for key in keys]
    figure, all_axes = plt.subplots(
        len(keys),
        1,
        figsize=(7, 0.28 * sum(rows) + 0.75 * len(keys)),
        height_ratios=rows,
        squeeze=False,
    )
    for key, (axes,) in zip(keys, all_axes, strict=True):
        found = sorted(_measured(sections[key]), key=lambda row: float(row["seconds"]))
        values = [1e3 * row["seconds"] for row in found]
        names = [row["name"] for row in found]
        colours = [OURS if name.startswith("ours") else OTHERS for name in names]
        spread = [
            [1e3 * (row["seconds"] - row["fastest"]) for row in found],
            [1e3 * (row["slowest"] - row["seconds"]) for row in found],
        ]
        axes.barh(names, values, color=colours, xerr=spread, ecolor=INK, error_kw={"lw": 0.8})
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(left=min(values) / 3)
        for position, value in enumerate(values):
            axes.text(
                value * 1.06, position - 0.22, f"{float(f'{value:.3g}'):,g}", fontsize=7, color=INK
            )
        axes.set_title(key.removeprefix(prefix).upper(), loc="left", fontsize=9)
    all_axes[-1][0].set_xlabel("milliseconds, log scale; the lines span the rounds")
    figure.tight_layout()
    return figure


def _frame(plt: Any, sections: Mapping[str, Any]) -> Any:
    return _bars(plt, sections, "frame-")


def _clip(plt: Any, sections: Mapping[str, Any]) -> Any:
    return _bars(plt, sections, "clip-")


def _scaling(plt: Any, sections: Mapping[str, Any]) -> Any:
    drawn: list[tuple[str, Callable[[Any], None]]] = []

    def line(key: str, label: str) -> None:
        section = sections.get(key)
        if not section or "fit" not in section:
            return

        def plot(axes: Any) -> None:
            y = [1e3 * row["seconds"] for row in section["rows"]]
            axes.plot(section["x"], [1e3 * v for v in section["line"]], color=LINE, lw=1)
            axes.plot(section["x"], y, "o", color=OURS, ms=4)
            axes.set_xlabel(f"{label}; R^2 = {section['fit']['r_squared']:.4f}")
            axes.set_ylabel("ms for a clip")
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)

        drawn.append((key, plot))

    for key in sections:
        kind, _, name = key.partition("-")
        if kind == "frames":
            line(key, f"{name.upper()} base: frames")
        elif kind == "pixels":
            line(key, f"{name.upper()} base: pixels of a frame")
        elif kind == "batch" and _measured(sections[key]):
            drawn.append((key, _streams(sections, name)))
        elif kind == "threads":
            drawn.append((key, _threads(sections[key], name)))
    if not drawn:
        return None
    figure, all_axes = plt.subplots(1, len(drawn), figsize=(3.1 * len(drawn), 2.8), squeeze=False)
    for (_, plot), axes in zip(drawn, all_axes[0], strict=True):
        plot(axes)
    figure.tight_layout()
    return figure


def _streams(sections: Mapping[str, Any], name: str) -> Callable[[Any], None]:
    def plot(axes: Any) -> None:
        for key, label, colour in (
            (f"batch-{name}", "one batch", OURS),
            (f"apart-{name}", "one by one", OTHERS),
        ):
            rows = _measured(sections.get(key, {"rows": []}))
            streams = [row["arguments"]["streams"] for row in rows]
            rates = [n / row["seconds"] for n, row in zip(streams, rows, strict=True)]
            axes.plot(streams, rates, "o-", color=colour, ms=4, label=label)
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"{name.upper()}: streams in a StreamPool")
        axes.set_ylabel("frames a second")
        axes.legend(frameon=False)

    return plot


def _threads(section: Mapping[str, Any], name: str) -> Callable[[Any], None]:
    def plot(axes: Any) -> None:
        counts = sorted(section, key=int)
        for case in section[counts[0]]:
            rows = [section[count][case] for count in counts]
            if all(row["rounds"] for row in rows):
                values = [rows[0]["seconds"] / row["seconds"] for row in rows]
                axes.plot([int(c) for c in counts], values, "o-", ms=4, label=case)
        axes.set_xlabel(f"{name.upper()}: threads")
        axes.set_ylabel("speed-up over one")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=7)

    return plot


def _flat(plt: Any, sections: Mapping[str, Any]) -> Any:
    keys = [key for key in sections if key.startswith("flat-") and "parts" in sections[key]]
    if not keys:
        return None
    figure, (times, memory) = plt.subplots(1, 2, figsize=(6.5, 2.6))
    for key in keys:
        parts = sections[key]["parts"]
        x = [part["to"] for part in parts]
        times.plot(x, [p["ms"] for p in parts], "o-", color=OURS, ms=4, label="this video")
        fresh = [p["fresh_ms"] for p in parts]
        times.plot(x, fresh, "--", color="0.5", label="one that starts anew")
        times.legend(frameon=False, fontsize=7)
        memory.plot(x, [p["mib"] for p in parts], "o-", color=OURS, ms=4)
    for axes, label in ((times, "median ms a frame"), (memory, "MiB in use")):
        axes.set_ylim(bottom=0)
        axes.set_ylabel(label)
        axes.set_xlabel("frames of one video")
    figure.tight_layout()
    return figure


def _roofline(plt: Any, sections: Mapping[str, Any]) -> Any:
    rows = _measured(sections.get("roofline", {"rows": []}))
    if not rows:
        return None
    rates = {row["name"]: row["facts"]["flops"] / row["seconds"] / 1e9 for row in rows}
    top = next((rate for name, rate in rates.items() if "float32" in name), None)
    shown = {name: rate for name, rate in rates.items() if "bfloat16" not in name}
    figure, axes = plt.subplots(figsize=(6.5, 0.3 * len(shown) + 0.8))
    axes.barh(list(shown), list(shown.values()), color=[OTHERS] + [OURS] * (len(shown) - 1))
    axes.invert_yaxis()
    if top:
        axes.axvline(top, color=LINE, lw=1)
        for position, rate in enumerate(shown.values()):
            axes.text(rate, position, f" {rate:.0f}, {rate / top:.0%}", va="center", fontsize=7)
    axes.set_xlabel("GFLOP/s")
    figure.tight_layout()
    return figure


PLOTS: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "frame": _frame,
    "clip": _clip,
    "scaling": _scaling,
    "flat": _flat,
    "roofline": _roofline,
}


def main() -> None:
    """Draw the plots of one file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="bench.json")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    for path in draw(options.source, options.folder):
        print(path)


if __name__ == "__main__":
    main()
