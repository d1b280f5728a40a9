"""Networks that Inductor and a C++ compiler make: packages, the level "compile", products.

One file, because each of these takes half a minute of Inductor and of a C++ compiler: one package
serves every test that needs any, and PyTorch asks once what the compiler is capable of.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import movinet_port
from converters import convert
from movinet_port import ModelSpec, MoViNet, optimize
from movinet_port.command_line.cli import main
from movinet_port.command_line.parity import parity as parity_command
from movinet_port.errors import CheckpointError, MovinetPortError, StateError
from movinet_port.fast import FastMoViNet, aot, graph, kernels, packaged
from movinet_port.fast.aot import CompileError, compile_package, read_package
from movinet_port.fast.choice import Case
from movinet_port.fast.optimize import fold_network
from movinet_port.spec import StemSpec

pytestmark = [
    pytest.mark.usefixtures("one_thread", "plain_headers"),
    pytest.mark.skipif(
        not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="no C++ compiler"
    ),
]
for_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="C++ of our own is for x86"
)

SAMPLE = "weights/samples/movinet_mini_stream.tar.gz"

# The largest logit's share that rounding may change.
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-12}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))


@pytest.fixture(scope="module")
def plain_headers() -> Iterator[None]:
    """PyTorch's headers as text: translated, they take longer than for as few files they save."""
    from torch._inductor import config

    with config.patch({"cpp_cache_precompile_headers": False}), pytest.MonkeyPatch.context() as m:
        m.setattr(config.aot_inductor, "precompile_headers", False)
        yield


# One package ------------------------------------------------------------------------------------

