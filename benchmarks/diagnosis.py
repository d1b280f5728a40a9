"""Does the diagnosis find what is wrong? Known faults in a right network, and what parity says.

Run from the repository's root, with TensorFlow installed::

    python benchmarks/diagnosis.py [--limit 400] [--pairs 60] [--clean 50] [--json out.json]

The references are TensorFlow's outputs on the exports in ``tests/data`` and the sample; the
faults are put into our side. A fault counts as detected if the verdict is not parity, as placed
if the layer of the first diagnosis is the faulty one, and as named if its cause is among the
causes given for that layer.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import random
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from movinet_port import MoViNet
from movinet_port.checkpoint import Checkpoint
from movinet_port.layers import (
    AveragePool,
    Bottleneck,
    Conv,
    CumulativePool,
    HardSigmoidKeras,
    HardSigmoidRelu6,
    PositionalEncoding,
    Scale,
    SqueezeExcitation,
    StreamConvBlock,
)
from parity.compare import compare
from parity.references import Moment, SavedModelReference
from parity.report import Report
from parity.subject import Subject

ROOT = Path(__file__).resolve().parent.parent
ARCHIVES = (
    "tests/data/era1_mini_base.tar.gz",
    "tests/data/era1_mini_stream.tar.gz",
    "tests/data/era2_mini_stream.tar.gz",
    "tests/data/era2_mini_stream_posenc.tar.gz",
    "tests/data/era3_mini_base.tar.gz",
    "weights/samples/movinet_mini_stream.tar.gz",
)
CHUNKS = (1, 2, 3)


class Ran:
    """A reference that was run once for each clip: faults are many, TensorFlow is slow."""

    def __init__(self, reference: SavedModelReference) -> None:
        self.description = reference.description
        self.parameters = reference.parameters
        self.table = None
        self.spec = reference.spec
        self._reference = reference
        self._ran: dict[bytes, list[Moment]] = {}

    def run(self, chunks: Sequence[Any]) -> list[Moment]:
        """Return the activations; the last video's are remembered."""
        key = (
            b"".join(chunk.tobytes() for chunk in chunks)
            + str([chunk.shape for chunk in chunks]).encode()
        )
        if key not in self._ran:
            self._ran = {key: self._reference.run(chunks)}
        return self._ran[key]

    def build(self) -> MoViNet:
        """Return a right network."""
        return Checkpoint(self.spec, dict(self.parameters)).build()


def open_reference(archive: str | Path) -> Ran:
    """Return the reference in an archive of the repository."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(ROOT / archive) as opened:
            opened.extractall(folder, filter="data")
        graph = next(Path(folder).rglob("saved_model.pb"))
        return Ran(SavedModelReference(graph.parent, name=Path(archive).name))


# Faults


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        cause: what the diagnosis should say.
        layer: tap that it should name.
        detail: for the list.
        apply: changes a network, and returns what to run in its place.
        alone: whether it cannot be combined with others.
    """

    cause: str
    layer: str
    detail: str
    apply: Callable[[MoViNet], nn.Module]
    alone: bool = False


