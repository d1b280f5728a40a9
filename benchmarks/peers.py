"""Makes what the benchmarks compare with: the same weights in every framework's own format.

Run from the repository's root, with the extras ``tf`` and ``reference``::

    python benchmarks/peers.py build/peers a0-stream a2-stream a0-base

For each variant the authors' code builds the network and every variable gets a random value; then
into the folder go the SavedModel ``a0_stream/`` (any size), ``a0_stream.pt`` converted from it,
and for a stream network ``a0_stream.tflite``: float32, one video, one frame of the variant's own
size, states as inputs and outputs. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

SEED = 1
NUM_CLASSES = 600
# Height and width in pixels that each variant was trained at.
SIZES = {"a0": 172, "a1": 172, "a2": 224, "a3": 256, "a4": 290, "a5": 320, "t0": 172}
WITH_POSITIONS = ("a3", "a4", "a5")
# Logits that differ by more than this share of the largest are not the same weights.
TOLERANCE = 1e-4


class Peers:
    """Files of one variant in `folder`, made when first asked for.

    Args:
        variant: such as "a0-stream".
        folder: where the files are kept.
        size: height and width of a TF Lite model's frames; None for the variant's own.
    """

    def __init__(self, variant: str, folder: Path, size: int | None = None) -> None:
        self.variant = variant
        self.stem = variant.replace("-", "_")
        self.name, _, self.mode = variant.partition("-")
        self.causal = self.mode == "stream"
        self.size = size or SIZES[self.name]
        self.folder = folder
        self._model: Any = None

    def path(self, kind: str = "") -> Path:
        """Return where a file is, or would be.

        Args:
            kind: "" for the SavedModel, "pt", "tflite", "onnx", or "pt2" for the package that is
                compiled ahead of time.
        """
        return self.folder / (f"{self.stem}.{kind}" if kind else self.stem)

    def make(self, kind: str) -> Path:
        """Make a file if it is not there; return its path.

        Raises:
            ImportError: an optional package is missing.
            subprocess.CalledProcessError: the command line could not make it.
        """
        path = self.path(kind)
        if not (path if kind else path / "saved_model.pb").exists():
            _MAKERS[kind](self, path)
        return path

    @property
    def weights(self) -> Path:
        """The converted checkpoint, made if it is not there."""
        return self.make("pt")

    def model(self) -> Any:
        """Return the authors' network; the same variant has the same values every time."""
        if self._model is None:
            from weights.samples.make_sample import BASE, STREAM, build, randomise

            settings: Mapping[str, Any] = STREAM if self.causal else BASE
            self._model = build(
                self.name,
                **settings,
                positional_encoding=self.causal and self.name in WITH_POSITIONS,
                num_classes=NUM_CLASSES,
            )
            randomise(self._model, SEED)
        return self._model

    def _call(self, shape: tuple[int | None, ...], compiled: bool) -> Any:
        """Return the network as the authors' exporter signs it, for inputs of `shape`."""
        import tensorflow as tf

        model = self.model()
        inputs = {"image": tf.TensorSpec(shape, tf.float32, name="image")}
        if self.causal:
            for key, state in model.initial_state_specs(shape).items():
                inputs[key] = tf.TensorSpec(state.shape, state.dtype, name=key)

        def call(**arguments: Any) -> dict[str, Any]:
            if not self.causal:
                return {"classifier_head": model(arguments)}
            logits, states = model(arguments)
            return {"logits": logits, **states}

        return tf.function(call, jit_compile=compiled or None).get_concrete_function(**inputs)

    def export(self, path: Path) -> None:
        """Write the signatures that the authors' exporter writes, without its Keras model.

        Keras would trace every layer by itself, for fine-tuning in TensorFlow: minutes.
        """
        import tensorflow as tf

        from weights.samples.make_sample import without_traces

        root = tf.Module()
        model = self.model()
        signature = self._call((None, None, None, None, 3), compiled=self.causal)
        root.model = without_traces(model)
        signatures = {"call" if self.causal else "serving_default": signature}
        if self.causal:
            init = tf.function(model.init_states, jit_compile=True)
            signatures["init_states"] = init.get_concrete_function(
                tf.TensorSpec([5], dtype=tf.int32)
            )
        tf.saved_model.save(root, str(path), signatures=signatures)

    def convert(self, path: Path) -> None:
        """Write our checkpoint; without the authors' code one with random weights of our own."""
        from movinet_port import save

        try:
            source = self.make("")
        except ImportError:
            self.own(path)
            return
        from converters import convert

        save(convert(str(source), verify=False), path)

    def own(self, path: Path | None = None) -> Path:
        """Write a checkpoint with random weights of our own, which needs nobody else's code.

        Args:
            path: where; by default beside the others, where it is made once.
        """
        import torch

        from movinet_port import Checkpoint, create_model, save

        target = path or self.folder / f"{self.stem}_own.pt"
        if path is not None or not target.exists():
            torch.manual_seed(SEED)
            model = create_model(self.name, self.mode, NUM_CLASSES)
            for key, value in model.state_dict().items():
                if key.endswith("scale"):
                    value.fill_(0.5)
            save(Checkpoint(model.spec, model.state_dict()), target)
        return target

    def convert_to_tflite(self, path: Path) -> None:
        """Write the TF Lite model of one frame."""
        import tensorflow as tf

        if not self.causal:
            raise ValueError(f"{self.variant}: only stream networks have a TF Lite model")
        function = self._call((1, 1, self.size, self.size, 3), compiled=False)
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], self.model())
        _write(path, converter.convert())

    def export_onnx(self, path: Path) -> None:
        """Write our own export of one frame."""
        self._command("export", "--to", "onnx", "--batch", "1", output=path)

    def compile(self, path: Path) -> None:
        """Write our package for one frame."""
        self._command("compile", output=path)

    def _command(self, name: str, *arguments: str, output: Path) -> None:
        code = "import sys; from movinet_port.command_line.cli import main; sys.exit(main())"
        shape = ("--frames", "1", "--size", str(self.size))
        files = ("--weights", str(self.weights), "-o", str(output))
        command = [sys.executable, "-c", code, name, *arguments, *shape, *files]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


