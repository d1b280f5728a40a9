"""Running a SavedModel and the converted network on the same clip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from converters.errors import ConversionError, VerificationError
from converters.graph import SIGNATURES, argument_name
from converters.tensorflow import import_tensorflow
from movinet_port.agreement import Agreement, Tally
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


def verify_saved_model(folder: Path, model: MoViNet, seed: int = 0) -> Agreement:
    """Run both sides on one random video and compare the logits after each clip.

    Args:
        folder: the SavedModel.
        model: the converted network, in eval mode.
        seed: of the random video.

    Raises:
        ConversionError: TensorFlow cannot load or run the SavedModel.
    """
    reference = SavedModelRunner(folder)
    batch, frames, height, width = reference.clip_shape
    clips = _CLIPS if model.spec.causal else 1
    shape = (clips, batch, frames, height, width, 3)
    video = np.random.default_rng(seed).random(shape, dtype=np.float32)
    tally = Tally()
    with model.video(), torch.inference_mode():
        for clip in video:
            expected = torch.from_numpy(reference(clip))
            found = model(torch.from_numpy(clip).permute(0, 4, 1, 2, 3))
            if expected.shape != found.shape:
                raise VerificationError(
                    f"the source gives logits of shape {tuple(expected.shape)}, "
                    f"the converted network {tuple(found.shape)}"
                )
            tally.add((batch, frames, height, width), expected, found)
    return tally.agreement()


class SavedModelRunner:
    """A SavedModel in TensorFlow, called clip after clip of one video.

    Raises:
        ConversionError: TensorFlow cannot load it, or it has no signature that classifies.
    """

    def __init__(self, folder: Path) -> None:
        self._tf = import_tensorflow()
        try:
            self._model = self._tf.saved_model.load(str(folder))
        except Exception as error:
            raise ConversionError(
                f"{folder}: TensorFlow cannot load it: {_first_line(error)}"
            ) from error
        signatures = self._model.signatures
        key = next((key for key in SIGNATURES if key in signatures), None)
        if key is None:
            raise ConversionError(
                f"{folder}: no signature named {' or '.join(SIGNATURES)}, "
                f"found {', '.join(signatures) or 'none'}"
            )
        self._call = signatures[key]
        self._init_states = signatures.get("init_states")
        specs: Mapping[str, Any] = self._call.structured_input_signature[1]
        if "image" not in specs or specs["image"].shape.rank != 5:
            raise ConversionError(
                f"{folder}: signature {key} takes {', '.join(specs) or 'nothing'}, expected image "
                f"(batch, frames, height, width, 3)"
            )
        self._specs = {name: spec for name, spec in specs.items() if name != "image"}
        image = specs["image"].shape.as_list()[:4]
        free = _FREE.values()
        self.clip_shape: tuple[int, ...] = tuple(
            size or default for size, default in zip(image, free, strict=True)
        )
        self._states: dict[str, Any] | None = None

    def __call__(self, clip: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits after this clip, (batch, frames, height, width, 3) in [0, 1]."""
        image = self._tf.constant(clip)
        try:
            if self._states is None:
                self._states = self._start(clip.shape)
            outputs = _by_argument(self._call(image=image, **self._states))
        except Exception as error:
            raise ConversionError(
                f"TensorFlow cannot run the source: {_first_line(error)}"
            ) from error
        logits = [name for name in outputs if name not in self._states]
        if len(logits) != 1 or len(outputs) != len(self._states) + 1:
            raise ConversionError(
                f"the source returns {', '.join(sorted(outputs))}; expected one tensor of logits "
                f"and each of its {len(self._states)} states"
            )
        result: NDArray[np.float32] = outputs.pop(logits[0]).numpy()
        self._states = outputs
        return result

    @property
    def states(self) -> dict[str, NDArray[Any]]:
        """The stream's states after the last clip, under TensorFlow's names."""
        return {name: value.numpy() for name, value in (self._states or {}).items()}

    def reset(self) -> None:
        """Start another video."""
        self._states = None

    def _start(self, shape: tuple[int, ...]) -> dict[str, Any]:
        tf = self._tf
        if not self._specs:
            return {}
        if self._init_states is not None:
            return _by_argument(self._init_states(tf.constant(shape, dtype=tf.int32)))
        return {
            name: tf.zeros([size or shape[0] for size in spec.shape.as_list()], spec.dtype)
            for name, spec in self._specs.items()
        }


def _by_argument(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return a signature's results under the names that its arguments have."""
    return {argument_name(key): value for key, value in tensors.items()}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