class SymmetricConv(Conv):
    """Pads k // 2 on both sides, as PyTorch's users do."""

    def padding_for(self, x: Tensor) -> list[int]:
        """Return the same padding on both sides."""
        pads = [n for k in reversed(self.kernel_size) for n in (k // 2, k // 2)]
        if self.causal:
            pads[4:] = [0, 0]
        return pads


class EdgeConv(Conv):
    """Repeats the border instead of padding with zeros."""

    def forward(self, x: Tensor) -> Tensor:
        """Do it wrong."""
        padded = F.pad(x, self.padding_for(x), mode="replicate")
        return F.conv3d(padded, self.weight, self.bias, self.stride, groups=self.groups)


class HalfConv(Conv):
    """Computes in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        """Do it wrong."""
        padded = F.pad(x, self.padding_for(x)) if self.kernel_size != (1, 1, 1) else x
        bias = None if self.bias is None else self.bias.bfloat16()
        weight = self.weight.bfloat16()
        out = F.conv3d(padded.bfloat16(), weight, bias, self.stride, groups=self.groups)
        return out.to(x.dtype)


class CountingPool(AveragePool):
    """Counts padded cells."""

    def forward(self, x: Tensor) -> Tensor:
        """Do it wrong."""
        from movinet_port.layers import same_padding

        pads = [*same_padding(x.shape[4], 3, 2), *same_padding(x.shape[3], 3, 2)]
        return F.avg_pool3d(F.pad(x, pads), (1, 3, 3), (1, 2, 2))


class _Skip(Bottleneck):
    factor = 0.0

    def forward(self, x: Tensor, *state: Any) -> Any:
        """Do it wrong."""
        stream_buffer, pool_buffer, count = state
        skip = x if self.skip is None else self.skip(x)
        x, stream_buffer = self.depthwise(self.expansion(x), stream_buffer)
        if self.squeeze_excitation is not None:
            x, pool_buffer = self.squeeze_excitation(x, pool_buffer, count)
        return self.rezero(self.projection(x)) + self.factor * skip, stream_buffer, pool_buffer


class WithoutSkip(_Skip):
    """Forgets the residual connection."""


class DoubleSkip(_Skip):
    """Adds the residual twice."""

    factor = 2.0


class SwappedPools(SqueezeExcitation):
    """Concatenates both means in the other order."""

    def forward(self, x: Tensor, buffer: Any, frame_count: Tensor) -> Any:
        """Do it wrong."""
        spatial = self.spatial_pool(x)
        pooled, buffer = self.temporal_pool(spatial, buffer, frame_count)
        pooled = torch.cat([spatial, pooled.expand_as(spatial)], dim=1)
        if self.positional_encoding is not None:
            pooled = self.positional_encoding(pooled, frame_count)
        return self.expand(self.reduce(pooled)) * x, buffer


class ForgetfulPool(CumulativePool):
    """The mean over the clip, not over the video."""

    def forward(self, x: Tensor, buffer: Any, frame_count: Tensor) -> Any:
        """Do it wrong."""
        mean = x.mean(dim=(2, 3, 4), keepdim=True).expand(-1, -1, x.shape[2], -1, -1)
        return mean, super().forward(x, buffer, frame_count)[1]


class Interleaved(PositionalEncoding):
    """Sines and cosines in turn."""

    def forward(self, x: Tensor, first_frame: Tensor) -> Tensor:
        """Do it wrong."""
        both = super().forward(torch.zeros_like(x), first_frame)
        channels = x.shape[1]
        order = torch.arange(channels).view(2, -1).T.reshape(-1)
        return x + both[:, order]


class Silent(PositionalEncoding):
    """Adds nothing."""

    def forward(self, x: Tensor, first_frame: Tensor) -> Tensor:
        """Do it wrong."""
        return x + 0 * self.scale


class Unscaled(Scale):
    """Hands on its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Do it wrong."""
        return x + 0 * self.scale


class LateBuffer(StreamConvBlock):
    """Keeps the frames before the last ones."""

    def _with_buffer(self, x: Tensor, buffer: Any) -> Any:
        x, new = super()._with_buffer(x, buffer)
        size = self.stream_conv.frames_before
        return x, (None if new is None else x[:, :, -size - 1 : -1].clone())


class FrozenBuffer(StreamConvBlock):
    """Hands on the buffer that it was given."""

    def _with_buffer(self, x: Tensor, buffer: Any) -> Any:
        x, new = super()._with_buffer(x, buffer)
        return x, (new if buffer is None or new is None else buffer)


class Before(nn.Module):
    """Something between the reader of the video and the network."""

    def __init__(self, network: MoViNet, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        """Do it wrong."""
        return self.network(self.change(x))


class Amnesia(nn.Module):
    """Starts a new video with every clip."""

    def __init__(self, network: MoViNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Do it wrong."""
        self.network.clean_activation_buffers()
        return self.network(x)


def _changed(change: Callable[[Any], None], path: str) -> Callable[[MoViNet], nn.Module]:
    def apply(network: MoViNet) -> nn.Module:
        with torch.no_grad():
            change(network.get_submodule(path))
        return network

    return apply


def _as_class(kind: type[nn.Module], path: str) -> Callable[[MoViNet], nn.Module]:
    def change(module: nn.Module) -> None:
        module.__class__ = kind

    return _changed(change, path)


def _replaced(module: Callable[[], nn.Module], path: str) -> Callable[[MoViNet], nn.Module]:
    def apply(network: MoViNet) -> nn.Module:
        owner, _, leaf = path.rpartition(".")
        setattr(network.get_submodule(owner), leaf, module())
        return network

    return apply


def _noise(tensor: Tensor, seed: int) -> Tensor:
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))


