"""A report as one HTML file that needs nothing else: no network, no fonts, no server.

The page is made from the report's JSON, which it also holds (``<script id="report"
type="application/json">``), and shows without JavaScript; the script sorts, filters and tells
values under the pointer. The template is ``templates/report.html.jinja``.
"""

from __future__ import annotations

import base64
import decimal
import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias

from parity.errors import ComparisonError
from parity.reports.report import CAUSES, Report

if TYPE_CHECKING:
    import jinja2

# What the report's JSON holds, as `parity.reports.report` documents it.
Data: TypeAlias = dict[str, Any]

# Powers of ten, in floor units, that the curve shows at least and at most downwards.
_CURVE = (-2, 3)
# The lowest power at which the colours of the heat maps begin, how many powers they cover at
# least, and how many colours there are (report.css).
_HEAT_LOW, _HEAT_POWERS = -1, 3
HEAT_LEVELS = 10
# Rows of a heat map are at least and at most so high, in CSS pixels.
_ROW = (4, 16)
_MAP_HEIGHT = 120
# Explanations of one cause that are shown before "and N more".
_SHOWN = 6
# Widths of the plot, in CSS pixels, at 1280 and at 390, and of a character of its labels.
_PLOT_WIDTHS = {"wide": 1100, "narrow": 290}
_CHARACTER = 7

_NOT_JINJA = (
    "the HTML report needs jinja2, which is not installed; "
    "install it with: pip install 'movinet-port[report]'"
)


def require_jinja() -> Any:
    """Return the module `jinja2`.

    Raises:
        ComparisonError: it is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ComparisonError(_NOT_JINJA) from error
    return jinja2


def render_html(report: Report) -> str:
    """Return a report as one HTML page; the same report gives the same text.

    Raises:
        ComparisonError: jinja2 is not installed.
    """
    text = report.to_json(indent=None)
    # From the JSON and not from the report: what is shown is what a reader of the JSON finds.
    data: Data = json.loads(text)
    script = _resource("report.js")
    page: str = _template().render(
        data=data,
        headline=_headline(data),
        first=next((d for d in data["diagnosis"] if d["cause"] != "unknown"), None),
        tallies=_tallies(data),
        causes=_causes(data["diagnosis"]),
        curve=_curve(data["layers"]),
        worst=_worst(report, data["layers"]),
        scale=_heat_scale(data["layers"]),
        folds=_folds(data["layers"]),
        chunked=any(len(layer["chunks"]) > 1 for layer in data["layers"]),
        noted={key: any(item["note"] for item in data[key]) for key in ("layers", "states")},
        style=_resource("report.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        json=_embedded(text),
    )
    # Names of files can hold bytes that are no text, which UTF-8 cannot write.
    return page.encode("utf-8", "replace").decode("utf-8")


_THREE_DIGITS = decimal.Context(prec=3, rounding=decimal.ROUND_HALF_UP)


def short(value: float | None) -> str:
    """Return a number in three digits; null stands for one that is infinite or not a number."""
    if value is None:
        return "∞"
    if math.isfinite(value):
        # As JavaScript rounds, which the page also does: halves away from zero.
        value = float(_THREE_DIGITS.create_decimal(value))
    if value and not 0.001 <= abs(value) < 999.5:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.3g}"


def _template() -> jinja2.Template:
    jinja = require_jinja()
    environment: jinja2.Environment = jinja.Environment(
        loader=jinja.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def breakable(name: str) -> Any:
        # A line may end after a dot or an underscore; what is copied stays the name.
        pieces = re.findall(r"[^._]*[._]+|[^._]+", name)
        return jinja.utils.markupsafe.Markup("<wbr>").join(pieces)

    environment.filters.update(short=short, plain=_plain, shape=_shape, breakable=breakable)
    return environment.get_template("report.html.jinja")


def _resource(name: str) -> str:
    return (files("parity.reports") / "templates" / name).read_text(encoding="utf-8")


def _embedded(text: str) -> str:
    """Return JSON that cannot end the script element that it stands in, nor begin a comment."""
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _plain(value: Any) -> str:
    """Return a value of "reference", "model" or "input", which may be anything."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _headline(data: Data) -> str:
    layers, states = data["layers"], data["states"]
    name = _plain(data["model"].get("name", "The network"))
    other = _plain(data["reference"].get("name", "the reference"))
    if not layers:
        return f"Nothing of {name} was compared with {other}."
    if data["verdict"] == "parity":
        places = _count(len(layers), "tap")
        places += f" and {_count(len(states), 'state')}" if states else ""
        return f"In all of {places}, {name} computes what {other} computes, to rounding."
    own = sum(layer["introduces"] for layer in layers)
    places = f"{_off(layers)} of {_count(len(layers), 'tap')}"
    places += f" and {_off(states)} of {_count(len(states), 'state')}" if states else ""
    verb = "introduces an error of its own" if own == 1 else "introduce an error of their own"
    return f"{places} are off in {name}, compared with {other}; {own} of the taps {verb}."


