"""A TF Lite file and the network converted from it, both computed in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from converters.errors import ConversionError
from converters.tflite.network import LiteNetwork
from converters.tflite.run import LiteRunner
from converters.tflite.schema import LiteModel, Signature
from movinet_port.agreement import FUNCTION_BOUND, Agreement, Tally
from movinet_port.model import MoViNet

# What is left where numbers of the file had to be rounded to float32: what 8-bit numbers stand for,
# and what a gate's constants are taken out of.
ROUNDED_BOUND = 1e-6
_FRAMES = 4
_IMAGE, _LOGITS = "image", "logits"


class LiteStream:
    """A TF Lite file in float64, called clip after clip of one video.

    Args:
        model: the file.
        constants: as in `LiteRunner`.

    Raises:
        ConversionError: the file's signature is not that of a MoViNet.
    """

    def __init__(
        self, model: LiteModel, constants: Mapping[tuple[int, int], Tensor] | None = None
    ) -> None:
        self._model = model
        self._runner = LiteRunner(model, constants=constants)
        signature = _signature(model)
        inputs, outputs = dict(signature.inputs), dict(signature.outputs)
        if _IMAGE not in inputs or len(model.tensors[inputs[_IMAGE]].shape) != 5:
            raise ConversionError(
                f"the file's signature takes {', '.join(inputs) or 'nothing'}; expected image "
                f"(1, frames, height, width, 3)"
            )
        self._image = inputs.pop(_IMAGE)
        results = [name for name in outputs if name not in inputs]
        if len(results) != 1 or len(outputs) != len(inputs) + 1:
            raise ConversionError(
                f"the file's signature returns {', '.join(sorted(outputs))}; expected one tensor "
                f"of logits and each of its {len(inputs)} states"
            )
        self._logits = outputs.pop(results[0])
        self._inputs, self._outputs = inputs, outputs
        self.reset()

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """(batch, frames, height, width, 3) of what the file takes."""
        return self._model.tensors[self._image].shape

    def reset(self) -> None:
        """Start another video."""
        self.states: dict[str, Tensor] = {}
        for name, index in self._inputs.items():
            tensor = self._model.tensors[index]
            dtype = torch.float64 if tensor.dtype != "int32" else torch.int32
            self.states[name] = torch.zeros(tensor.shape, dtype=dtype)

    def __call__(self, clip: Tensor) -> Tensor:
        """Return the logits after this clip, (batch, frames, height, width, 3) in [0, 1]."""
        return self.watch(clip, [self._logits])[self._logits]

    def watch(self, clip: Tensor, wanted: Sequence[int]) -> dict[int, Tensor]:
        """Return what some tensors of the file are for this clip, which comes next in the video."""
        given = {self._image: clip, **{self._inputs[n]: s for n, s in self.states.items()}}
        found = self._runner(given, {*wanted, *self._outputs.values()})
        self.states = {name: found[index] for name, index in self._outputs.items()}
        return {index: found[index] for index in wanted}


def _signature(model: LiteModel) -> Signature:
    if len(model.signatures) == 1:
        return next(iter(model.signatures.values()))
    raise ConversionError(
        f"the file has {len(model.signatures)} signatures "
        f"({', '.join(model.signatures) or 'none'}), expected one, by which its states are told "
        f"apart"
    )


def both_sides(
    network: LiteNetwork, model: MoViNet, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits of the file and of the network, after each frame of one random video.

    Args:
        network: the file.
        model: the converted network; a copy of it is computed, in float64.
        seed: of the video.
    """
    stream = LiteStream(network.model, network.constants_by_role())
    exact = MoViNet(model.spec).double().eval()
    exact.load_state_dict(model.state_dict())
    clips = _FRAMES if model.spec.causal else 1
    video = np.random.default_rng(seed).random((clips, *stream.clip_shape))
    with torch.inference_mode():
        for clip in torch.from_numpy(video):
            yield stream(clip), exact(clip.permute(0, 4, 1, 2, 3))


def verify(network: LiteNetwork, model: MoViNet) -> Agreement:
    """Compare the logits of the file and of the network, in float64, after each clip.

    Args:
        network: the file.
        model: the converted network.
    """
    bound = ROUNDED_BOUND if network.is_rounded() else FUNCTION_BOUND
    tally = Tally(bound, "the file's operations in float64")
    shape = LiteStream(network.model).clip_shape[:4]
    for expected, found in both_sides(network, model):
        tally.add(shape, expected, found)
    return tally.agreement()
