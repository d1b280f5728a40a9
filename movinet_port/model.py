"""The network: a stem, bottleneck layers, a head and a classifier.

One implementation serves three ways of calling: a base network sees whole clips; a stream network
either takes its state and returns it (`MoViNet.step`), or keeps it between calls
(`MoViNet.forward` and `MoViNet.clean_activation_buffers`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from movinet_port.clips import predict_clip
from movinet_port.errors import SpecError
from movinet_port.functions import ACTIVATIONS
from movinet_port.layers import (
    Bottleneck,
    Classifier,
    ClipPool,
    Conv,
    ConvBlock,
    StreamConvBlock,
)
from movinet_port.spec import ModelSpec
from movinet_port.stages import Pieces, readable_pieces
from movinet_port.streams import (
    FRAME_COUNT,
    POOL_BUFFER,
    STREAM_BUFFER,
    State,
    StatefulNetwork,
    check_video,
)
from movinet_port.variants import get_spec


class MoViNet(StatefulNetwork):
    """A mobile video network (arXiv 2103.11511) as Google published it.

    Args:
        spec: the architecture; or a node of `movinet_port.config`, such as
            ``_C.MODEL.MoViNetA0``, together with `num_classes` and `causal`.
        num_classes: number of logits; by default what the spec says.
        causal: for a node of `movinet_port.config`: True, which is the default as it was in the
            first PyTorch port, for the published stream network, False for the base one.
        dropout: rate before the last classifier layer, in training.
        stochastic_depth: rate at which the last layer's branch is dropped in training; earlier
            layers' rates grow linearly up to it. The authors train with 0.2 for both rates.
        **overrides: any other field of `ModelSpec`.

    Input is (batch, 3, frames, height, width), RGB in [0, 1], of any size and number of frames;
    output is logits, (batch, classes).

    Raises:
        SpecError: the arguments describe no MoViNet.
    """

    def __init__(
        self,
        spec: ModelSpec | Any,
        num_classes: int | None = None,
        causal: bool | None = None,
        *,
        dropout: float = 0.2,
        stochastic_depth: float = 0.2,
        **overrides: Any,
    ) -> None:
        super().__init__()
        for name, rate in (("dropout", dropout), ("stochastic_depth", stochastic_depth)):
            if not 0 <= rate <= 1:
                raise SpecError(f"{name} is {rate!r}, expected a rate between 0 and 1")
        self.spec = _resolve_spec(spec, num_classes, causal, overrides)
        spec = self.spec
        layers = list(spec.layers())
        self.stem = StreamConvBlock(
            spec, 3, spec.stem.filters, spec.stem.kernel_size, spec.stem.strides
        )
        for number, layer in enumerate(layers, start=1):
            rate = stochastic_depth * number / len(layers)
            self.add_module(layer.name, Bottleneck(spec, layer, rate))
        self.layer_names = tuple(layer.name for layer in layers)
        project = Conv(layers[-1].out_filters, spec.head.project_filters)
        self.head = ConvBlock(project, spec.norm_epsilon, ACTIVATIONS[spec.activation].module)
        self.pool = ClipPool()
        self.classifier = Classifier(spec, dropout)
        self.labels: tuple[str, ...] | None = None  # the classes' names, if known
        self._initialise()

    def _initialise(self) -> None:
        if self.stem.conv.weight.is_meta:
            # Nothing to fill, and trying would import torch's tracing tools: 70 MiB and a second.
            return
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # As the authors: small logits at the start.
        nn.init.normal_(self.classifier.output.conv.weight, std=0.01)

    def forward(self, video: Tensor) -> Tensor:
        """Return logits of the clip, or of the video up to and with this clip.

        A stream network remembers the clips since `clean_activation_buffers` and its logits are
        those of the whole video so far. What it remembers is detached from the graph, so that
        each clip's ``backward()`` stands alone.

        Args:
            video: (batch, 3, frames, height, width), RGB in [0, 1].

        Returns:
            (batch, classes) logits.

        Raises:
            StateError: the batch or the frame size is another than that of the clip before.
        """
        if not self.spec.causal:
            return self._run(video, None)[0]
        shape = check_video(video)
        logits, state = self._run(video, self._so_far(video, shape))
        # Only now: a clip that failed is no part of the video.
        self._stream = shape, self._keep(state)
        return logits

    def _step(self, video: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        return self._run(video, state)

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self.stem.conv.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.stem.conv.weight.device

    def pieces(self, batch: int) -> Pieces:
        """Return the stages of a base network for pieces of clips."""
        return readable_pieces(self)

    def predict_clip(self, frames: Tensor | Iterable[Tensor], chunk: int = 8, **how: Any) -> Tensor:
        """Return the logits of a clip or video too long to compute at once.

        Exactly what `forward` returns, but for the rounding of sums in another order.

        Args:
            frames: (batch, 3, frames, height, width), RGB in [0, 1], or an iterable of such
                pieces; a video read from a file, for instance.
            chunk: how many frames are computed at a time.
            **how: what a base network keeps of the whole clip; see
                `movinet_port.clips.predict_clip`.

        Returns:
            (batch, classes) logits.
        """
        return predict_clip(self, frames, chunk, **how)

    def features(self, video: Tensor) -> dict[str, Tensor]:
        """Return what each stage of the network makes of a clip that starts its video.

        Args:
            video: (batch, 3, frames, height, width).

        Returns:
            "stem" and "block{i}_layer{j}": (batch, channels, frames, height, width) of that
            stage; "head": (batch, channels, 1, 1, 1), pooled.
        """
        endpoints: dict[str, Tensor] = {}
        batch, height, width = check_video(video)
        state = self.init_state(batch, height, width) if self.spec.causal else None
        self._run(video, state, endpoints.__setitem__)
        return endpoints

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last classifier layer by a new one for `num_classes` classes."""
        self.spec = self.spec.replace(num_classes=num_classes)
        old = self.classifier.output.conv
        new = Conv(old.in_channels, num_classes, bias=True).to(old.weight)
        nn.init.normal_(new.weight, std=0.01)
        nn.init.zeros_(new.bias)  # type: ignore[arg-type]  # made with bias=True above
        self.classifier.output.conv = new
        self.labels = None

    def set_drop_rates(self, dropout: float, stochastic_depth: float) -> None:
        """Set the rates that the network is made with, for training."""
        self.classifier.dropout.p = dropout
        for number, name in enumerate(self.layer_names, start=1):
            rate = stochastic_depth * number / len(self.layer_names)
            self._layer(name).stochastic_depth.drop_rate = rate

    def _layer(self, name: str) -> Bottleneck:
        layer = self.get_submodule(name)
        assert isinstance(layer, Bottleneck)
        return layer

    def _run(
        self,
        video: Tensor,
        state: Mapping[str, Tensor] | None,
        record: Callable[[str, Tensor], None] | None = None,
    ) -> tuple[Tensor, State]:
        batch, _, _ = check_video(video)
        old: Mapping[str, Tensor] = state or {}
        new: State = {}

        def keep(name: str, value: Tensor | None) -> None:
            if state is not None and value is not None:
                new[name] = value

        def emit(name: str, value: Tensor) -> None:
            if record is not None:
                record(name, value)

        if state is None:
            count = torch.zeros(batch, dtype=torch.int64, device=video.device)
        else:
            count = old[FRAME_COUNT]
        x, buffer = self.stem(video, old.get(f"stem.{STREAM_BUFFER}"))
        keep(f"stem.{STREAM_BUFFER}", buffer)
        emit("stem", x)
        for name in self.layer_names:
            stream, pool = f"{name}.{STREAM_BUFFER}", f"{name}.{POOL_BUFFER}"
            x, buffer, total = getattr(self, name)(x, old.get(stream), old.get(pool), count)
            keep(stream, buffer)
            keep(pool, total)
            emit(name, x)
        x, total = self.pool(self.head(x), old.get(f"head.{POOL_BUFFER}"), count)
        keep(f"head.{POOL_BUFFER}", total)
        emit("head", x)
        keep(FRAME_COUNT, count + video.shape[2])
        return self.classifier(x), new


def _resolve_spec(
    spec: Any, num_classes: int | None, causal: bool | None, overrides: Mapping[str, Any]
) -> ModelSpec:
    if isinstance(num_classes, bool):
        raise SpecError(
            f"the second argument of MoViNet is the number of classes, found {num_classes}; "
            f"write MoViNet(cfg, 600, causal={num_classes})"
        )
    changes = dict(overrides)
    if num_classes is not None:
        changes["num_classes"] = num_classes
    if isinstance(spec, ModelSpec):
        if causal is not None and causal != spec.causal:
            changes["causal"] = causal
        return spec.replace(**changes)
    name = getattr(spec, "variant", None)
    if name is None:
        raise SpecError(
            f"MoViNet expects a ModelSpec or a node of movinet_port.config such as "
            f"_C.MODEL.MoViNetA0, found {type(spec).__name__}; "
            f"movinet_port.create_model('a0') builds a network by name"
        )
    return get_spec(name, "base" if causal is False else "stream", **changes)