def faults(network: MoViNet) -> Iterator[Fault]:
    """Yield every fault that a network can have."""
    spec = network.spec
    for layer in spec.layers():
        yield from _layer_faults(network, layer.name)
    for block in ("stem", "head"):
        yield from _conv_faults(network, block, "")
    yield from _linear_faults(network, "classifier.hidden.conv")
    yield from _linear_faults(network, "classifier.output.conv")
    yield from _input_faults(network)
    if spec.causal:
        yield from _stream_faults(network)


def _layer_faults(network: MoViNet, layer: str) -> Iterator[Fault]:
    spec = network.spec
    bottleneck = network.get_submodule(layer)
    assert isinstance(bottleneck, Bottleneck)
    for block in ("expansion", "depthwise", "projection"):
        yield from _conv_faults(network, f"{layer}.{block}", "")
    if bottleneck.depthwise.splits:
        yield from _conv_faults(network, f"{layer}.depthwise", "temporal_")
    if bottleneck.skip is not None:
        yield from _conv_faults(network, f"{layer}.skip", "")
        if bottleneck.skip.pool is not None:
            yield Fault(
                "pool-divisor",
                f"{layer}.skip.pool",
                "counts padding",
                _as_class(CountingPool, f"{layer}.skip.pool"),
            )
    yield Fault("skip-path", layer, "no skip", _as_class(WithoutSkip, layer))
    yield Fault("skip-path", layer, "twice", _as_class(DoubleSkip, layer))
    rezero = f"{layer}.rezero"
    yield Fault("rezero", rezero, "left at 0", _changed(lambda m: m.scale.zero_(), rezero))
    yield Fault("rezero", rezero, "not applied", _as_class(Unscaled, rezero))
    se = f"{layer}.squeeze_excitation"
    module = bottleneck.squeeze_excitation
    if module is None:
        return
    yield from _linear_faults(network, f"{se}.reduce.conv")
    yield from _linear_faults(network, f"{se}.expand.conv")
    for name, kind in (
        ("sigmoid", nn.Sigmoid),
        ("hard_sigmoid_keras", HardSigmoidKeras),
        ("hard_sigmoid_relu6", HardSigmoidRelu6),
    ):
        if not isinstance(module.expand.activation, kind):
            yield Fault(
                "gate",
                f"{se}.expand.activation",
                name,
                _replaced(kind, f"{se}.expand.activation"),
            )
    if spec.se_type == "2plus3d":
        first = "reduce.conv" if module.positional_encoding is None else "positional_encoding"
        yield Fault("se-pooling", f"{se}.{first}", "other order", _as_class(SwappedPools, se))
    if isinstance(module.temporal_pool, CumulativePool):
        yield Fault(
            "se-pooling",
            f"{se}.temporal_pool",
            "clip only",
            _as_class(ForgetfulPool, f"{se}.temporal_pool"),
        )
    if module.positional_encoding is not None:
        path = f"{se}.positional_encoding"
        yield Fault("positional-encoding", path, "in turn", _as_class(Interleaved, path))
        yield Fault("positional-encoding", path, "none", _as_class(Silent, path))
        yield Fault(
            "positional-encoding", path, "scale at 0", _changed(lambda m: m.scale.zero_(), path)
        )