_MAKERS = {
    "": Peers.export,
    "pt": Peers.convert,
    "tflite": Peers.convert_to_tflite,
    "onnx": Peers.export_onnx,
    "pt2": Peers.compile,
}


def _write(path: Path, data: bytes) -> None:
    from movinet_port.files import whole_file

    with whole_file(path) as target:
        target.write_bytes(data)


class LiteStream:
    """A TF Lite stream model fed frame by frame; states go back in by name.

    Args:
        path: the .tflite file.
        threads: XNNPACK's.
    """

    def __init__(self, path: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(str(path), num_threads=threads)
        self.interpreter.allocate_tensors()
        (signature,) = self.interpreter.get_signature_list()
        # Positions of tensors once and for all: the signature runner copies more.
        inner = self.interpreter._get_full_signature_list()[signature]
        self._inputs, self._outputs = dict(inner["inputs"]), dict(inner["outputs"])
        self._image = self._inputs.pop("image")
        self._logits = self._outputs.pop("logits")
        self._pairs = [(self._outputs[name], index) for name, index in self._inputs.items()]
        self.reset()

    def reset(self) -> None:
        """Start another video."""
        for detail in self.interpreter.get_input_details():
            self.interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))

    def step(self, image: np.ndarray) -> np.ndarray:
        """Return logits (1, classes) after the next frame, (1, 1, height, width, 3)."""
        interpreter = self.interpreter
        interpreter.set_tensor(self._image, image)
        interpreter.invoke()
        for output, target in self._pairs:
            interpreter.set_tensor(target, interpreter.tensor(output)())
        logits: np.ndarray = interpreter.get_tensor(self._logits)
        return logits


