"""The compiled library: what PyTorch computes, whatever the sizes and however clips are cut."""

from __future__ import annotations

import ctypes.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from movinet_port import BlockSpec, HeadSpec, ModelSpec, MoViNet, StemSpec, optimize
from movinet_port.fast import extension
from movinet_port.fast import library as compiled
from movinet_port.fast.extension import ClipKernel, Cut, FrameKernel, MatrixKernel
from movinet_port.fast.fold import Matrix
from movinet_port.fast.layers import Pointwise
from movinet_port.fast.library import Library, Members, libraries, source

pytestmark = pytest.mark.usefixtures("one_thread")

needs_library = pytest.mark.skipif(
    not extension.libraries(), reason="no compiled library here, or no AVX2"
)

# The largest value's share that rounding may change.
ROUNDING = 2e-5


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture(params=extension.libraries() or (None,), ids=lambda one: f"{one and one.lanes}")
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    """One of the libraries of this CPU, and no other."""
    if request.param is None:
        pytest.skip("no compiled library here, or no AVX2")
    monkeypatch.setattr(extension, "libraries", lambda: (request.param,))
    return request.param


@pytest.mark.skipif(
    sys.platform != "linux"
    or platform.machine() != "x86_64"
    or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512")
    or not shutil.which("g++"),
    reason="not a machine that it is for",
)
def test_the_library_is_there_where_it_can_be_compiled() -> None:
    assert extension.libraries()


def test_a_library_of_another_version_is_not_used() -> None:
    name = ctypes.util.find_library("c")
    if name is None:
        pytest.skip("no C library of that name here")
    with pytest.raises(OSError, match="another version"):
        Library(name)


MEMBERS = source("members.h")
# How another list of members may differ, and what is found first.
OTHER_LISTS = {
    "exchanged": ("INPUT(cells) INPUT(bias)", "INPUT(bias) INPUT(cells)", "Stem.cells: Input"),
    "renamed": ("NUMBER(squeezed)", "NUMBER(squashed)", "Layer.squeezed: Number"),
    "retyped": ("REAL(limit)", "NUMBER(limit)", "Layer.limit: Real"),
    "added": ("REAL(limit)", "REAL(limit) REAL(more)", "Layer: "),
    "activations": ("kRelu, kRelu6", "kRelu6, kRelu", "activations: kNone, kHardSwish, kRelu"),
    "taps": ("MOST_TAPS 7", "MOST_TAPS 9", "Bottleneck: "),
}


def other_list(name: str) -> str:
    before, after, _ = OTHER_LISTS[name]
    assert before in MEMBERS
    return MEMBERS.replace(before, after)


@pytest.fixture
def other_library(tmp_path: Path) -> Callable[[str], Path]:
    """Factory: what a library compiled from another list says of its members."""
    if not shutil.which("g++"):
        pytest.skip("needs g++")

    def build(name: str) -> Path:
        (tmp_path / "members.h").write_text(other_list(name))
        shutil.copy(Path(compiled.__file__).with_name("structures.h"), tmp_path)
        code = """
            #include "structures.h"
            extern "C" const char* movinet_port_layout() {
                static const std::string text = movinet_port::layout();
                return text.c_str();
            }
        """
        command = ["g++", "-std=gnu++17", "-shared", "-fPIC", "-x", "c++", "-", "-o", "_avx2.so"]
        subprocess.run(command, cwd=tmp_path, input=code, text=True, check=True)
        return tmp_path / "_avx2.so"

    return build


@pytest.mark.parametrize("name", OTHER_LISTS)
def test_a_library_compiled_from_another_list_of_members_is_not_used(
    name: str, other_library: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = other_library(name)
    with pytest.raises(OSError, match=f"another version.*{OTHER_LISTS[name][2]}.*install"):
        Library(str(path))
    # It is as if it was not there, but for a warning.
    monkeypatch.setattr(compiled, "_FOLDER", path.parent)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.warns(RuntimeWarning, match="another version"):
        assert libraries.__wrapped__() == ()
    # Of the list that it was compiled from, all is as this module has it.
    monkeypatch.setattr(compiled, "MEMBERS", Members(other_list(name)))
    with pytest.raises(AttributeError, match="movinet_port_lanes"):
        Library(str(path))


@needs_library
@pytest.mark.parametrize("name", OTHER_LISTS)
def test_the_compiled_library_fits_no_other_list_of_members(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "MEMBERS", Members(other_list(name)))
    with pytest.warns(RuntimeWarning, match="another version"):
        assert libraries.__wrapped__() == ()


def test_members_that_are_not_listed_cannot_be_set() -> None:
    for structure in compiled.MEMBERS.structures.values():
        with pytest.raises(AttributeError, match="unlisted"):
            structure().unlisted = 1


def test_without_a_library_operations_compute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_spec: Any, randomised: Any
) -> None:
    monkeypatch.setattr(compiled, "_FOLDER", tmp_path)
    assert extension.libraries.__wrapped__() == ()
    monkeypatch.setattr(extension, "libraries", extension.libraries.__wrapped__)
    model = randomised(MoViNet(tiny_spec("base")))
    clip = torch.rand(1, 3, 3, 20, 20)
    fast = optimize(model)
    assert all(extension.kernel(ClipKernel, layer) is None for layer in fast.bottlenecks)
    assert error(fast(clip), model(clip).detach()) < ROUNDING