def _conv_faults(network: MoViNet, block: str, prefix: str) -> Iterator[Fault]:
    conv, norm = f"{block}.{prefix}conv", f"{block}.{prefix}norm"
    module = network.get_submodule(conv)
    assert isinstance(module, Conv)
    yield from _weight_faults(network, conv)
    _, h, w = module.kernel_size
    if max(h, w) > 1:
        yield Fault("padding", conv, "symmetric", _as_class(SymmetricConv, conv))
        yield Fault("padding", conv, "repeats borders", _as_class(EdgeConv, conv))
    yield Fault("precision", conv, "bfloat16", _as_class(HalfConv, conv))
    for first, second in (("running_mean", "running_var"), ("weight", "bias")):

        def exchange(m: Any, first: str = first, second: str = second) -> None:
            a, b = getattr(m, first), getattr(m, second)
            a.data, b.data = b.data.clone(), a.data.clone()

        yield Fault("norm-stats-swapped", norm, f"{first}, {second}", _changed(exchange, norm))
    for eps in (1e-5, 1e-2):
        yield Fault(
            "norm-epsilon", norm, f"{eps:g}", _changed(lambda m, e=eps: setattr(m, "eps", e), norm)
        )
    yield Fault("norm-not-in-eval", norm, "train()", _changed(lambda m: m.train(), norm))
    yield Fault(
        "tensor-not-loaded", norm, "weight", _changed(lambda m: m.weight.data.fill_(1), norm)
    )
    yield Fault("tensor-not-loaded", norm, "mean", _changed(lambda m: m.running_mean.zero_(), norm))
    yield Fault("tensor-scaled", norm, "bias", _changed(lambda m: m.bias.data.mul_(2), norm))
    yield Fault(
        "weights-differ",
        norm,
        "mean",
        _changed(lambda m: m.running_mean.add_(0.05 * _noise(m.running_mean, 3)), norm),
    )
    other = _same_width(network, norm)
    if other is not None:

        def take(network: MoViNet) -> nn.Module:
            with torch.no_grad():
                source = network.get_submodule(other)
                network.get_submodule(norm).bias.copy_(source.bias)  # type: ignore[operator, union-attr]
            return network

        yield Fault("tensor-swapped", norm, f"bias of {other}", take)
    activation = f"{block}.{prefix}activation"
    try:
        now = network.get_submodule(activation)
    except AttributeError:
        return
    if now is None:
        return
    for kind in (nn.SiLU, nn.Hardswish, nn.ReLU, nn.ReLU6):
        if not isinstance(now, kind):
            yield Fault("activation", activation, kind.__name__, _replaced(kind, activation))


def _same_width(network: MoViNet, norm: str) -> str | None:
    width = network.get_submodule(norm).num_features  # type: ignore[union-attr]
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm3d) and name != norm and module.num_features == width:
            return name
    return None


def _weight_faults(network: MoViNet, conv: str) -> Iterator[Fault]:
    weight = network.get_submodule(conv).weight  # type: ignore[union-attr]
    assert isinstance(weight, Tensor)
    out, inner, t, h, w = weight.shape
    if h == w > 1:
        yield Fault(
            "kernel-layout",
            conv,
            "height and width",
            _changed(lambda m: m.weight.data.copy_(m.weight.transpose(3, 4).clone()), conv),
        )
    if inner > 1 and out > 1:
        yield Fault(
            "kernel-layout",
            conv,
            "in and out",
            _changed(
                lambda m: m.weight.data.copy_(
                    m.weight.permute(2, 3, 4, 1, 0).reshape(m.weight.shape).clone()
                ),
                conv,
            ),
        )
    elif t * h * w > 1:
        yield Fault(
            "kernel-layout",
            conv,
            "read from (t, h, w, 1, C)",
            _changed(
                lambda m: m.weight.data.copy_(
                    m.weight.permute(2, 3, 4, 1, 0).reshape(m.weight.shape).clone()
                ),
                conv,
            ),
        )
    for axis, size in ((2, t), (3, h), (4, w)):
        if size > 1:
            yield Fault(
                "kernel-flip",
                conv,
                f"axis {axis}",
                _changed(lambda m, a=axis: m.weight.data.copy_(m.weight.flip(a)), conv),
            )
    yield Fault(
        "tensor-not-loaded",
        conv,
        "initial",
        _changed(
            lambda m: m.weight.data.copy_(_noise(m.weight, 1) * (2 / m.weight[0].numel()) ** 0.5),
            conv,
        ),
    )
    yield Fault("tensor-scaled", conv, "1.01", _changed(lambda m: m.weight.data.mul_(1.01), conv))
    yield Fault(
        "weights-differ",
        conv,
        "5 %",
        _changed(lambda m: m.weight.data.add_(0.05 * m.weight.std() * _noise(m.weight, 2)), conv),
    )
    yield Fault(
        "precision",
        conv,
        "stored in float16",
        _changed(lambda m: m.weight.data.copy_(m.weight.half().float()), conv),
    )


def _linear_faults(network: MoViNet, conv: str) -> Iterator[Fault]:
    yield from _weight_faults(network, conv)
    yield Fault("tensor-not-loaded", conv, "bias", _changed(lambda m: m.bias.data.zero_(), conv))


