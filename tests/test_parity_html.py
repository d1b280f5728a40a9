"""The HTML report: what the file holds, and what headless Chromium makes of it.

The reports are built from values or by comparing two PyTorch networks: nothing here needs
TensorFlow.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import fcntl
import json
import math
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch

from movinet_port import MoViNet
from parity import ComparisonError, Diagnosis, LayerResult, ModelReference, Report, compare
from parity.reports.report import HeatMap, Histogram, StateResult

pytest.importorskip("jinja2", reason="the HTML report needs jinja2: pip install jinja2")

from parity.reports.html import render_html, short

HOSTILE = "</script><!--<script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u2028\udc80"
VOID = {"br", "wbr", "img", "input", "link", "meta", "hr", "path", "rect", "polyline"}


def layer(name, end_to_end=1.0, introduced=1.0, **changes):
    values = {
        "floor": 1e-6,
        "introduced_floor": 1e-7,
        "magnitude": 0.5,
        "max_error": 3e-6,
        "shape": (1, 8, 3, 4, 4),
        "chunks": (end_to_end, end_to_end),
        **changes,
    }
    return LayerResult(name, end_to_end, introduced, **values)


def state(name, chunk, end_to_end=1.0):
    return StateResult(name, chunk, end_to_end, 0.5, 1e-6, 0.5, (1, 8, 2, 4, 4))


def report_of(*layers, **changes):
    given = {"reference": {"name": "ref.tar.gz"}, "model": {"name": "a.pt"}, "input": {}, **changes}
    return Report(layers=layers, **given)


def faulty():
    """A report with everything a report can have."""
    heat_map = HeatMap((0, 3), (0, 1, 2), ((0.0, 12.5, math.inf), (1e5, 0.3, 70.0)))
    histogram = Histogram((-1.0, 0.0, 1.0, 2.0), (5, 0, 2), 9)
    return report_of(
        layer("input", 0.0, 0.0),
        layer("stem.conv", 2.5, 0.75),
        layer(
            "block0_layer0.expansion.conv",
            4321.0,
            98765.4,
            heat_map=heat_map,
            histogram=histogram,
        ),
        layer("block0_layer0", math.inf, None, note="shape (1, 2), the reference's is (1, 3)"),
        layer("classifier", 20.0, 0.1),
        reference={"kind": "saved_model", "name": "ref.tar.gz", "nodes": [1, 2]},
        input={"kind": "random", "shape": [1, 3, 3, 4, 4], "chunks": [1, 2]},
        states=(state("head.pool_buffer", 0), state("head.pool_buffer", 1, 60.0)),
        diagnosis=(
            Diagnosis(
                "block0_layer0.expansion.conv",
                "block0_layer0.expansion.conv.weight",
                "kernel-flip",
                "it is reversed along width",
                98765.4,
                0.5,
                "Flip it along width.",
            ),
            Diagnosis("block0_layer0", None, "unknown", "nothing fits", math.inf, None, "Look."),
        ),
        seconds={"running the reference": 1.25},
    )


class Page(HTMLParser):
    """Elements as (tag, attributes, text), and a check that they nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))

    def handle_endtag(self, tag):
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data):
        for element in self.open:
            self.elements[element][2].append(data)

    def find(self, tag, **attributes):
        return [
            ({**found}, "".join(text))
            for name, found, text in self.elements
            if name == tag and all(found.get(key) == value for key, value in attributes.items())
        ]

    @property
    def json(self) -> Any:
        ((_, text),) = self.find("script", id="report")
        return json.loads(text)


# The file


def test_the_page_holds_the_reports_own_json():
    report = faulty()
    assert Page(render_html(report)).json == report.to_dict()


def test_the_same_report_gives_the_same_text():
    assert render_html(faulty()) == render_html(faulty())


