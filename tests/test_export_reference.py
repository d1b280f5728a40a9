"""What goes back to TensorFlow, in the authors' live code; and whole networks in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import authors
import numpy as np
import pytest
import test_docs
import torch
from test_export import SAMPLE, TOLERANCE, Session, assert_follows

from converters import convert
from converters.fetch import open_source
from converters.to_tensorflow import export_to_tensorflow
from movinet_port import Checkpoint, create_model, save
from movinet_port.export import export_checkpoint

pytestmark = [pytest.mark.reference, pytest.mark.usefixtures("one_thread")]

# As if fine-tuned on a data set of one's own.
NUM_CLASSES = 11


@pytest.fixture(scope="module")
def checkpoint(randomised):
    def build(name: str, mode: str, **changes: Any) -> Checkpoint:
        model = randomised(create_model(name, mode, NUM_CLASSES, **changes), seed=4)
        return Checkpoint(model.spec, model.state_dict())

    return build


def restored(model: Any, prefix: Path) -> Any:
    import tensorflow as tf

    status = tf.train.Checkpoint(model=model).restore(str(prefix))
    status.assert_existing_objects_matched()
    return model


def assert_same_logits(theirs: Any, source: Checkpoint, chunks: tuple[int, ...]) -> None:
    video = authors.sample_video(9, frames=sum(chunks), height=61, width=83)
    found = authors.run(theirs, video, chunks, authors.traced(theirs))
    ours = source.build()
    clips = torch.from_numpy(video).permute(0, 4, 1, 2, 3).split(list(chunks), dim=2)
    for (logits, _), clip in zip(found, clips, strict=True):
        with torch.inference_mode():
            expected = ours(clip).numpy()
        assert np.abs(logits - expected).max() <= TOLERANCE * np.abs(expected).max()


RELU6 = {"gate": "hard_sigmoid_relu6"}
NETWORKS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "a0-base": ("a0", "base", {}, {}),
    "a3-base": ("a3", "base", {}, {}),
    "a0-stream": ("a0", "stream", RELU6, {}),
    "a3-stream": ("a3", "stream", RELU6, {"positional_encoding": True}),
    "a0-stream-hub-gate": (
        "a0",
        "stream",
        {},
        {"gating_activation": authors.keras_hard_sigmoid},
    ),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_the_authors_code_restores_a_tf_checkpoint_and_gives_the_same_logits(
    checkpoint, tmp_path, network
) -> None:
    name, mode, changes, told = NETWORKS[network]
    source = checkpoint(name, mode, **changes)
    export_to_tensorflow(source, tmp_path / "ckpt", "tf-checkpoint")
    settings = authors.STREAM if mode == "stream" else authors.BASE
    theirs = authors.build(name, num_classes=NUM_CLASSES, **{**settings, **told})
    assert len(theirs.variables) == sum(
        not parameter.endswith("num_batches_tracked") for parameter in source.state_dict
    )
    restored(theirs, tmp_path / "ckpt")
    assert_same_logits(theirs, source, (2, 1, 2) if mode == "stream" else (5,))
    authors.forget()


@pytest.mark.parametrize("mode", ["base", "stream"])
def test_the_authors_network_for_training_takes_it_too(mini_spec, randomised, tmp_path, mode):
    """Their training builds a stream network whose states are no inputs."""
    from movinet_port import MoViNet

    model = randomised(MoViNet(mini_spec(mode)))
    source = Checkpoint(model.spec, model.state_dict())
    export_to_tensorflow(source, tmp_path / "ckpt", "tf-checkpoint")
    settings = authors.STREAM if mode == "stream" else authors.BASE
    theirs = authors.build(model.spec, num_classes=7, external_states=False, **settings)
    before = {v.name: v.numpy() for v in theirs.variables}
    restored(theirs, tmp_path / "ckpt")
    assert all(not np.array_equal(v.numpy(), before[v.name]) for v in theirs.variables)
    authors.forget()


def test_savedmodel_to_pt_to_savedmodel_keeps_every_bit(tmp_path) -> None:
    import tensorflow as tf

    source = convert(SAMPLE, verify=False)
    written = export_to_tensorflow(source, tmp_path / "again", "saved-model")
    assert written.comparison
    with open_source(SAMPLE) as first:
        readers = [
            tf.train.load_checkpoint(str(folder / "variables/variables"))
            for folder in (first.path, tmp_path / "again")
        ]
        before, after = (
            {
                name: reader.get_tensor(name)
                for name in reader.get_variable_to_shape_map()
                if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
            }
            for reader in readers
        )
    assert after.keys() == before.keys()
    assert len(after) > 100
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    again = convert(tmp_path / "again")
    assert again.spec == source.spec
    assert all(torch.equal(again.state_dict[k], v) for k, v in source.state_dict.items())


@pytest.mark.parametrize(
    ("mode", "posenc", "suffix"),
    [
        ("base", False, ".h5"),
        ("stream", False, ".h5"),
        ("stream", True, ".weights.h5"),
        ("base", False, ".weights.h5"),
    ],
)
def test_the_authors_network_loads_a_keras_file(
    mini_spec, randomised, tmp_path, mode, posenc, suffix
) -> None:
    from movinet_port import MoViNet

    changes = {**RELU6, "positional_encoding": posenc} if mode == "stream" else {}
    model = randomised(MoViNet(mini_spec(mode, **changes)))
    source = Checkpoint(model.spec, model.state_dict())
    path = tmp_path / f"mini{suffix}"
    export_to_tensorflow(source, path, "keras-h5")
    settings = {**authors.STREAM, "positional_encoding": posenc} if changes else authors.BASE
    theirs = authors.build(model.spec, num_classes=7, **settings)
    theirs.load_weights(str(path))
    assert_same_logits(theirs, source, (2, 1) if mode == "stream" else (3,))
    authors.forget()


@pytest.mark.parametrize("name", ["a0", "a2"])
@pytest.mark.parametrize("mode", ["base", "stream"])
def test_onnx_of_a_published_network_follows_it_over_ten_chunks(
    checkpoint, video, tmp_path, name, mode
) -> None:
    source = checkpoint(name, mode)
    export_checkpoint(source, tmp_path / "x.onnx", "onnx", verify=False)
    size = {"a0": 172, "a2": 224}[name]
    clips = [video(1, 1 + n % 2, size, size, seed=n, dtype=torch.float32) for n in range(10)]
    assert_follows(Session(tmp_path / "x.onnx"), source.build(), clips)


def test_the_pages_commands_for_the_authors_code_run(tmp_path, monkeypatch) -> None:
    """What tests/test_docs.py leaves out of docs/exporting.md; it runs the rest."""
    monkeypatch.chdir(tmp_path)
    save(convert(SAMPLE, verify=False), "mini.pt")
    (block,) = test_docs.blocks("docs/exporting.md", reference=True)
    for command in block.commands:
        test_docs.run_command(block, command)
    assert (tmp_path / "mini_saved_model/saved_model.pb").exists()
    assert (tmp_path / "mini.weights.h5").exists()