def spec(mode: str, activation: str, stem: int, filters: int, expand: list[int], kernel: Any,
         stride: int, head: int) -> ModelSpec:  # fmt: skip
    stream = {
        "causal": True,
        "conv_type": "2plus1d",
        "se_type": "2plus3d",
        "gate": "hard_sigmoid_keras",
    }
    return ModelSpec(
        name="custom",
        stem=StemSpec(filters=stem),
        blocks=(
            BlockSpec(
                base_filters=filters,
                expand_filters=tuple(expand),
                kernel_sizes=(kernel, (1, *kernel[1:]), kernel),
                strides=((1, stride, stride), (1, 1, 1), (1, 1, 1)),
            ),
        ),
        head=HeadSpec(project_filters=head, head_filters=24),
        num_classes=9,
        activation=activation,
        **(stream if mode == "stream" else {}),
    )


SIZES = st.tuples(*[st.integers(1, 30)] * 2)


@needs_library
@settings(max_examples=150, deadline=None)
@given(
    mode=st.sampled_from(["base", "stream"]),
    activation=st.sampled_from(["swish", "hard_swish"]),
    # Not only whole vectors, nor at least one.
    stem=st.sampled_from([4, 8, 12, 16]),
    filters=st.integers(5, 40),
    expand=st.lists(st.integers(7, 75), min_size=3, max_size=3),
    kernel=st.tuples(st.sampled_from([1, 3, 5]), *[st.sampled_from([1, 3, 5])] * 2),
    stride=st.sampled_from([1, 2]),
    head=st.integers(6, 40),
    size=SIZES,
    batch=st.integers(1, 2),
    clips=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    threads=st.sampled_from([1, 2, 3]),
)
def test_any_network_gives_the_logits_of_the_readable_one(
    randomised: Callable[..., Any],
    mode: str,
    activation: str,
    stem: int,
    filters: int,
    expand: list[int],
    kernel: tuple[int, int, int],
    stride: int,
    head: int,
    size: tuple[int, int],
    batch: int,
    clips: list[int],
    threads: int,
) -> None:
    shape = spec(mode, activation, stem, filters, expand, kernel, stride, head)
    model = randomised(MoViNet(shape))
    fast = optimize(model)
    model.double()
    torch.set_num_threads(threads)
    video = torch.rand(batch, 3, sum(clips), *size)
    with torch.no_grad():
        for clip in video.split(clips, dim=2):
            assert error(fast(clip), model(clip.double())) < ROUNDING
    torch.set_num_threads(1)


@pytest.mark.parametrize("mode", ["base", "stream"])
@pytest.mark.parametrize(
    "cut", [Cut(1, 1, 1), Cut(3, 1, 1), Cut(1, 4, 1), Cut(1, 1, 2), Cut(2, 3, 2), Cut(4, 7, 1)]
)
def test_a_clip_is_the_same_however_it_is_cut(
    mode: str,
    cut: Cut,
    library: Library,
    randomised: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = randomised(MoViNet(spec(mode, "swish", 8, 24, [72, 88, 41], (5, 3, 3), 2, 40)))
    fast = optimize(model)
    rooms = []
    cut_for = extension.cut_for

    def forced(*arguments: Any) -> tuple[Cut, int]:
        # As much room as the most that any cut takes.
        _, room = cut_for(*arguments)
        rooms.append(room)
        return cut, 100 * room

    monkeypatch.setattr(extension, "cut_for", forced)
    video = torch.rand(2, 3, 9, 21, 26)
    with torch.no_grad():
        for clip in video.split((7, 2) if mode == "stream" else (9,), dim=2):
            # A frame is cut into no more parts than it has, as `cut_for` sees to.
            if clip.shape[2] < cut.segments:
                cut = cut._replace(segments=1)
            assert error(fast(clip), model(clip)) < ROUNDING
    assert rooms


def block(weight: torch.Tensor, bias: torch.Tensor, activation: str | None) -> Pointwise:
    return Pointwise(Matrix(weight, bias), activation)


def test_activations_are_right_from_end_to_end(library: Library) -> None:
    numbers = torch.cat([torch.linspace(-200, 200, 8001), torch.tensor([-1e3, -0.0, 1e30])])
    x = numbers[:, None].repeat(1, 2).contiguous()
    weight, bias = torch.zeros(24, 2), torch.zeros(24)
    weight[:, 0] = 1
    # Far below 0 all is next to nothing; near -3 a hard swish subtracts numbers that are alike.
    for activation, right, least in (("swish", F.silu, 1e-33), ("hard_swish", F.hardswish, 5e-7)):
        kernel = MatrixKernel(library, block(weight, bias, activation))
        expected = right(numbers.double())[:, None].expand(-1, 24).float()
        torch.testing.assert_close(kernel(x), expected, rtol=1e-6, atol=least)


@pytest.mark.parametrize("rows", [1, 2, 13, 40])
@pytest.mark.parametrize("columns", [16, 17, 31, 33, 104])
@pytest.mark.parametrize("depth", [1, 7, 40])
def test_products_of_all_remainders_are_right(
    rows: int, columns: int, depth: int, library: Library
) -> None:
    weight, bias = torch.randn(columns, depth), torch.randn(columns)
    kernel = MatrixKernel(library, block(weight, bias, None))
    x = torch.randn(rows, depth)
    expected = F.linear(x.double(), weight.double(), bias.double())
    assert error(kernel(x), expected) < 1e-6


@needs_library
def test_single_frames_of_published_streams_are_computed_by_it(
    mini_spec: Callable[..., ModelSpec], randomised: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calls = []
    call = FrameKernel.__call__
    monkeypatch.setattr(FrameKernel, "__call__", lambda *a: calls.append(1) or call(*a))
    fast = optimize(randomised(MoViNet(mini_spec("stream"))))
    fast(torch.rand(1, 3, 1, 32, 32))
    assert len(calls) == len(fast.bottlenecks)
    fast(torch.rand(1, 3, 2, 32, 32))
    assert len(calls) == len(fast.bottlenecks)
