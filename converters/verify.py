"""Running a SavedModel and the converted network on the same clip."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from converters.containers import saved_model
from converters.errors import ConversionError, VerificationError
from converters.graph import classifying_signature
from converters.interpreter.engines import DEFAULT, ENGINES, make_engine
from converters.interpreter.graph import flatten
from converters.interpreter.operations import TYPES
from movinet_port.agreement import FUNCTION_BOUND, LOGIT_BOUND, Agreement, Tally
from movinet_port.model import MoViNet

# What a free axis of the signature is set to: small, odd, not square.
_FREE = {"batch": 2, "frames": 2, "height": 61, "width": 83}
# Clips of one video, so that a stream network's states are exercised.
_CLIPS = 2


def require(agreement: Agreement) -> None:
    """Raise `VerificationError` unless the logits agree."""
    if not agreement:
        raise VerificationError(
            f"the converted network's logits differ from the source's by {agreement.logits:.2e} "
            f"of the largest one, expected at most {agreement.bound:.0e}; nothing was written; "
            f"'movinet-port parity' says which layer it is"
        )


def verify_saved_model(
    folder: Path, model: MoViNet, engine: str = DEFAULT, seed: int = 0
) -> Agreement:
    """Run both sides on one random video and compare the logits after each clip.

    An engine that has float64 runs in it, and so does the network: what they compute is the same
    function or it is not. Otherwise both sides round to float32.

    Args:
        folder: the SavedModel.
        model: the converted network, in eval mode.
        engine: what runs the SavedModel, a key of `converters.interpreter.engines.ENGINES`.
        seed: of the random video.

    Raises:
        ConversionError: the engine cannot load or run the SavedModel.
    """
    reference = SavedModelRunner(folder, engine)
    dtype, bound, name = torch.float32, LOGIT_BOUND, "TensorFlow"
    if reference.exact:
        model, dtype = copy.deepcopy(model).double(), torch.float64
        bound, name = FUNCTION_BOUND, "the graph in float64"
    batch, frames, height, width = reference.clip_shape
    clips = _CLIPS if model.spec.causal else 1
    shape = (clips, batch, frames, height, width, 3)
    video = np.random.default_rng(seed).random(shape, dtype=np.float32)
    tally = Tally(bound, name)
    with model.video(), torch.inference_mode():
        for clip in video:
            expected = torch.from_numpy(reference(clip))
            found = model(torch.from_numpy(clip).to(dtype).permute(0, 4, 1, 2, 3))
            if expected.shape != found.shape:
                raise VerificationError(
                    f"the source gives logits of shape {tuple(expected.shape)}, "
                    f"the converted network {tuple(found.shape)}"
                )
            tally.add((batch, frames, height, width), expected, found)
    return tally.agreement()


class SavedModelRunner:
    """A SavedModel's graph, called clip after clip of one video.

    Args:
        folder: the SavedModel.
        engine: what runs it, a key of `converters.interpreter.engines.ENGINES`.

    Attributes:
        exact: whether it computes in float64, and not in float32.
        clip_shape: (batch, frames, height, width) of a clip that it takes.

    Raises:
        ConversionError: the SavedModel is damaged, has no signature that classifies videos, or an
            operation that the engine does not know.
    """

    def __init__(self, folder: Path, engine: str = DEFAULT) -> None:
        saved = saved_model.read(folder)
        key = classifying_signature(saved)
        graph = flatten(saved, key)
        shapes = graph.input_shapes
        if len(shapes.get("image", ())) != 5:
            raise ConversionError(
                f"{folder}: signature {key} takes {', '.join(shapes) or 'nothing'}, expected image "
                f"(batch, frames, height, width, 3)"
            )
        self.exact = engine in ENGINES and ENGINES[engine].exact
        self.clip_shape: tuple[int, ...] = tuple(
            default if size < 0 else size
            for size, default in zip(shapes["image"][:4], _FREE.values(), strict=True)
        )
        self._call = make_engine(engine, graph, saved.value, exact=self.exact)
        self._init_states = None
        if "init_states" in saved.signatures:
            begin = flatten(saved, "init_states")
            self._init_states = make_engine(engine, begin, saved.value, exact=self.exact)
        self._zeros = {
            name: (shapes[name], TYPES[graph.nodes[value[0]].type])
            for name, value in graph.inputs.items()
            if name != "image"
        }
        self._states: dict[str, Tensor] | None = None

    def __call__(self, clip: NDArray[np.float32]) -> NDArray[Any]:
        """Return the logits after this clip, (batch, frames, height, width, 3) in [0, 1]."""
        if self._states is None:
            self._states = self._start(clip.shape)
        outputs = self._call(image=torch.from_numpy(clip), **self._states)
        logits = [name for name in outputs if name not in self._states]
        if len(logits) != 1 or len(outputs) != len(self._states) + 1:
            raise ConversionError(
                f"the source returns {', '.join(sorted(outputs))}; expected one tensor of logits "
                f"and each of its {len(self._states)} states"
            )
        result: NDArray[Any] = outputs.pop(logits[0]).numpy()
        self._states = outputs
        return result

    @property
    def states(self) -> dict[str, NDArray[Any]]:
        """The stream's states after the last clip, under TensorFlow's names."""
        return {name: value.numpy() for name, value in (self._states or {}).items()}

    def reset(self) -> None:
        """Start another video."""
        self._states = None

    def _start(self, shape: tuple[int, ...]) -> dict[str, Tensor]:
        if not self._zeros:
            return {}
        if self._init_states is not None:
            return self._init_states(input_shape=torch.tensor(shape, dtype=torch.int32))
        return {
            name: torch.zeros([shape[0] if size < 0 else size for size in sizes], dtype=dtype)
            for name, (sizes, dtype) in self._zeros.items()
        }