def _folds(layers: Sequence[Data]) -> bool:
    """Whether layers only hand on other layers' errors, so that those stand out without them."""
    off = [layer for layer in layers if layer["status"] != "match"]
    return 0 < sum(layer["introduces"] for layer in off) < len(off)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _tallies(data: Data) -> list[Data]:
    """Return the few numbers that stand below the verdict."""
    layers, states = data["layers"], data["states"]
    errors = [layer["end_to_end"] for layer in layers]
    tallies = [
        {"label": "taps off", "of": len(layers), "number": _off(layers)},
        {
            "label": "with an error of their own",
            "number": sum(layer["introduces"] for layer in layers),
        },
    ]
    if states:
        tallies.append({"label": "states off", "of": len(states), "number": _off(states)})
    if errors:
        worst = None if None in errors else max(errors)
        tallies.append({"label": "largest error, in floors", "number": worst})
    return tallies


def _off(items: Iterable[Data]) -> int:
    return sum(item["status"] != "match" for item in items)


def _causes(diagnosis: Sequence[Data]) -> list[Data]:
    """Return the explanations by cause, the first explanation's cause first."""
    rivals: dict[str, int] = {}
    for found in diagnosis:
        rivals[found["layer"]] = rivals.get(found["layer"], 0) + 1
    groups: dict[str, list[Data]] = {}
    for found in diagnosis:
        entry = {**found, "rivals": rivals[found["layer"]]}
        groups.setdefault(found["cause"], []).append(entry)
    return [
        {
            "cause": cause,
            "meaning": CAUSES.get(cause, ""),
            "shown": found[:_SHOWN],
            "more": found[_SHOWN:],
        }
        for cause, found in groups.items()
    ]


def _curve(layers: Sequence[Data]) -> Data:
    """Return the marks of the error curve; x and y are per cent of the plot, y downwards."""
    found = [layer[key] for layer in layers for key in ("end_to_end", "introduced")]
    powers = [math.log10(error) for error in found if error]
    low = max(_CURVE[0], math.floor(min(powers, default=0)))
    low = min(low, -1)
    high = max(_CURVE[1], math.ceil(max(powers, default=0) + 0.05))
    # What is infinite lies above every power.
    infinite = any(layer["end_to_end"] is None or _is_infinite(layer) for layer in layers)
    high += infinite

    def height(error: float | None) -> float:
        if error is None:
            return 0.0
        power = math.log10(error) if error else low
        return round(100 * (1 - (min(max(power, low), high) - low) / (high - low)), 2)

    across = [round(100 * (number + 0.5) / len(layers), 3) for number in range(len(layers))]
    line = " ".join(
        f"{x:g},{height(layer['end_to_end']):g}" for x, layer in zip(across, layers, strict=True)
    )
    own = [
        (layer, x, height(layer["introduced"]))
        for x, layer in zip(across, layers, strict=True)
        if layer["introduced"] is not None or _is_infinite(layer)
    ]
    return {
        "line": line,
        "quiet": "".join(f"M{x:g} {y:g}h0" for layer, x, y in own if not layer["introduces"]),
        "loud": "".join(f"M{x:g} {y:g}h0" for layer, x, y in own if layer["introduces"]),
        "stems": "".join(f"M{x:g} {y:g}V100" for layer, x, y in own if layer["introduces"]),
        "ticks": [
            {"power": power, "y": height(10.0**power)}
            for power in range(low, high + 1 - infinite, 1 if high - low <= 8 else 2)
        ],
        "height": height,
        "infinite": infinite,
        "blocks": _blocks([layer["name"] for layer in layers]),
    }