def test_the_page_asks_for_nothing_outside_itself():
    text = render_html(faulty())
    page = Page(text)
    addresses = [
        value
        for _, attributes, _ in page.elements
        for key, value in attributes.items()
        if key in ("src", "href", "action", "data", "srcset")
    ]
    assert addresses
    assert all(value.startswith("#") or value == "data:," for value in addresses)
    assert not re.search(r"@import|url\(|https?:|fetch\(|XMLHttp", text)
    ((policy, _),) = page.find("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'")


@pytest.mark.parametrize("place", ["name", "note", "model", "reference", "key", "diagnosis"])
def test_names_from_files_stay_text(place):
    report = faulty()
    first, *rest = report.layers
    found, other = report.diagnosis
    changed = {
        "name": {"layers": (dataclasses.replace(first, name=HOSTILE), *rest)},
        "note": {"layers": (dataclasses.replace(first, note=HOSTILE), *rest)},
        "model": {"model": {"name": HOSTILE}},
        "reference": {"reference": {"name": "x", "more": [HOSTILE]}},
        "key": {"input": {HOSTILE: 1}},
        "diagnosis": {"diagnosis": (dataclasses.replace(found, parameter=HOSTILE), other)},
    }[place]
    plain, page = (
        Page(render_html(report)),
        Page(render_html(dataclasses.replace(report, **changed))),
    )
    tags = {tag for tag, _, _ in plain.elements}
    assert {tag for tag, _, _ in page.elements} == tags
    assert len(page.find("script")) == len(plain.find("script")) == 2
    assert not any(key.startswith("on") for _, found, _ in page.elements for key in found)
    assert page.json == dataclasses.replace(report, **changed).to_dict()
    # As the reader sees it: all of it, but for the byte that is no text.
    shown = "".join(text for _, text in page.find("body"))
    assert HOSTILE.replace("\udc80", "?") in shown.replace('\\"', '"').replace("\\u2028", "\u2028")


def test_every_number_of_the_tables_is_the_jsons():
    page = Page(render_html(faulty()))
    keys = "introduced inherited end_to_end floor magnitude max_error"
    expected = [entry[key] for entry in page.json["layers"] for key in keys.split()]
    state_keys = "introduced end_to_end floor magnitude"
    expected += [entry[key] for entry in page.json["states"] for key in state_keys.split()]
    text = render_html(faulty())
    tables = re.findall(r"<tbody>.*?</tbody>", text, flags=re.DOTALL)
    cells = re.findall(r'<data value="([^"]*)">([^<]*)</data>', "".join(tables))
    assert [float(value) if value else None for value, _ in cells] == expected
    for value, said in cells:
        assert (
            said in "∞\u2013" if not value else float(said) == pytest.approx(float(value), rel=5e-3)
        )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "∞"),
        (0.0, "0"),
        (12.0, "12"),
        (0.0012345, "0.00123"),
        (0.00099, "9.90e-4"),
        (999.4, "999"),
        (999.6, "1.00e3"),
        (4321.0, "4.32e3"),
        (152500.0, "1.53e5"),
        (1e-38, "1.00e-38"),
    ],
)
def test_numbers_are_said_in_three_digits(value, said):
    assert short(value) == said


def test_an_error_that_is_not_there_is_told_from_an_infinite_one():
    layers = [layer("alone", 1.0, None), layer("broken", 1.0, math.inf)]
    rows = re.findall(r'<tr id="layer-.*?</tr>', render_html(report_of(*layers)), flags=re.DOTALL)
    said = [re.findall(r"<data[^>]*>([^<]*)</data>", row)[0] for row in rows]
    assert said == ["\u2013", "∞"]


def test_the_verdict_and_the_diagnosis_come_first():
    page = Page(render_html(faulty()))
    assert [found["id"] for found, _ in page.find("section")] == [
        "diagnosis",
        "curve",
        "worst",
        "layers",
        "states",
        "facts",
    ]
    ((_, verdict),) = page.find("h1")
    assert verdict == "mismatch"
    ((_, headline),) = page.find("p", **{"class": "headline"})
    assert headline == (
        "3 of 5 taps and 1 of 2 states are off in a.pt, compared with ref.tar.gz; "
        "1 of the taps introduces an error of its own."
    )
    (diagnosis,) = [text for _, text in page.find("section", id="diagnosis")]
    for said in ("kernel-flip", "block0_layer0.expansion.conv.weight", "Flip it along width."):
        assert said in diagnosis
    assert diagnosis.index("kernel-flip") < diagnosis.index("unknown")