LABELS = tuple("abcde")
SIZE = (37, 46)
# What C++ of our own is asked to take of each network, by the function that is asked.
Asked = dict[str, list[bool]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What `packaged.Kernels` says to each layer from now on."""
    return watched(monkeypatch)


def watched(monkeypatch: pytest.MonkeyPatch) -> Asked:
    answers: Asked = {"takes": [], "takes_stem": [], "takes_vector": []}
    for name, found in answers.items():
        takes = getattr(packaged.Kernels, name)

        def record(
            *arguments: Any, takes: Callable[..., bool] = takes, found: list[bool] = found
        ) -> bool:
            found.append(takes(*arguments))
            return found[-1]

        monkeypatch.setattr(packaged.Kernels, name, record)
    return answers


@dataclasses.dataclass(frozen=True)
class Made:
    """A package, the readable network that it was made from, and what our C++ took of it."""

    path: Path
    model: MoViNet
    asked: Asked


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The sample's package, made by the command."""
    folder = tmp_path_factory.mktemp("package")
    checkpoint = dataclasses.replace(convert(SAMPLE, verify=False), labels=LABELS)
    movinet_port.save(checkpoint, folder / "mini.pt")
    command = ["compile", "--weights", str(folder / "mini.pt"), "--size", "37x46"]
    with pytest.MonkeyPatch.context() as patch:
        answers = watched(patch)
        result = CliRunner().invoke(main, [*command, "-o", str(folder / "mini.pt2")])
    assert result.exit_code == 0, result.output
    return Made(folder / "mini.pt2", checkpoint.build(), answers)


def test_a_package_says_what_it_holds(package: Made) -> None:
    compiled = movinet_port.load(package.path)
    assert (compiled.spec, compiled.labels) == (package.model.spec, LABELS)
    assert read_package(package.path).shape == (1, 1, *SIZE)


def test_a_package_and_the_readable_network_go_on_from_each_others_states(package: Made) -> None:
    compiled, model = movinet_port.load(package.path), package.model
    video = torch.rand(1, 3, 5, *SIZE).split(1, dim=2)
    state = model.init_state(1, *SIZE)
    model.clean_activation_buffers()
    with torch.no_grad():
        for frame, network in zip(video, (compiled, model, compiled, compiled, model), strict=True):
            expected = model(frame)
            # As `compiled(frame)` and `model(frame)` go on, each from its own.
            assert error(compiled(frame), expected) < ROUNDING[torch.float32]
            found, state = network.step(frame, state)
            assert error(found, expected) < ROUNDING[torch.float32]


@pytest.mark.parametrize("shape", [(2, 3, 1, *SIZE), (1, 3, 2, *SIZE), (1, 3, 1, 37, 47)])
def test_a_package_names_the_shape_that_it_was_compiled_for(
    package: Made, shape: tuple[int, ...]
) -> None:
    compiled = movinet_port.load(package.path)
    with pytest.raises(StateError, match=r"compiled for \(1, 1, 37, 46\)"):
        compiled(torch.rand(shape))


def test_a_package_loads_with_no_compiler(package: Made) -> None:
    program = (
        "import sys, torch, movinet_port\n"
        "compiled = movinet_port.load(sys.argv[1])\n"
        "print(tuple(compiled(torch.rand(1, 3, 1, 37, 46)).shape))\n"
    )
    environment = {**os.environ, "PATH": "", "CXX": "/bin/false", "CC": "/bin/false"}
    environment["PYTHONPATH"] = str(Path(movinet_port.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", program, str(package.path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.stdout.strip() == "(1, 5)", result.stderr


def test_a_package_for_another_machine_is_refused(
    package: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "Z80")
    with pytest.raises(CheckpointError, match="here Z80"):
        movinet_port.load(package.path)


def test_a_package_that_is_none_is_refused(package: Made, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pt2"
    damaged.write_bytes(package.path.read_bytes()[:-2000])
    text = tmp_path / "text.pt2"
    text.write_text("nothing")
    for path in (damaged, text):
        with pytest.raises(CheckpointError, match="no package of movinet-port"):
            movinet_port.load(path)


def test_the_command_compares_a_package_in_the_clips_that_it_takes(
    package: Made, tmp_path: Path
) -> None:
    arguments = ["--hub-url", SAMPLE, "--weights", str(package.path)]
    done = CliRunner().invoke(parity_command, [*arguments, "--json", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["input"]["shape"] == [1, 3, 6, *SIZE]
    assert report["input"]["chunks"] == [1] * 6
    assert [layer["name"] for layer in report["layers"]] == ["input", "classifier"]
    states = set(package.model.init_state(1, *SIZE))
    assert {state["name"] for state in report["states"]} == states
    other = CliRunner().invoke(parity_command, [*arguments, "--size", "48"])
    assert isinstance(other.exception, StateError)
    assert "compiled for (1, 1, 37, 46)" in str(other.exception)


def test_a_compiler_that_is_not_there_leaves_no_file(
    tiny_spec: Callable[..., ModelSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: Any) -> None:
        raise CompileError("cannot compile: no C++ compiler is found")

    monkeypatch.setattr(aot, "_compile", no_compiler)
    fast = optimize(MoViNet(tiny_spec("stream")).eval())
    assert isinstance(fast, FastMoViNet)
    with pytest.raises(MovinetPortError, match="no C\\+\\+ compiler"):
        compile_package(fast, tmp_path / "new.pt2", size=(20, 24))
    assert not list(tmp_path.iterdir())


# C++ of our own in packages ---------------------------------------------------------------------

# For vectors of 16 lanes, as AVX-512 has them, and of 8: activations, gates, classes, stems, and
# sizes for which rows or channels are dealt out; beside the sample, which is as the published
# networks are.
NETWORKS: list[tuple[int, dict[str, Any], tuple[int, int]]] = [
    (
        16,
        {
            "se_type": "none",
            "activation": "relu",
            "stem": StemSpec(filters=16),
            "num_classes": 21,
        },
        (64, 130),
    ),
    (
        8,
        {
            "se_type": "2d",
            "activation": "relu6",
            "gate": "sigmoid",
            "positional_encoding": True,
            "stem": StemSpec(filters=8, kernel_size=(1, 5, 3), strides=(1, 1, 1)),
        },
        (51, 33),
    ),
]


def follows(package: Any, model: MoViNet, size: tuple[int, int]) -> None:
    """Check the package's logits and states of frames, however many threads compute them."""
    frames = torch.rand(6, 1, 3, 1, *size)
    # Planes, pixels as decoders give them, and neither.
    ways: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda frame: frame,
        lambda frame: frame.movedim(1, -1).contiguous().movedim(-1, 1),
        lambda frame: frame.repeat_interleave(2, 4)[..., ::2],
    ]
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        state = expected = model.init_state(1, *size)
        for planes, way in zip(frames, itertools.cycle(ways), strict=False):
            frame = way(planes)
            before = state
            with torch.no_grad():
                logits, state = package.step(frame, state)
                right, expected = model.step(frame, expected)
            assert error(logits, right) < ROUNDING[torch.float32]
            assert max(error(state[n], expected[n]) for n in expected) < ROUNDING[torch.float32]
            # Threads share numbers that both compute.
            for _ in range(20):
                assert torch.equal(package.step(frame, before)[0], logits)


@pytest.fixture
def threads() -> Iterator[None]:
    """Give back the number of threads."""
    yield
    torch.set_num_threads(1)


@for_x86
@pytest.mark.usefixtures("threads")
def test_the_samples_package_gives_the_logits_and_states_of_the_readable_network(
    package: Made,
) -> None:
    assert len(package.asked["takes"]) == len(package.model.layer_names)
    assert all(package.asked["takes"])
    assert package.asked["takes_stem"] == [True]
    # Inductor computes the five classes.
    assert package.asked["takes_vector"] == [True, False]
    follows(movinet_port.load(package.path), package.model, SIZE)


@for_x86
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("lanes", "changes", "size"), NETWORKS)
def test_layers_in_cpp_give_the_logits_and_states_of_the_readable_network(
    lanes: int,
    changes: dict[str, Any],
    size: tuple[int, int],
    mini_spec: Callable[..., ModelSpec],
    randomised: Callable[..., Any],
    asked: Asked,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        aot, "kernels_for", lambda network: packaged.Kernels(lanes, network.spec.activation)
    )
    # A layer of each kind: strided, residual, and with a skip projection and no stride.
    first, second, _, fourth, _ = mini_spec("stream").blocks
    model = randomised(MoViNet(mini_spec("stream", blocks=(first, second, fourth), **changes)))
    compile_package(fold_network(model), tmp_path / "mini.pt2", size=size)
    assert asked["takes"] == [True] * 5
    assert asked["takes_stem"] == [True]
    # Inductor computes fewer classes than a vector has lanes.
    assert asked["takes_vector"] == [True, model.spec.num_classes >= lanes]
    follows(movinet_port.load(tmp_path / "mini.pt2"), model, size)


@for_x86
def test_what_the_cpp_does_not_cover_is_left_to_inductor(
    mini_spec: Callable[..., ModelSpec], randomised: Callable[..., Any]
) -> None:
    def takes(
        lanes: int = 16, frames: int = 1, batch: int = 1, **changes: Any
    ) -> tuple[bool, bool]:
        network = fold_network(randomised(MoViNet(mini_spec("stream", **changes))))
        case = Case(batch, frames, 16, 16, network.dtype, "cpu", stream=True)
        kernels_ = packaged.Kernels(lanes, "relu")
        layer = network.bottlenecks[-2]
        return kernels_.takes(layer, case), kernels_.takes_stem(network.stem, case)

    assert takes() == (True, True)
    assert takes(lanes=64) == (False, False)  # than which it is narrower
    assert takes(frames=2) == (False, False)
    assert takes(batch=2) == (False, False)
    assert takes(conv_type="3d") == (False, True)


@for_x86
@pytest.mark.parametrize("missing", ["type", "activation", "option", "instructions"])
def test_without_what_it_needs_there_is_no_kernel(
    missing: str,
    mini_spec: Callable[..., ModelSpec],
    randomised: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._inductor import cpu_vec_isa

    def found(**changes: Any) -> Any:
        model = randomised(MoViNet(mini_spec("stream", **changes)))
        return packaged.kernels_for(fold_network(model, dtype))

    dtype = torch.float32
    assert found() is not None
    changes = {}
    if missing == "type":
        dtype = torch.float64
    if missing == "activation":
        changes["activation"] = "swish"
    if missing == "option":
        monkeypatch.setattr(packaged, "_SHIMS", "shims_of_another_version")
    if missing == "instructions":
        monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", cpu_vec_isa.InvalidVecISA)
    assert found(**changes) is None


# Inductor's code --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_package_is_made_where_inductor_has_no_products_of_its_own(
    tiny_spec: Callable[..., ModelSpec],
    randomised: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
) -> None:
    from torch._inductor.kernel import mm

    if dtype == torch.float32:
        monkeypatch.setattr(mm, "use_cpp_gemm_template", lambda *_, **__: False)
        monkeypatch.setitem(graph.PRODUCTS, "freezing", False)
    block = dataclasses.replace(
        tiny_spec("base").blocks[0],
        expand_filters=(8,),
        kernel_sizes=((3, 3, 3),),
        strides=((1, 2, 2),),
    )
    model = randomised(MoViNet(tiny_spec("base", blocks=(block,)))).to(dtype)
    clip = torch.rand(1, 3, 3, 18, 21, dtype=dtype)
    compile_package(fold_network(model), tmp_path / "tiny.pt2", frames=3, size=(18, 21))
    with torch.no_grad():
        found = movinet_port.load(tmp_path / "tiny.pt2")(clip)
        assert error(found, model(clip)) < ROUNDING[dtype]


def test_compile_level_gives_the_same_logits(
    tiny_spec: Callable[..., ModelSpec], randomised: Callable[..., Any]
) -> None:
    # Two networks of one architecture, two shapes: none must be taken for another.
    models = [randomised(MoViNet(tiny_spec("base")), seed) for seed in (1, 2)]
    clips = [torch.rand(1, 3, 3, 18, 21), torch.rand(1, 3, 2, 18, 21)]
    fast = [optimize(model, "compile") for model in models]
    with torch.no_grad():
        for network, clip in ((0, 0), (0, 1), (1, 0), (0, 0)):
            found, expected = fast[network](clips[clip]), models[network](clips[clip])
            assert error(found, expected) < ROUNDING[torch.float32]


def test_a_step_of_the_readable_network_compiled_by_inductor_equals_the_network(
    tiny_spec: Callable[..., ModelSpec], randomised: Callable[..., Any]
) -> None:
    torch._dynamo.reset()
    model = randomised(MoViNet(tiny_spec("stream"))).double()
    step = torch.compile(model.step, backend="inductor", fullgraph=True)
    video = torch.rand(2, 3, 4, 19, 26, dtype=torch.float64)
    state = model.init_state(2, 19, 26)
    with torch.no_grad():
        for clip in video.split(2, dim=2):
            logits, state = step(clip, state)
        expected, _ = model.step(video, model.init_state(2, 19, 26))
    torch._dynamo.reset()
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


@for_x86
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("threads_", "simdlen"), [(2, None), (1, 256)], ids=["widest", "AVX2"])
def test_products_of_all_remainders_are_right(
    threads_: int, simdlen: int | None, tmp_path: Path
) -> None:
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    sizes = [(1, 16), (23, 48), (36, 112), (49, 30), (121, 184)]

    class Products(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(torch.rand(n, 13) - 0.5 for _, n in sizes)

        def forward(self, *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(torch.mm(a, w.t()) for a, w in zip(x, self.weights, strict=True))

    torch.set_num_threads(threads_)
    model, inputs = Products(), tuple(torch.rand(m, 13) - 0.5 for m, _ in sizes)
    lanes: list[int] = []
    best = kernels.best_block
    with torch.no_grad(), kernels.own_products(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "best_block", lambda *a: lanes.append(a[3]) or best(*a))
        program = torch.export.export(model, inputs, strict=False)
        path = aoti_compile_and_package(
            program,
            package_path=str(tmp_path / "products.pt2"),
            inductor_configs={**graph.PRODUCTS, "cpp.simdlen": simdlen},
        )
        found = aoti_load_package(path)(*inputs)
        for one, expected in zip(found, model(*inputs), strict=True):
            assert error(one, expected) < 1e-6
    assert lanes, "Inductor has not asked for the size of a block"
    assert simdlen is None or set(lanes) == {8}
