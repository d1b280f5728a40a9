"""The inference network: a MoViNet folded, with channels together and frames in front."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from movinet_port.clips import predict_clip
from movinet_port.errors import SpecError
from movinet_port.fast.backends import CLASSIFIER, LAYER, PRODUCT, STEM, Case, choose
from movinet_port.fast.fold import Folded
from movinet_port.fast.layers import FoldedModule, Layer, Pointwise, StreamConv
from movinet_port.fast.pieces import fast_pieces
from movinet_port.fast.run import Run, Tap, Workspace
from movinet_port.fast.state import StreamState
from movinet_port.layers import at_least_float32, encoding_rates
from movinet_port.spec import ModelSpec
from movinet_port.stages import Pieces
from movinet_port.streams import State, StatefulNetwork

# For how many cases a network keeps what was chosen.
_CASES = 64


class InferenceNetwork(StatefulNetwork):
    """What every optimised network offers: the call signature of `MoViNet`, without gradients.

    A subclass computes, in `run`; the rest is the same for all of them.

    Attributes:
        spec: the architecture.
        labels: the classes' names, or None.
    """

    spec: ModelSpec
    labels: tuple[str, ...] | None

    def __init__(self, spec: ModelSpec, labels: tuple[str, ...] | None) -> None:
        super().__init__()
        self.spec = spec
        self.labels = labels

    def run(self, video: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState | None]:
        """Return logits and the state after the clip, in the optimised networks' own form.

        Nothing is kept and nothing is checked; `state` is not changed. What is returned may be an
        inference tensor, which takes no part in gradients.

        Args:
            video: (batch, 3, frames, height, width).
            state: `StreamState.of` makes one; None for a base network.
        """
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, video: Tensor) -> Tensor:
        """Return logits, as `MoViNet.forward` does, and remember the video in a stream network.

        Args:
            video: (batch, 3, frames, height, width), RGB in [0, 1].

        Returns:
            (batch, classes) logits.

        Raises:
            StateError: the batch or the frame size is another than that of the clip before.
        """
        shape = self.check(video)
        if not self.spec.causal:
            return self.run(video, None)[0].clone()
        logits, after = self.run(video, self._so_far(video, shape))
        assert after is not None
        self._stream = shape, after
        return logits.clone()

    def predict_clip(self, frames: Tensor | Iterable[Tensor], chunk: int = 8, **how: Any) -> Tensor:
        """Return the logits of a clip too long to compute at once, as `MoViNet.predict_clip`."""
        return predict_clip(self, frames, chunk, **how)

    @torch.no_grad()
    def _step(self, video: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        logits, after = self.run(video, StreamState.of(state, self.dtype))
        assert after is not None
        return logits.clone(), after.public()

    def _keep(self, state: Mapping[str, Tensor]) -> StreamState:
        return StreamState.of(state)

    def _public(self, kept: StreamState) -> State:
        return kept.public()

    def _move(self, kept: StreamState, fn: Callable[[Tensor], Tensor]) -> StreamState:
        return kept.apply(fn)


class _Chosen(NamedTuple):
    """What computes a network in one case."""

    stem: Callable[[Tensor, Run], Tensor]
    layers: list[Callable[[Tensor, Run], Tensor]]
    head: Callable[[Tensor], Tensor]
    hidden: Callable[[Tensor], Tensor]
    output: Callable[[Tensor], Tensor]


class FastMoViNet(InferenceNetwork):
    """A MoViNet for inference: the outputs of the readable network, rounded otherwise.

    Made by `movinet_port.optimize`. It takes any batch, size and number of frames, and has no
    gradients: its tensors are buffers, folded from the readable network's parameters as
    ``model.eval()`` uses them.

    Attributes:
        spec: the architecture.
        labels: the classes' names, or None.
        layer_names: the bottlenecks.
        turned: whether its layers compute frames turned by 180 degrees.
    """

    def __init__(self, folded: Folded, labels: tuple[str, ...] | None = None) -> None:
        super().__init__(folded.spec, labels)
        spec = folded.spec
        self.layer_names = tuple(folded.layers)
        self.turned = folded.stem.turned
        self.stem = StreamConv("stem", "stem", folded.stem, spec)
        offset = torch.zeros_like(folded.stem.bias)
        for name, layer in folded.layers.items():
            self.add_module(name, Layer(name, layer, offset, spec))
            offset = layer.offset
        self.head = Pointwise(folded.head, spec.activation)
        self.hidden = Pointwise(folded.hidden, spec.classifier_activation)
        self.output = Pointwise(folded.output)
        self._waves: dict[torch.dtype, tuple[Tensor, Tensor, list[int]]] = {}
        self._chosen: dict[Case, _Chosen] = {}
        # What clips are computed in, or nothing while it is in use.
        self._workspaces: list[Workspace] = []
        self.register_load_state_dict_post_hook(_prepare_again)
        self.prepare()
        self.eval()

    def prepare(self) -> None:
        """Reach for the layers."""
        self._waves.clear()
        self._chosen = {}
        self._workspaces.clear()
        self.bottlenecks: list[Layer] = [getattr(self, name) for name in self.layer_names]
        self.weight = self.output.weight

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_chosen": {}, "_workspaces": []}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FastMoViNet:
        super()._apply(fn, recurse)
        self.prepare()
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The type it computes in."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.weight.device

    def run(
        self, video: Tensor, state: StreamState | None, tap: Tap | None = None
    ) -> tuple[Tensor, StreamState | None]:
        """Return logits and the state after the clip, in this network's own form.

        Nothing is kept and nothing is checked; `state` is not changed.

        Args:
            video: (batch, 3, frames, height, width).
            state: `StreamState.of` makes one; None for a base network.
            tap: shown every activation that the algebra leaves, see `Tap`.
        """
        with torch.inference_mode():
            if tap is not None:
                # In fresh memory: a tap may keep the tensors that it is shown.
                return self.compute(video, state, tap)
            # Taken out while it computes: another thread computes in memory of its own.
            try:
                workspace = self._workspaces.pop()
            except IndexError:
                workspace = Workspace()
            try:
                return self.compute(video, state, workspace=workspace)
            finally:
                self._workspaces[:] = [workspace]

    def compute(
        self,
        video: Tensor,
        state: StreamState | None,
        tap: Tap | None = None,
        workspace: Workspace | None = None,
        package: Any = None,
    ) -> tuple[Tensor, StreamState | None]:
        """Compute `run`.

        Args:
            video, state, tap: as in `run`.
            workspace: where to compute; by default in fresh memory.
            package: computes parts of a package, see `Case`.
        """
        video = video.to(self.dtype)
        batch, _, frames, height, width = video.shape
        case = Case(
            *(batch, frames, height, width, video.dtype, video.device.type),
            stream=state is not None,
            traced=torch.compiler.is_compiling(),
            watched=tap is not None,
            package=package,
        )
        chosen = self._chosen.get(case)
        if chosen is None:
            chosen = self._choose(case)
        run = Run(batch, frames, state, at_least_float32(video.dtype), tap, workspace, self.turned)
        if state is not None:
            run.waves = self.waves(state.count, frames, video.dtype)
        x = chosen.stem(video, run)
        for layer in chosen.layers:
            x = layer(x, run)
        x = run.show("head.activation", chosen.head(x.view(-1, x.shape[3])).view(*x.shape[:3], -1))
        pooled = run.show_vector("pool", self._pool(x, run))
        hidden = run.show_vector("classifier.hidden.activation", chosen.hidden(pooled))
        logits: Tensor = chosen.output(hidden)
        if tap is not None:
            logits = tap("classifier", logits)
        if state is None:
            return logits, None
        return logits, StreamState(run.new_frames, run.new_pools, state.count + run.frames)

    def _choose(self, case: Case) -> _Chosen:
        """Ask what computes each part of the network, once for each case."""
        first, layers = case, []
        stem = choose(STEM, self.stem, case)
        case = case.of_size(*self.stem.out_size(case.height, case.width))
        for layer in self.bottlenecks:
            layers.append(choose(LAYER, layer, case))
            case = case.of_size(*layer.depthwise.out_size(case.height, case.width))
        vector = case._replace(frames=1, height=1, width=1)
        if len(self._chosen) >= _CASES:
            self._chosen.clear()
        found = self._chosen[first] = _Chosen(
            stem,
            layers,
            choose(PRODUCT, self.head, case),
            choose(CLASSIFIER, self.hidden, vector),
            choose(CLASSIFIER, self.output, vector),
        )
        return found

    def quantise(self) -> None:
        """Compute the large 1 x 1 convolutions with 8-bit weights and activations from now on.

        Activations are quantised as they come, one scale for each matrix of them. Depthwise
        convolutions and squeeze-excitations stay as they are.

        Raises:
            SpecError: the network is not float32 on a CPU, or PyTorch has no 8-bit products here.
        """
        if self.dtype != torch.float32 or self.device.type != "cpu":
            raise SpecError(
                f"int8 needs a float32 network on the CPU, found {self.dtype} on {self.device}"
            )
        if torch.backends.quantized.engine == "none":
            raise SpecError("int8: this PyTorch has no engine for quantised products")
        blocks = [self.head, self.hidden, self.output]
        for layer in self.bottlenecks:
            blocks += [layer.expansion, layer.project]
        for block in blocks:
            block.quantized = True
        _prepare_again(self)

    def pieces(self, batch: int) -> Pieces:
        """Return the stages of a base network for pieces of so many clips."""
        return fast_pieces(self, batch)

    def _pool(self, x: Tensor, run: Run) -> Tensor:
        total = x.flatten(1, 2).mean(1, dtype=at_least_float32(x.dtype))
        if run.frames > 1:
            total = total.unflatten(0, (-1, run.batch)).sum(0)
        if run.state is None:
            return (total / run.frames).to(x.dtype)
        total = run.new_pools["head"] = run.state.pools["head"] + total
        return (total * run.part_now).to(x.dtype)

    def waves(self, count: Tensor, frames: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the positional encoding of each layer that has one, scaled.

        Computed for all layers at once: they differ in width and scale.

        Args:
            count: (batch,) frames seen before.
            frames: how many there are now.
            dtype: of what is returned.

        Returns:
            layer -> (frames * batch, channels).
        """
        if not self.spec.positional_encoding:
            return {}
        if dtype not in self._waves:
            self._waves[dtype] = self._frequencies(dtype)
        rates, sines, widths = self._waves[dtype]
        first = torch.arange(frames, device=count.device)[:, None] + count
        angle = first.flatten()[:, None].to(rates.dtype) * rates
        waves = torch.where(sines, angle.sin(), angle.cos()).split(widths, 1)
        encodings = {}
        for layer, wave in zip(self.bottlenecks, waves, strict=True):
            assert layer.gate is not None
            assert layer.gate.scale is not None
            encodings[layer.name] = layer.gate.scale * wave.to(dtype)
        return encodings

    def _frequencies(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[int]]:
        rates: list[Tensor] = []
        sines: list[Tensor] = []
        for layer in self.bottlenecks:
            assert layer.gate is not None
            channels = layer.gate.reduce.weight.shape[1]
            rate = encoding_rates(channels, at_least_float32(dtype), self.device)
            rates.append(torch.cat([rate[0::2], rate[1::2]]))
            sines.append(torch.arange(channels, device=self.device) < (channels + 1) // 2)
        return torch.cat(rates), torch.cat(sines), [len(rate) for rate in rates]


def _prepare_again(network: FastMoViNet, _keys: Any = None) -> None:
    # What is inside first.
    for module in reversed(list(network.modules())):
        if isinstance(module, FoldedModule):
            module.prepare()
    network.prepare()
