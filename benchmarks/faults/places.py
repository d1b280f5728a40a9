"""Every fault that one place of a network can have: the tables, laid over a network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.faults.computations import (
    CLIP_POOL,
    CUMULATIVE,
    FUNCTIONS,
    GATES,
    PADDINGS,
    POSITIONS,
    SE_POOLED,
    SE_PRODUCTS,
    SKIP_POOLS,
    SUMS,
    bottleneck_forward,
    cumulative,
    declare_symmetric,
    dilated,
    padded_by,
    past_only,
    past_repeated,
    set_legacy,
    squeeze_forward,
    symmetric,
    window_pool,
)
from benchmarks.faults.fault import (
    SHAPE,
    UNKNOWN,
    Apply,
    Around,
    Fault,
    at,
    change,
    copied,
    edit,
    exchange,
    in_place_of,
    in_turn,
    patch,
    random_like,
)
from benchmarks.faults.tensors import (
    BIAS_EDITS,
    FOUR,
    NORM_EDITS,
    NORM_ORDERS,
    SCALAR_EDITS,
    WEIGHT_EDITS,
    default_kernel,
    in_bfloat16,
    kernel_edits,
    norm_forward,
    result_in_bfloat16,
    result_in_float16,
    rounded_inside,
    tensorflow_bytes,
)
from benchmarks.faults.videos import BUFFERS, SUMS_CARRIED, VIDEOS, carried
from movinet_port import MoViNet
from movinet_port.layers import Bottleneck, Conv
from movinet_port.streams import FRAME_COUNT, Snapshot

# Laying the tables over a network


def porting_faults(network: MoViNet) -> Iterator[Fault]:
    """Yield every fault that one place of a network can have."""
    for name, module in network.named_modules():
        if isinstance(module, Conv):
            yield from _conv_faults(network, name, module)
        elif isinstance(module, nn.BatchNorm3d):
            yield from _norm_faults(network, name)
        elif isinstance(module, Bottleneck):
            yield from _bottleneck_faults(network, name, module)
        elif name.endswith("activation"):
            gate = name.endswith("squeeze_excitation.expand.activation")
            for detail, function in (GATES if gate else FUNCTIONS).items():
                cause = "gate" if gate else "activation"
                yield Fault(
                    cause,
                    at(name),
                    detail,
                    patch(name, lambda m, r, x, f=function: f(x)),
                )
            yield Fault("precision", at(name), "bfloat16", patch(name, in_bfloat16))
            for kind in (nn.Sigmoid, nn.Hardsigmoid) if gate else (nn.SiLU, nn.Hardswish, nn.ReLU):
                yield Fault(
                    "gate" if gate else "activation",
                    at(name),
                    f"nn.{kind.__name__}",
                    in_place_of(name, kind),
                )
    yield from _exchanged(network)
    yield from _pool_faults(network, "pool", "pool")
    yield from _whole_faults(network)
    for cause, detail, video, accepts in VIDEOS:
        yield Fault(
            cause,
            at("input"),
            detail,
            lambda n, v=video: Around(n, lambda net, x: net(v(x))),
            frozenset((cause, *accepts)) if accepts else frozenset(),
            alone=True,
        )
    if network.spec.causal:
        yield from _stream_faults(network)


def _fault(cause: str, tap: str, detail: str, apply: Apply, accepts: Sequence[str] = ()) -> Fault:
    # An unknown is unknown: what else it may be called must be said in full.
    true = frozenset(accepts) if cause == UNKNOWN and accepts else frozenset((cause, *accepts))
    return Fault(cause, at(tap), detail, apply, true)


def _conv_faults(network: MoViNet, name: str, conv: Conv) -> Iterator[Fault]:
    weight = f"{name}.weight"
    for cause, detail, function, accepts in (*kernel_edits(conv.weight), *WEIGHT_EDITS):
        yield _fault(cause, name, detail, edit(weight, function), accepts)
    if conv.bias is not None:
        for cause, detail, function, accepts in BIAS_EDITS:
            yield _fault(cause, name, f"bias {detail}", edit(f"{name}.bias", function), accepts)
        yield _fault(
            "tensor-not-loaded",
            name,
            "weight and bias",
            in_turn(edit(weight, default_kernel), edit(f"{name}.bias", torch.zeros_like)),
        )
    frames, height, _ = conv.kernel_size
    if height > 1:
        for detail, forward in PADDINGS:
            yield _fault("padding", name, detail, patch(name, forward))
        yield _fault("unknown", name, "dilation", patch(name, dilated))
        yield _fault("padding", name, "the other generation's", change(name, set_legacy))
        yield _fault("padding", name, "k // 2 by its own rule", change(name, declare_symmetric))
    if frames > 1 and not conv.causal:
        yield _fault("padding", name, "past only", patch(name, padded_by(past_only)))
        yield _fault("padding", name, "frames repeated", patch(name, past_repeated))
    yield _fault("precision", name, "in bfloat16", patch(name, in_bfloat16))
    yield _fault("precision", name, "result in float16", patch(name, result_in_float16))
    for dtype in (torch.bfloat16, torch.float16):
        kind = str(dtype).removeprefix("torch.")
        yield _fault("precision", name, f"{kind} inside", patch(name, rounded_inside(dtype)))
    yield _fault(
        "unknown", name, "noise", patch(name, lambda m, r, x: r(x) + 0.1 * random_like(r(x)))
    )
    yield _fault(
        "unknown", name, "dropout", patch(name, lambda m, r, x: r(F.dropout(x, 0.2, True)))
    )
    yield _fault("unknown", name, "tanh", patch(name, lambda m, r, x: torch.tanh(r(x))))
    yield _fault(
        "unknown",
        name,
        "weight standardised",
        patch(
            name,
            lambda m, r, x: (
                r(x)
                - F.conv3d(
                    F.pad(x, m.padding_for(x)),
                    m.weight.mean((1, 2, 3, 4), True).expand_as(m.weight),
                    None,
                    m.stride,
                    groups=m.groups,
                )
                if m.weight[0].numel() > 1
                else r(x)
            ),
        ),
    )


def _norm_faults(network: MoViNet, name: str) -> Iterator[Fault]:
    for eps in (1e-5, 1e-6, 1e-2, 0.0):
        yield _fault(
            "norm-epsilon", name, f"{eps:g}", change(name, lambda m, e=eps: setattr(m, "eps", e))
        )
    yield _fault(
        "norm-epsilon",
        name,
        "outside the root",
        patch(name, norm_forward(eps_outside=True)),
        (UNKNOWN,),
    )
    yield _fault("norm-not-in-eval", name, "train()", change(name, lambda m: m.train()))
    yield _fault(
        "norm-not-in-eval",
        name,
        "no running statistics",
        change(name, lambda m: (setattr(m, "running_mean", None), setattr(m, "running_var", None))),
        ("tensor-not-loaded",),
    )
    yield _fault(
        "norm-not-in-eval",
        name,
        "F.batch_norm(training=True)",
        patch(
            name, lambda m, r, x: F.batch_norm(x, None, None, m.weight, m.bias, True, 0.0, m.eps)
        ),
    )
    for first, second in NORM_ORDERS:
        yield _fault(
            "norm-stats-swapped",
            name,
            f"{first}, {second}",
            exchange(f"{name}.{first}", f"{name}.{second}"),
        )
    yield _fault(
        "norm-stats-swapped",
        name,
        "mean, variance, weight, bias",
        in_turn(
            exchange(f"{name}.weight", f"{name}.running_mean"),
            exchange(f"{name}.bias", f"{name}.running_var"),
        ),
    )
    for cause, leaf, detail, function, accepts in NORM_EDITS:
        yield _fault(cause, name, detail, edit(f"{name}.{leaf}", function), accepts)
    initial = {
        leaf: (torch.ones_like if leaf in ("weight", "running_var") else torch.zeros_like)
        for leaf in FOUR
    }
    yield _fault(
        "tensor-not-loaded",
        name,
        "all four",
        in_turn(*(edit(f"{name}.{leaf}", f) for leaf, f in initial.items())),
    )
    yield _fault(
        "tensor-not-loaded",
        name,
        "both statistics",
        in_turn(*(edit(f"{name}.{leaf}", initial[leaf]) for leaf in FOUR[2:])),
    )
    yield _fault(
        "weights-differ",
        name,
        "fine-tuned",
        in_turn(
            *(edit(f"{name}.{leaf}", lambda t: t * (1 + 0.02 * random_like(t, 4))) for leaf in FOUR)
        ),
    )
    yield _fault("precision", name, "in bfloat16", patch(name, in_bfloat16))
    yield _fault(
        "unknown",
        name,
        "instance norm",
        patch(
            name, lambda m, r, x: F.instance_norm(x, None, None, m.weight, m.bias, True, 0.0, m.eps)
        ),
        (UNKNOWN, "norm-not-in-eval"),
    )
    yield _fault(
        "unknown",
        name,
        "layer norm",
        patch(name, lambda m, r, x: F.group_norm(x, 1, m.weight, m.bias, m.eps)),
    )
    yield _fault(
        "activation",
        name,
        "relu before it",
        patch(name, lambda m, r, x: r(torch.relu(x))),
        (UNKNOWN,),
    )
    yield _fault(
        "activation",
        name,
        "relu behind it",
        patch(name, lambda m, r, x: torch.relu(r(x))),
        (UNKNOWN,),
    )


def _bottleneck_faults(network: MoViNet, name: str, layer: Bottleneck) -> Iterator[Fault]:
    for cause, detail, combine, accepts in SUMS:
        yield _fault(cause, name, detail, patch(name, bottleneck_forward(combine)), accepts)
    rezero = f"{name}.rezero"
    for cause, detail, function, accepts in SCALAR_EDITS:
        yield _fault(cause, rezero, detail, edit(f"{rezero}.scale", function), accepts)
    yield _fault("rezero", rezero, "left out", patch(rezero, lambda m, r, x: x + 0 * m.scale))
    yield _fault(
        "rezero", rezero, "1 + scale", patch(rezero, lambda m, r, x: (1 + m.scale) * x), (UNKNOWN,)
    )
    yield _fault("precision", name, "sum in bfloat16", patch(name, result_in_bfloat16))
    if layer.skip is not None:
        if layer.skip.pool is not None:
            for cause, detail, forward, accepts in SKIP_POOLS:
                tap = f"{name}.skip.pool"
                yield _fault(cause, tap, detail, patch(tap, forward), accepts)
        yield _fault(
            "skip-path",
            name,
            "activation in the skip",
            patch(f"{name}.skip", lambda m, r, x: F.silu(r(x))),
            (UNKNOWN, "activation"),
        )
    se = layer.squeeze_excitation
    if se is None:
        return
    path = f"{name}.squeeze_excitation"
    first = (
        f"{path}.reduce.conv" if se.positional_encoding is None else f"{path}.positional_encoding"
    )
    if se.spatial_pool is not None and se.temporal_pool is not None:
        for detail, pooled in SE_POOLED:
            yield _fault(
                "se-pooling",
                first,
                detail,
                patch(path, squeeze_forward(pooled)),
                (UNKNOWN,) if "turn" in detail or "rest 0" in detail else (),
            )
    for detail, product in SE_PRODUCTS:
        yield _fault(
            "unknown",
            path,
            detail,
            patch(path, squeeze_forward(None, product)),
            (UNKNOWN, "gate", "se-pooling"),
        )
    if se.spatial_pool is not None:
        tap = f"{path}.spatial_pool"
        yield _fault(
            "se-pooling",
            tap,
            "the greatest",
            patch(tap, lambda m, r, x: x.amax((3, 4), True)),
            (UNKNOWN,),
        )
        yield _fault(
            "se-pooling",
            tap,
            "over frames too",
            patch(tap, lambda m, r, x: x.mean((2, 3, 4), True).expand(-1, -1, x.shape[2], -1, -1)),
        )
        yield _fault(
            "pool-divisor",
            tap,
            "sum",
            patch(tap, lambda m, r, x: x.sum((3, 4), True)),
            ("se-pooling",),
        )
        yield _fault("precision", tap, "float16", patch(tap, result_in_float16))
    if se.temporal_pool is not None:
        yield from _pool_faults(network, f"{path}.temporal_pool", f"{path}.temporal_pool")
    if se.positional_encoding is not None:
        tap = f"{path}.positional_encoding"
        for detail, forward, accepts in POSITIONS:
            yield _fault("positional-encoding", tap, detail, patch(tap, forward), accepts)
        for cause_detail, function in (
            ("scale at 0", torch.zeros_like),
            ("scale at 1", torch.ones_like),
        ):
            yield _fault(
                "positional-encoding",
                tap,
                cause_detail,
                edit(f"{tap}.scale", function),
                ("tensor-not-loaded",),
            )


def _pool_faults(network: MoViNet, path: str, tap: str) -> Iterator[Fault]:
    if network.spec.causal and path != "pool":
        for cause, detail, mean, accepts in CUMULATIVE:
            yield _fault(cause, tap, detail, patch(path, cumulative(mean)), accepts)
    elif not network.spec.causal:
        for cause, detail, clip, accepts in CLIP_POOL:
            yield _fault(
                cause,
                tap,
                detail,
                patch(path, lambda m, r, x, b, n, f=clip: (f(x), r(x, b, n)[1])),
                accepts,
            )
    else:
        yield _fault(
            "pool-divisor",
            tap,
            "divided by the clip's frames",
            patch(path, lambda m, r, x, b, n: (r(x, b, n)[1] / x.shape[2], r(x, b, n)[1])),
            ("se-pooling", "stream-state"),
        )
        yield _fault(
            "stream-state",
            tap,
            "this clip only",
            patch(path, lambda m, r, x, b, n: (x.mean((2, 3, 4), True), r(x, b, n)[1])),
            ("se-pooling", "pool-divisor"),
        )
        yield _fault(
            "unknown",
            tap,
            "the greatest",
            patch(path, lambda m, r, x, b, n: (x.amax((2, 3, 4), True), r(x, b, n)[1])),
            (UNKNOWN, "se-pooling"),
        )
    yield _fault("precision", tap, "bfloat16", patch(path, result_in_bfloat16))


def _exchanged(network: MoViNet) -> Iterator[Fault]:
    """Yield exchanges of tensors of one shape, next to one another in a list of parameters."""
    state = network.state_dict()
    kinds = {
        "depthwise kernels": "depthwise.conv.weight",
        "temporal kernels": "temporal_conv.weight",
        "projections": "projection.conv.weight",
        "expansions": "expansion.conv.weight",
        "scales": "rezero.scale",
        "position scales": "positional_encoding.scale",
        "reduce biases": "reduce.conv.bias",
        "expand biases": "expand.conv.bias",
        "reduce kernels": "reduce.conv.weight",
        "norm weights": "norm.weight",
        "norm biases": "norm.bias",
        "means": "running_mean",
        "variances": "running_var",
    }
    for label, ending in kinds.items():
        names = [name for name in state if name.endswith(ending)]
        for first, second in itertools.pairwise(names):
            if state[first].shape != state[second].shape:
                continue
            places = at(first.rpartition(".")[0], second.rpartition(".")[0])
            scale = ("rezero",) if label == "scales" else ("positional-encoding",)
            extra = scale if state[first].ndim == 0 else ()
            yield Fault(
                "tensor-swapped",
                places,
                f"{label} exchanged",
                exchange(first, second),
                frozenset(("tensor-swapped", *extra)),
            )
            yield Fault(
                "tensor-swapped",
                places[1:],
                f"{label}: the other's",
                copied(first, second),
                frozenset(("tensor-swapped", *extra)),
            )
    norms = [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm3d)]
    for first, second in itertools.pairwise(norms):
        if state[f"{first}.weight"].shape == state[f"{second}.weight"].shape:
            yield Fault(
                "tensor-swapped",
                at(first, second),
                "whole norms exchanged",
                in_turn(*(exchange(f"{first}.{leaf}", f"{second}.{leaf}") for leaf in FOUR)),
            )


def _everywhere(network: MoViNet, kind: Callable[[str, Any], bool]) -> list[str]:
    return [name for name, module in network.named_modules() if kind(name, module)]


def _whole_faults(network: MoViNet) -> Iterator[Fault]:
    """Yield one mistake in the converter: the same fault in all layers of a kind."""
    norms = _everywhere(network, lambda n, m: isinstance(m, nn.BatchNorm3d))
    convs = _everywhere(network, lambda n, m: isinstance(m, Conv))
    depthwise = [n for n in convs if n.endswith("depthwise.conv")]
    spatial = [n for n in depthwise if network.get_submodule(n).kernel_size[1] > 1]  # type: ignore[index]
    pointwise = [n for n in convs if network.get_submodule(n).kernel_size == (1, 1, 1)]
    gates = _everywhere(network, lambda n, m: n.endswith("squeeze_excitation.expand.activation"))
    activations = _everywhere(
        network, lambda n, m: n.endswith("activation") and n not in gates and "classifier" not in n
    )
    layers = list(network.layer_names)

    def all_of(
        cause: str, taps: list[str], detail: str, step: Callable[[str], Apply], *also: str
    ) -> Fault:
        return Fault(
            cause,
            at(*taps),
            f"everywhere: {detail}",
            in_turn(*(step(t) for t in taps)),
            frozenset((cause, *also)),
            alone=True,
        )

    yield all_of(
        "norm-epsilon", norms, "1e-5", lambda n: change(n, lambda m: setattr(m, "eps", 1e-5))
    )
    yield all_of("norm-not-in-eval", norms, "train()", lambda n: change(n, lambda m: m.train()))
    yield all_of(
        "norm-stats-swapped",
        norms,
        "mean, variance",
        lambda n: exchange(f"{n}.running_mean", f"{n}.running_var"),
    )
    yield all_of(
        "norm-stats-swapped", norms, "weight, bias", lambda n: exchange(f"{n}.weight", f"{n}.bias")
    )
    yield all_of(
        "tensor-not-loaded",
        norms,
        "statistics",
        lambda n: in_turn(
            edit(f"{n}.running_mean", torch.zeros_like), edit(f"{n}.running_var", torch.ones_like)
        ),
    )
    yield all_of(
        "kernel-layout",
        spatial,
        "height and width",
        lambda n: edit(f"{n}.weight", lambda w: w.transpose(3, 4)),
    )
    yield all_of(
        "kernel-layout",
        pointwise,
        "not transposed",
        lambda n: edit(f"{n}.weight", tensorflow_bytes),
    )
    yield all_of(
        "kernel-layout",
        depthwise,
        "not transposed",
        lambda n: edit(f"{n}.weight", tensorflow_bytes),
    )
    yield all_of(
        "kernel-flip",
        spatial,
        "height and width",
        lambda n: edit(f"{n}.weight", lambda w: w.flip(3, 4)),
    )
    yield all_of(
        "padding", ["stem.conv", *spatial], "k // 2", lambda n: patch(n, padded_by(symmetric))
    )
    yield all_of(
        "activation", activations, "relu", lambda n: patch(n, lambda m, r, x: torch.relu(x))
    )
    for detail, function in list(GATES.items())[:5]:
        yield all_of("gate", gates, detail, lambda n, f=function: patch(n, lambda m, r, x: f(x)))
    yield all_of(
        "rezero",
        [f"{n}.rezero" for n in layers],
        "0",
        lambda n: edit(f"{n}.scale", torch.zeros_like),
    )
    yield all_of(
        "precision",
        convs,
        "stored in float16",
        lambda n: edit(f"{n}.weight", lambda w: w.half().to(w)),
    )
    yield all_of(
        "weights-differ",
        convs,
        "fine-tuned",
        lambda n: edit(f"{n}.weight", lambda w: w * (1 + 0.01 * random_like(w))),
    )
    yield all_of(
        "skip-path", layers, "left out", lambda n: patch(n, bottleneck_forward(SUMS[0][2]))
    )
    pools = [
        f"{n}.skip.pool" for n in layers if getattr(network.get_submodule(n).skip, "pool", None)
    ]  # type: ignore[arg-type]
    if pools:
        yield all_of(
            "pool-divisor", pools, "counts padding", lambda n: patch(n, window_pool(same=True))
        )
    yield Fault(
        "precision", (), "the whole network in bfloat16", lambda n: n.bfloat16(), alone=True
    )
    yield Fault(
        "norm-not-in-eval",
        (),
        "the whole network in train()",
        lambda n: n.train(),
        frozenset(("norm-not-in-eval", UNKNOWN)),
        alone=True,
    )
    yield _fault(
        "unknown", "classifier", "softmax", patch("classifier", lambda m, r, x: r(x).softmax(1))
    )
    yield _fault(
        "unknown", "classifier", "temperature", patch("classifier", lambda m, r, x: r(x) / 1.5)
    )
    yield _fault(
        "unknown",
        "classifier.output.conv",
        "dropout",
        change("classifier.dropout", lambda m: m.train()),
    )
    yield Fault(
        "unknown",
        at(layers[-1]),
        "stochastic depth",
        change(
            f"{layers[-1]}.stochastic_depth", lambda m: (m.train(), setattr(m, "drop_rate", 0.9))
        ),
        frozenset((UNKNOWN, "skip-path", "rezero")),
    )


def _stream_faults(network: MoViNet) -> Iterator[Fault]:
    for name in network.layer_names:
        block: Any = network.get_submodule(f"{name}.depthwise")
        if block.stream_conv.frames_before:
            conv = f"{name}.depthwise.{'temporal_' if block.splits else ''}conv"
            places = ((name, f"{name}.depthwise", f"{name}.stream_buffer", conv),)
            for detail, build in BUFFERS:
                yield Fault("stream-state", places, f"buffer {detail}", build(f"{name}.depthwise"))
        se: Any = network.get_submodule(name).squeeze_excitation
        if se is not None and se.temporal_pool is not None:
            pool = f"{name}.squeeze_excitation.temporal_pool"
            for detail, new in SUMS_CARRIED:
                yield Fault(
                    "stream-state",
                    ((pool, name, f"{name}.pool_buffer"),),
                    f"sum {detail}",
                    patch(pool, carried(new)),
                )
    for detail, new in SUMS_CARRIED:
        yield Fault(
            "stream-state",
            (("pool", "head", "head.pool_buffer"),),
            f"head's sum {detail}",
            patch("pool", carried(new)),
        )

    def forget(network: MoViNet, video: Tensor) -> Tensor:
        network.clean_activation_buffers()
        return network(video)

    def rewrite(network: MoViNet, change: Callable[[str, Tensor], Tensor]) -> None:
        stream = network.snapshot()
        assert stream is not None
        state = {name: change(name, value) for name, value in stream.state.items()}
        network.restore(Snapshot(state, stream.shape))

    def uncounted(network: MoViNet, video: Tensor) -> Tensor:
        out = network(video)
        rewrite(network, lambda name, value: 0 * value + 1 if name == FRAME_COUNT else value)
        return out

    def by_clips(network: MoViNet, video: Tensor) -> Tensor:
        stream = network.snapshot()
        before = 0 if stream is None else stream.state[FRAME_COUNT]
        out = network(video)
        rewrite(
            network, lambda name, value: 0 * value + before + 1 if name == FRAME_COUNT else value
        )
        return out

    def restarted(state: str) -> Callable[[MoViNet, Tensor], Tensor]:
        def call(network: MoViNet, video: Tensor) -> Tensor:
            out = network(video)
            rewrite(network, lambda name, value: 0 * value if name.endswith(state) else value)
            return out

        return call

    def stale(network: MoViNet) -> nn.Module:
        with torch.no_grad():
            network(
                torch.rand((*SHAPE[:2], 2, *SHAPE[3:]), generator=torch.Generator().manual_seed(9))
            )
        return network

    # What a whole network forgets is found at the places that needed it: any is the place.
    yield Fault("stream-state", (), "of another video", stale, alone=True)
    for detail, call in (
        ("forgotten between clips", forget),
        ("frames not counted", uncounted),
        ("clips counted, not frames", by_clips),
        ("all buffers zeroed", restarted("stream_buffer")),
        ("all sums zeroed", restarted("pool_buffer")),
        ("count zeroed", restarted("frame_count")),
    ):
        yield Fault("stream-state", (), detail, lambda n, c=call: Around(n, c), alone=True)