def _is_infinite(layer: Data) -> bool:
    # Null is an infinite error, or none where the layer cannot be run alone.
    return layer["introduced"] is None and bool(layer["introduces"])


def _blocks(names: Sequence[str]) -> list[Data]:
    """Return runs of layers of one block, with the widths at which its name has room."""
    blocks, start = [], 0.0
    for block, run in groupby(
        names, key=lambda name: re.sub(r"_layer\d+$", "", name.split(".")[0])
    ):
        share = len(list(run)) / len(names)
        room = [
            size for size, width in _PLOT_WIDTHS.items() if share * width > _CHARACTER * len(block)
        ]
        blocks.append(
            {
                "name": block,
                "x": round(100 * start, 3),
                "width": round(100 * share, 3),
                "room": " ".join(room),
            }
        )
        start += share
    return blocks


def _worst(report: Report, layers: Sequence[Data]) -> list[Data]:
    """Return the layers that have a heat map or a histogram, the worst first."""
    by_name = {layer["name"]: (number, layer) for number, layer in enumerate(layers)}
    scale = _heat_scale(layers)
    shown = []
    for result in report.worst(len(report.layers)):
        number, layer = by_name[result.name]
        if layer["heat_map"] or layer["histogram"]:
            shown.append(
                {
                    "index": number,
                    "layer": layer,
                    "map": _heat_map(layer["heat_map"], scale),
                    "histogram": _histogram(layer["histogram"]),
                }
            )
    return shown


def _heat_scale(layers: Sequence[Data]) -> Data:
    """Return the powers of ten at which the colours of all heat maps begin and end."""
    values = [
        value
        for layer in layers
        if layer["heat_map"]
        for row in layer["heat_map"]["values"]
        for value in row
    ]
    powers = [math.log10(value) for value in values if value]
    high = max(math.ceil(max(powers, default=0)), _HEAT_LOW + _HEAT_POWERS)
    low = max(math.floor(min(powers, default=0)), _HEAT_LOW)
    return {
        "low": min(low, high - _HEAT_POWERS),
        "high": high,
        "levels": HEAT_LEVELS,
        "infinite": None in values,
    }


def _heat_map(heat_map: Data | None, scale: Data) -> Data | None:
    """Return the cells of each colour as a path: x counts channels, y frames."""
    if not heat_map or not heat_map["values"]:
        return None
    frames = heat_map["frames"]
    paths: dict[str, list[str]] = {}
    for x, row in enumerate(heat_map["values"]):
        for y, value in enumerate(row):
            paths.setdefault(_level(value, scale), []).append(f"M{x} {y}h1v1h-1z")
    row_height = min(max(_MAP_HEIGHT // len(frames), _ROW[0]), _ROW[1])
    return {
        "paths": {level: "".join(cells) for level, cells in sorted(paths.items())},
        "channels": heat_map["channels"],
        "frames": frames,
        "height": row_height * len(frames),
    }


def _level(value: float | None, scale: Data) -> str:
    if value is None:
        return "infinite"
    power = math.log10(value) if value else scale["low"]
    share = (power - scale["low"]) / (scale["high"] - scale["low"])
    return f"heat-{min(max(int(share * HEAT_LEVELS), 0), HEAT_LEVELS - 1)}"


def _histogram(histogram: Data | None) -> Data | None:
    """Return the bars: x and width in bins, height in per cent, logarithmic."""
    if not histogram or not histogram["counts"]:
        return None
    edges, counts = histogram["edges"], histogram["counts"]
    tallest = math.log10(1 + max(counts, default=0)) or 1.0
    return {
        "bars": [
            # A single value must still be seen.
            {"x": x, "height": max(round(100 * math.log10(1 + count) / tallest, 2), 4)}
            for x, count in enumerate(counts)
            if count
        ],
        "bins": len(counts),
        "ticks": [
            {"power": int(edge), "x": round(100 * (edge - edges[0]) / (edges[-1] - edges[0]), 2)}
            for edge in edges
            if edge % 3 == 0
        ],
        "floor": round(100 * (0 - edges[0]) / (edges[-1] - edges[0]), 2),
        "total": sum(counts) + histogram["zeros"],
        "zeros": histogram["zeros"],
    }