class LiteRunner:
    """The same through LiteRT's signature runner, as its documentation feeds a model."""

    def __init__(self, path: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        # glibc gives what the runner copies back to the system after every frame, and takes it anew
        # page by page, unless it has once been given a larger piece.
        np.empty(31 << 20, np.uint8)
        self._interpreter = Interpreter(str(path), num_threads=threads)
        self._runner = self._interpreter.get_signature_runner()
        self._details = self._runner.get_input_details()
        self.reset()

    def reset(self) -> None:
        """Start another video."""
        self._states = {
            name: np.zeros(detail["shape"], detail["dtype"])
            for name, detail in self._details.items()
            if name != "image"
        }

    def step(self, image: np.ndarray) -> np.ndarray:
        """Return logits (1, classes) after the next frame, (1, 1, height, width, 3)."""
        found = self._runner(image=image, **self._states)
        logits: np.ndarray = found.pop("logits")
        self._states = found
        return logits


class SavedStream:
    """A SavedModel's stream signature fed frame by frame.

    Args:
        path: the SavedModel's folder.
        shape: (batch, frames, height, width, 3) of what it will be fed.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        import tensorflow as tf

        self._tf = tf
        self._root = tf.saved_model.load(str(path))
        self._call = self._root.signatures["call"]
        self._init = self._root.signatures["init_states"]
        self._shape = shape
        self.reset()

    def reset(self) -> None:
        """Start another video."""
        argument = next(iter(self._init.structured_input_signature[1]))
        self.states = self._init(**{argument: self._tf.constant(self._shape)})

    def step(self, image: np.ndarray) -> np.ndarray:
        """Return logits (batch, classes) after the next frames."""
        output = self._call(image=self._tf.constant(image), **self.states)
        logits: np.ndarray = output.pop("logits").numpy()
        self.states = output
        return logits


class SavedClip:
    """A SavedModel's base signature."""

    def __init__(self, path: Path) -> None:
        import tensorflow as tf

        self._tf = tf
        self._root = tf.saved_model.load(str(path))
        self._call = self._root.signatures["serving_default"]

    def run(self, image: np.ndarray) -> np.ndarray:
        """Return logits (batch, classes) of (batch, frames, height, width, 3)."""
        (logits,) = self._call(image=self._tf.constant(image)).values()
        found: np.ndarray = logits.numpy()
        return found


def check(peers: Peers, frames: int = 3) -> dict[str, float]:
    """Run LiteRT and ours on the same frames.

    Returns:
        The largest difference of logits as a share of the largest logit, and that logit.

    Raises:
        ValueError: they are not the same network.
    """
    import torch

    from movinet_port import load

    video = np.random.default_rng(0).random((1, frames, peers.size, peers.size, 3), np.float32)
    lite, ours = LiteStream(peers.make("tflite"), 2), load(peers.weights)
    error = scale = 0.0
    with torch.inference_mode():
        for index in range(frames):
            frame = video[:, index : index + 1]
            theirs = lite.step(frame)
            mine = ours(torch.from_numpy(frame).permute(0, 4, 1, 2, 3)).numpy()
            scale = max(scale, float(np.abs(mine).max()))
            error = max(error, float(np.abs(theirs - mine).max()))
    if not error <= TOLERANCE * scale:
        raise ValueError(
            f"{peers.path('tflite')} and {peers.weights} do not hold the same weights: logits "
            f"differ by {error:.2g} of {scale:.2g}; remove both and make them again"
        )
    return {"relative_error": error / scale, "largest_logit": scale}


def main() -> None:
    """Make the files of the variants named, and check them against each other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("variants", nargs="+", help="such as a0-stream or a2-base")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for variant in options.variants:
        start = time.perf_counter()
        peers = Peers(variant, options.folder)
        found: dict[str, Any] = {"variant": variant, "weights": str(peers.weights)}
        if peers.causal:
            found.update(check(peers), tflite_bytes=peers.path("tflite").stat().st_size)
        found["seconds"] = round(time.perf_counter() - start, 1)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
