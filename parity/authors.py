"""The authors' own code as the reference, for weights that come without a graph."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from converters.tensorflow import import_tensorflow, quiet
from movinet_port.spec import ModelSpec
from parity.errors import ComparisonError
from parity.references import SavedModelReference


@contextlib.contextmanager
def authors_reference(prefix: Path, spec: ModelSpec, name: str) -> Iterator[SavedModelReference]:
    """Build the authors' network, restore a checkpoint, and take its exported graph.

    Args:
        prefix: of the TF2 checkpoint.
        spec: of the network, as `converters` recognises it.
        name: of the source, for the report.

    Raises:
        ComparisonError: tf-models-official is not installed, or has no such network.
    """
    if spec.causal_padding == "legacy":
        raise ComparisonError(
            f"{name}: tf-models-official no longer has the legacy padding; compare with the "
            f"SavedModel of the same network"
        )
    tf = import_tensorflow()
    try:
        with quiet():
            from official.projects.movinet.modeling import movinet, movinet_model
            from official.projects.movinet.tools import export_saved_model
    except ImportError as error:
        raise ComparisonError(
            f"{name} has weights and no graph: comparing it needs the authors' code: run "
            f"pip install 'movinet-port[tf,reference]' (missing: {error.name}), or give the "
            f"SavedModel of the same network"
        ) from error
    with tempfile.TemporaryDirectory(prefix="movinet-port-") as folder, quiet():
        model = _build(tf, movinet, movinet_model, spec)
        status = tf.train.Checkpoint(model=model).restore(str(prefix))
        try:
            status.assert_existing_objects_matched()
        except AssertionError as error:
            reason = str(error).splitlines()[0]
            raise ComparisonError(f"{name}: the authors' network does not take it: {reason}") from (
                error
            )
        export_saved_model.export_saved_model(
            model,
            input_shape=(None, None, None, None, 3),
            export_path=folder,
            causal=spec.causal,
        )
        yield SavedModelReference(folder, name=f"tf-models-official with {name}")


_GATES: dict[str, Any] = {"sigmoid": "sigmoid", "hard_sigmoid_relu6": "hard_sigmoid"}


def _build(tf: Any, movinet: Any, movinet_model: Any, spec: ModelSpec) -> Any:
    gate = _GATES.get(spec.gate, tf.keras.activations.hard_sigmoid)
    image = tf.keras.layers.InputSpec(shape=[None, None, None, None, 3])
    strides = [block.strides for block in spec.blocks]
    movinet.BLOCK_SPECS["custom"] = (
        movinet.StemSpec(
            filters=spec.stem.filters,
            kernel_size=spec.stem.kernel_size,
            strides=spec.stem.strides,
        ),
        *(
            movinet.MovinetBlockSpec(
                base_filters=block.base_filters,
                expand_filters=block.expand_filters,
                kernel_sizes=block.kernel_sizes,
                strides=stride,
            )
            for block, stride in zip(spec.blocks, strides, strict=True)
        ),
        movinet.HeadSpec(
            project_filters=spec.head.project_filters, head_filters=spec.head.head_filters
        ),
    )
    # The exporter replaces swish by one without a gradient of its own.
    name = {"swish": "simple_swish"}
    try:
        backbone = movinet.Movinet(
            model_id="custom",
            causal=spec.causal,
            use_positional_encoding=spec.positional_encoding,
            conv_type=spec.conv_type,
            se_type=spec.se_type,
            input_specs=image,
            activation=name.get(spec.activation, spec.activation),
            gating_activation=gate,
            use_sync_bn=False,
            use_external_states=spec.causal,
        )
        return movinet_model.MovinetClassifier(
            backbone,
            num_classes=spec.num_classes,
            output_states=spec.causal,
            input_specs={"image": image},
            activation=name.get(spec.classifier_activation, spec.classifier_activation),
        )
    finally:
        movinet.BLOCK_SPECS.pop("custom", None)