def _input_faults(network: MoViNet) -> Iterator[Fault]:
    mean = torch.tensor([0.43, 0.39, 0.38]).view(1, 3, 1, 1, 1)
    std = torch.tensor([0.22, 0.22, 0.21]).view(1, 3, 1, 1, 1)
    changes: list[tuple[str, str, Callable[[Tensor], Tensor]]] = [
        ("channel-order", "BGR", lambda x: x.flip(1)),
        ("input-scaling", "0 to 255", lambda x: x * 255),
        ("input-scaling", "-1 to 1", lambda x: x * 2 - 1),
        ("input-scaling", "mean and deviation", lambda x: (x - mean.to(x)) / std.to(x)),
        ("input-layout", "height and width", lambda x: x.transpose(3, 4)),
        (
            "input-layout",
            "read from TensorFlow's order",
            lambda x: x.permute(0, 2, 3, 4, 1).reshape(x.shape),
        ),
        ("precision", "float16 clip", lambda x: x.half().to(x.dtype)),
    ]
    if not network.spec.causal:
        changes += [
            ("frame-order", "reversed", lambda x: x.flip(2)),
            ("frame-order", "shuffled", lambda x: x[:, :, [2, 0, 1, 5, 4, 3]]),
            ("frame-order", "dropped", lambda x: x[:, :, [0, 1, 3, 4, 5]]),
        ]
    else:
        changes += [
            ("frame-order", "reversed", lambda x: x.flip(2)),
            ("frame-order", "dropped", lambda x: x[:, :, 1:] if x.shape[2] == 3 else x),
            (
                "frame-order",
                "repeated",
                lambda x: x[:, :, [0, 0, 2]] if x.shape[2] == 3 else x,
            ),
        ]
    for cause, detail, change in changes:
        yield Fault(cause, "input", detail, lambda n, c=change: Before(n, c), alone=True)


def _stream_faults(network: MoViNet) -> Iterator[Fault]:
    buffered = [layer.name for layer in network.spec.layers() if layer.kernel_size[0] > 1]
    pooled = f"{next(network.spec.layers()).name}.squeeze_excitation.temporal_pool"

    def stale(network: MoViNet) -> nn.Module:
        video = torch.rand(CLIP, generator=torch.Generator().manual_seed(9))
        with torch.no_grad():
            network(video[:, :, :2])
        return network

    yield Fault("stream-state", pooled, "of another video", stale, alone=True)
    yield Fault("stream-state", pooled, "none between clips", Amnesia, alone=True)
    for layer in buffered:
        path = f"{layer}.depthwise"
        yield Fault("stream-state", layer, "off by one", _as_class(LateBuffer, path))
        yield Fault("stream-state", layer, "not updated", _as_class(FrozenBuffer, path))