def test_the_page_leads_with_a_cause_and_its_mend_and_says_once_what_a_tap_is():
    page = Page(render_html(faulty()))
    ((_, first),) = page.find("p", **{"class": "first"})
    assert first == (
        "kernel-flip in block0_layer0.expansion.conv.weight: it is reversed along width. "
        "Flip it along width."
    )
    classes = [found.get("class") for tag, found, _ in page.elements if tag == "p"]
    assert classes.index("first") < classes.index("headline")
    ((_, body),) = page.find("body")
    assert body.count("A tap is ") == 1
    assert not Page(render_html(report_of(layer("a", 1.0, 1.0)))).find("p", **{"class": "first"})


def test_of_many_places_of_one_cause_every_one_is_in_the_page():
    names = [f"block{number}_layer0.squeeze_excitation" for number in range(20)]
    found = [Diagnosis(name, None, "gate", "g", 900.0, 0.5, "Mend.") for name in names]
    page = Page(render_html(report_of(*[layer(n, 900.0, 900.0) for n in names], diagnosis=found)))
    ((_, heading),) = [entry for entry in page.find("h3") if "gate" in entry[1]]
    assert "in 20 places" in heading
    (diagnosis,) = [text for _, text in page.find("section", id="diagnosis")]
    assert all(name in diagnosis for name in names)


def test_headings_of_tables_have_a_scope_and_figures_a_name():
    page = Page(render_html(faulty()))
    assert {found["scope"] for found, _ in page.find("th")} == {"col", "row"}
    assert all(found["role"] == "img" and found["aria-label"] for found, _ in page.find("svg"))
    labels = page.find("label")
    assert len(labels) == len(page.find("input")) + len(page.find("select"))
    assert all(text.strip() for _, text in labels)
    ids = [found["id"] for _, found, _ in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    for _, found, _ in page.elements:
        assert found.get("aria-labelledby", ids[0]) in ids


@pytest.mark.parametrize(
    ("error", "fill"), [(0.0, "heat-0"), (1e5, "heat-9"), (math.inf, "infinite")]
)
def test_heat_maps_colour_by_the_error(error, fill):
    heat_map = HeatMap((5,), (0, 1), ((error, 1e5),))
    text = render_html(report_of(layer("stem.conv", heat_map=heat_map)))
    assert f'<path class="{fill}" d="M0 0' in text


def test_the_curve_has_one_point_for_each_layer():
    page = Page(render_html(faulty()))
    ((line, _),) = page.find("polyline")
    points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
    assert len(points) == 5
    assert [x for x, _ in points] == [10, 30, 50, 70, 90]
    zero, small, large, infinite, suspect = (y for _, y in points)
    assert 100 == zero > small > suspect > large > infinite == 0


@pytest.mark.parametrize(
    "report",
    [
        report_of(),
        report_of(layer("", 0.0, None, shape=(), chunks=())),
        report_of(layer("x", math.nan, math.nan, max_error=math.nan, magnitude=0.0)),
        report_of(layer("x", 1e76, 1e76), model={}, reference={}),
        report_of(layer("x", histogram=Histogram((), (), 0), heat_map=HeatMap((), (), ()))),
        report_of(layer("x", histogram=Histogram((0.0, 1.0), (0,), 4))),
    ],
    ids=["no layers", "scalar", "not numbers", "huge", "empty figures", "no difference"],
)
def test_any_report_is_shown(report):
    page = Page(render_html(report))
    assert page.json == report.to_dict()
    assert len(page.find("tr")) == len(report.layers) + 1


def test_what_to_install_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ComparisonError) as caught:
        render_html(faulty())
    assert str(caught.value) == (
        "the HTML report needs jinja2, which is not installed; "
        "install it with: pip install 'movinet-port[report]'"
    )


# The browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
browser_test = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="needs Chromium; on Debian: apt-get install chromium"
    ),
]


class Browser:
    """Chromium's DevTools protocol over its pipe: JSON, each message ended by a zero byte."""

    def __init__(self, profile: str) -> None:
        theirs_in, self._to = self._pipe()
        self._from, theirs_out = self._pipe()
        # Chromium expects its pipe at 3 and 4, which may be taken here.
        start = (
            f"import os, sys; os.dup2({theirs_in}, 3); os.dup2({theirs_out}, 4);"
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        browser = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", start, *browser],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs_in, theirs_out),
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.problems: list[str] = []

    def start(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    @staticmethod
    def _pipe() -> tuple[int, int]:
        # Above 9, so that putting one end at 3 or 4 does not overwrite another.
        ends = os.pipe()
        above = fcntl.fcntl(ends[0], fcntl.F_DUPFD, 10), fcntl.fcntl(ends[1], fcntl.F_DUPFD, 10)
        for end in ends:
            os.close(end)
        for end in above:
            os.set_inheritable(end, False)
        return above

    def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(
        self, address: str, width: int = 1280, dark: bool = False, script: bool = True
    ) -> None:
        self.problems.clear()
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=address)
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def value(self, script: str) -> Any:
        """Return what an expression gives in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def close(self) -> None:
        with contextlib.suppress(OSError, AssertionError):
            os.write(self._to, b'{"id":0,"method":"Browser.close"}\0')
        os.close(self._to)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._from)

    def _read(self) -> Any:
        deadline = time.monotonic() + 90
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], deadline - time.monotonic())
            assert ready, "Chromium does not answer"
            part = os.read(self._from, 1 << 20)
            assert part, "Chromium ended"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, found: Any) -> None:
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(found["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.problems.append(str(found["args"]))
        elif method == "Log.entryAdded":
            self.problems.append(found["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            address = found["request"]["url"]
            if not address.startswith(("file:", "data:", "about:")):
                self.problems.append(f"asks for {address}")


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with contextlib.closing(Browser(str(tmp_path_factory.mktemp("chromium")))) as opened:
        opened.start()
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory, mini_spec, one_thread):
    """Name -> address and report: right and faulty networks, and names from a hostile file."""
    torch.manual_seed(0)
    right = MoViNet(mini_spec("stream")).eval()
    wrong = copy.deepcopy(right)
    convs = [module for name, module in wrong.named_modules() if name.endswith("projection.conv")]
    with torch.no_grad():
        convs[1].weight.mul_(1.01)
        convs[4].weight.copy_(convs[4].weight.flip(1))
    clip = np.random.default_rng(0).random((1, 3, 6, 32, 32), dtype=np.float32)
    bad = faulty()
    named = [dataclasses.replace(bad.layers[0], name=HOSTILE), *bad.layers[1:]]
    reports = {
        "right": compare(ModelReference(right), copy.deepcopy(right), clip, chunks=[1, 2, 3]),
        "wrong": compare(ModelReference(right), wrong, clip, chunks=[1, 2, 3], name="w.pt"),
        "hostile": dataclasses.replace(bad, layers=tuple(named), model={"name": HOSTILE}),
    }
    assert reports["right"]
    assert not reports["wrong"]
    folder = tmp_path_factory.mktemp("pages")
    for name, report in reports.items():
        (folder / f"{name}.html").write_text(render_html(report), encoding="utf-8")
    return {name: ((folder / f"{name}.html").as_uri(), found) for name, found in reports.items()}


ROWS = "[...document.querySelectorAll('#layers-table tbody tr')].filter(row => !row.hidden)"
JSON = "JSON.parse(document.getElementById('report').textContent)"


def unfold(browser):
    """Show the layers too that have no error of their own."""
    browser.value(
        "(() => { const box = document.querySelector('#layers input[name=introduces]');"
        "box.checked = false; box.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def order(browser):
    return browser.value(f"{ROWS}.map(row => Number(row.dataset.index))")


@pytest.mark.usefixtures("one_thread")
class TestInChromium:
    pytestmark = browser_test

    @pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
    @pytest.mark.parametrize("width", [1280, 390])
    @pytest.mark.parametrize("name", ["right", "wrong", "hostile"])
    def test_renders_without_a_complaint_and_fits(self, browser, pages, name, width, dark):
        address, report = pages[name]
        browser.open(address, width, dark)
        assert browser.value("document.querySelector('h1').innerText.toLowerCase()") == (
            report.verdict
        )
        assert browser.value("document.documentElement.scrollWidth") <= width
        light = browser.value(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
            ".reduce((sum, part) => sum + part) > 384"
        )
        assert light is not dark
        assert browser.problems == []

    def test_its_numbers_are_the_jsons(self, browser, pages):
        address, report = pages["wrong"]
        browser.open(address)
        unfold(browser)
        held = browser.value(JSON)
        assert held == report.to_dict()
        cells = browser.value(
            f"{ROWS}.map(row => [row.cells[1].innerText, row.cells[2].innerText, ...[3,4,5,6,7,8]"
            ".map(cell => [row.cells[cell].querySelector('data').value, row.cells[cell].innerText])"
            "])"
        )
        assert len(cells) == len(held["layers"])
        keys = ("introduced", "inherited", "end_to_end", "floor", "magnitude", "max_error")
        for (name, status, *numbers), entry in zip(cells, held["layers"], strict=True):
            assert (name, status) == (entry["name"], entry["status"])
            for (value, said), key in zip(numbers, keys, strict=True):
                assert float(value) == entry[key]
                assert float(said) == pytest.approx(entry[key], rel=5e-3)

    def test_its_table_sorts(self, browser, pages):
        address, report = pages["wrong"]
        browser.open(address)
        unfold(browser)
        layers = report.to_dict()["layers"]
        numbers = list(range(len(layers)))
        assert order(browser) == numbers

        def click(key):
            heading = f"document.querySelector('#layers-table th[data-key={key}]')"
            browser.value(f"{heading}.querySelector('button').click()")
            return browser.value(f"{heading}.getAttribute('aria-sort')")

        assert click("end_to_end") == "descending"
        assert order(browser) == sorted(numbers, key=lambda i: -layers[i]["end_to_end"])
        assert click("end_to_end") == "ascending"
        assert order(browser) == sorted(numbers, key=lambda i: layers[i]["end_to_end"])
        assert click("introduced") == "descending"
        assert layers[order(browser)[0]]["introduces"]
        assert click("status") == "descending"
        assert layers[order(browser)[0]]["status"] == "mismatch"
        assert click("name") == "ascending"
        names = [layers[index]["name"] for index in order(browser)]
        assert (
            names.index("block0_layer0") < names.index("block1_layer1") < names.index("stem.conv")
        )
        assert click("index") == "ascending"
        assert order(browser) == numbers

    def test_an_infinite_error_sorts_first_and_a_missing_one_last(self, browser, pages):
        browser.open(pages["hostile"][0])
        unfold(browser)
        for key, place in (("end_to_end", 0), ("introduced", -1)):
            browser.value(
                f"document.querySelector('#layers-table th[data-key={key}] button').click()"
            )
            assert order(browser)[place] == 3

    def test_layers_that_only_inherit_an_error_are_folded(self, browser, pages):
        address, report = pages["wrong"]
        browser.open(address)
        own = [index for index, layer in enumerate(report.layers) if layer.introduces]
        assert order(browser) == own
        assert sum(not layer for layer in report.layers) > len(own) > 0
        unfold(browser)
        assert len(order(browser)) == len(report.layers)
        browser.open(pages["right"][0])
        assert len(order(browser)) == len(pages["right"][1].layers)

    def test_its_table_filters(self, browser, pages):
        address, report = pages["wrong"]
        browser.open(address)
        layers = report.to_dict()["layers"]

        def shown(field, value):
            browser.value(
                "(() => { const form = document.querySelector('form[data-for=layers-table]');"
                "form.reset(); form.elements.introduces.checked = false;"
                f"const field = form.elements['{field}'];"
                f"field.{'checked' if value is True else 'value'} = {json.dumps(value)};"
                "field.dispatchEvent(new Event('input', {bubbles: true})); })()"
            )
            said = browser.value("document.querySelector('#layers output').innerText")
            found = order(browser)
            assert said == f"{len(found)} of {len(layers)}"
            return found

        def expected(fits):
            found = [index for index, entry in enumerate(layers) if fits(entry)]
            assert 0 < len(found) < len(layers)
            return found

        assert shown("name", "Projection") == expected(lambda e: "projection" in e["name"])
        assert shown("name", "block?_layer0") == expected(
            lambda e: re.fullmatch(r"block._layer0", e["name"])
        )
        assert shown("name", "(nothing [like this") == []
        assert shown("status", "mismatch") == expected(lambda e: e["status"] == "mismatch")
        assert shown("status", "off") == expected(lambda e: e["status"] != "match")
        assert shown("introduces", True) == expected(lambda e: e["introduces"])
        assert browser.problems == []

    def test_the_pointer_is_told_the_jsons_values(self, browser, pages):
        address, report = pages["wrong"]
        browser.open(address)
        held = report.to_dict()["layers"]

        def tip(selector):
            x, y = browser.value(
                f"(() => {{ const e = document.querySelector('{selector}'); e.scrollIntoView("
                "{block: 'center'}); const b = e.getBoundingClientRect();"
                "return [b.left + 1, b.top + 1] })()"
            )
            browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
            return browser.value("document.getElementById('tip').textContent")

        assert tip(".area").startswith(f"{held[0]['name']}\n{held[0]['status']}\n")
        worst = browser.value("Number(document.querySelector('.map svg').dataset.layer)")
        heat_map = held[worst]["heat_map"]
        assert tip(".map svg") == (
            f"channel {heat_map['channels'][0]}, frame 0: {short(heat_map['values'][0][0])} floors"
        )
        assert tip(".histogram svg").endswith(f": {held[worst]['histogram']['counts'][0]} values")
        assert browser.problems == []

    def test_a_diagnosis_leads_to_its_row_even_if_that_is_filtered_out(self, browser, pages):
        address, report = pages["wrong"]
        browser.open(address)
        browser.value(
            "(() => { const name = document.querySelector('#layers input[name=name]');"
            "name.value = 'nothing'; name.dispatchEvent(new Event('input', {bubbles: true}));"
            "document.querySelector('#diagnosis a.to-layer').click() })()"
        )
        named = browser.value("document.querySelector('tr.pointed th').innerText")
        assert named == report.diagnosis[0].layer
        assert len(order(browser)) == len(report.layers)

    def test_everything_but_the_controls_is_there_without_scripts(self, browser, pages):
        address, report = pages["wrong"]
        browser.open(address, script=False)
        document = browser.call("DOM.getDocument")["root"]["nodeId"]

        def count(selector):
            found = browser.call("DOM.querySelectorAll", nodeId=document, selector=selector)
            return len(found["nodeIds"])

        assert count("#layers-table tbody tr") == len(report.layers)
        assert count("form.filter[hidden]") == count("form.filter") == 2
        assert count(".map path") > 0
        assert browser.problems == []

    def test_it_prints(self, browser, pages):
        browser.open(pages["wrong"][0], dark=True)
        browser.call("Emulation.setEmulatedMedia", media="print", features=[])
        assert browser.value("getComputedStyle(document.querySelector('.filter')).display") == (
            "none"
        )
        # All rows and not a window on them, and no wider than a page of A4.
        assert browser.value("getComputedStyle(document.querySelector('.scroll')).maxHeight") == (
            "none"
        )
        assert len(browser.call("Page.printToPDF", printBackground=True)["data"]) > 10_000
        assert browser.problems == []