# The clip of the bench: (batch, channels, frames, height, width); even, and square for layouts.
CLIP = (2, 3, 6, 40, 40)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the report says about one case."""

    archive: str
    faults: tuple[Fault, ...]
    detected: bool
    placed: bool
    named: bool
    only: bool
    said: tuple[str, ...]


def judge(archive: str, chosen: tuple[Fault, ...], report: Report) -> Outcome:
    """Compare what was said with what was done."""
    said = [(d.layer, d.cause) for d in report.diagnosis]
    layers = {fault.layer for fault in chosen}
    # What one fault does to the same layer's taps is one place.
    placed = all(any(layer == fault.layer for layer, _ in said) for fault in chosen)
    if len(chosen) == 1 and said:
        placed = placed and said[0][0] == chosen[0].layer
    named = placed and all((fault.layer, fault.cause) in said for fault in chosen)
    return Outcome(
        archive,
        chosen,
        not report,
        placed,
        named,
        {layer for layer, _ in said} <= layers,
        tuple(f"{d.layer}: {d.cause} ({d.detail})" for d in report.diagnosis[:4]),
    )


def run_case(reference: Ran, network: MoViNet, chosen: tuple[Fault, ...], clip: Any) -> Report:
    """Put faults into a copy of the network, and compare it."""
    model: nn.Module = copy.deepcopy(network)
    for fault in chosen:
        model = fault.apply(model)  # type: ignore[arg-type]
    chunks = CHUNKS if network.spec.causal else None
    return compare(reference, model, clip, chunks=chunks)


def _changes_anything(network: MoViNet, chosen: tuple[Fault, ...], clip: Any) -> bool:
    """Whether any activation moves by more than rounding."""
    model: nn.Module = copy.deepcopy(network)
    for fault in chosen:
        model = fault.apply(model)  # type: ignore[arg-type]
    sizes = list(CHUNKS) if network.spec.causal else [clip.shape[2]]
    chunks = np.split(clip, np.cumsum(sizes)[:-1], axis=2)
    found, right = Subject(model).run(chunks), Subject(network).run(chunks)
    return any(
        float((a.activations[tap] - value).abs().max()) > 1e-5 * float(value.abs().max())
        for a, b in zip(found, right, strict=True)
        for tap, value in b.activations.items()
    )


def select(available: Sequence[Fault], count: int, rng: random.Random) -> list[Fault]:
    """Choose faults so that every cause has its share."""
    by_cause: dict[str, list[Fault]] = {}
    for fault in rng.sample(list(available), len(available)):
        by_cause.setdefault(fault.cause, []).append(fault)
    chosen: list[Fault] = []
    while len(chosen) < count and any(by_cause.values()):
        for cause in sorted(by_cause):
            if by_cause[cause] and len(chosen) < count:
                chosen.append(by_cause[cause].pop())
    return chosen


def main() -> None:
    """Run the bench and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=360, help="single faults")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--clean", type=int, default=50, help="clean runs of other seeds, sizes")
    parser.add_argument("--archive", action="append", help="only these; may be repeated")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--verbose", action="store_true", help="print what went wrong")
    options = parser.parse_args()
    start = time.perf_counter()
    archives = options.archive or list(ARCHIVES)
    outcomes: list[Outcome] = []
    alarms = clean = vacuous = 0
    torch.set_num_threads(1)
    for position, archive in enumerate(archives):
        rng = random.Random(position)
        reference = open_reference(archive)
        network = reference.build()
        clip = np.random.default_rng(position).random(CLIP, dtype=np.float32)
        available = list(faults(network))
        share = len(archives)
        singles = [(f,) for f in select(available, options.limit // share, rng)]
        free = [fault for fault in available if not fault.alone]
        pairs: list[tuple[Fault, ...]] = []
        while len(pairs) < options.pairs // share:
            first, second = rng.sample(free, 2)
            if first.layer.partition(".")[0] != second.layer.partition(".")[0]:
                pairs.append((first, second))
        for chosen in [*singles, *pairs]:
            report = run_case(reference, network, chosen, clip)
            if (report or len(chosen) > 1) and not all(
                _changes_anything(network, (fault,), clip) for fault in chosen
            ):
                vacuous += 1
                continue
            outcome = judge(archive, chosen, report)
            outcomes.append(outcome)
            if options.verbose and not (outcome.detected and outcome.named):
                done = " + ".join(f"{f.layer}: {f.cause} ({f.detail})" for f in chosen)
                flags = f"{outcome.detected:d}{outcome.placed:d}{outcome.named:d}"
                print(
                    f"{flags} {Path(archive).name} {done} -> {'; '.join(outcome.said)}", flush=True
                )
        for seed in range(options.clean // share):
            height, width = rng.randrange(33, 70), rng.randrange(33, 70)
            video = np.random.default_rng(seed).random((1, 3, 6, height, width), dtype=np.float32)
            report = compare(
                reference, network, video, chunks=CHUNKS if network.spec.causal else None
            )
            clean += 1
            alarms += not report
    _print_table(outcomes, clean, alarms, time.perf_counter() - start)
    if vacuous:
        print(f"left out: {vacuous} faults that change no activation (an odd size, for instance)")
    if options.json:
        rows = [
            {
                "archive": o.archive,
                "faults": [[f.layer, f.cause, f.detail] for f in o.faults],
                **{k: getattr(o, k) for k in ("detected", "placed", "named", "only", "said")},
            }
            for o in outcomes
        ]
        options.json.write_text(json.dumps(rows, indent=1))


def _print_table(outcomes: Sequence[Outcome], clean: int, alarms: int, seconds: float) -> None:
    print(f"{'cause':<22}{'cases':>6}{'detected':>10}{'placed':>8}{'named':>7}")
    counts = Counter(o.faults[0].cause for o in outcomes if len(o.faults) == 1)
    for cause in sorted(counts):
        rows = [o for o in outcomes if len(o.faults) == 1 and o.faults[0].cause == cause]
        print(f"{cause:<22}{_row(rows)}")
    for label, size in (("single faults", 1), ("pairs", 2)):
        print(f"{label:<22}{_row([o for o in outcomes if len(o.faults) == size])}")
    print(f"clean runs {clean}, false alarms {alarms}; {seconds:.0f} s")


def _row(rows: Sequence[Outcome]) -> str:
    share = [sum(getattr(o, key) for o in rows) for key in ("detected", "placed", "named")]
    return f"{len(rows):>6}{share[0]:>10}{share[1]:>8}{share[2]:>7}"


if __name__ == "__main__":
    main()
