"""Building the authors' own network for a spec; needs tf-models-official."""

from __future__ import annotations

from typing import Any

from converters.errors import ConversionError
from converters.tensorflow import import_tensorflow, quiet
from movinet_port.spec import ModelSpec


class AuthorsMissingError(ConversionError):
    """The authors' code cannot be imported, or has no such network."""


# How the authors' code is told the activations; the rest is called the same. Their exporter
# replaces swish by one without a gradient of its own.
_ACTIVATIONS = {"swish": "simple_swish"}
_GATES = {"sigmoid": "sigmoid", "hard_sigmoid_relu6": "hard_sigmoid"}


def build_authors_network(spec: ModelSpec) -> Any:
    """Return the authors' Keras ``MovinetClassifier`` for a spec, with its initial values.

    Raises:
        AuthorsMissingError: tf-models-official is not installed, or has no such network.
    """
    if spec.causal_padding == "legacy" or spec.pool_counts_padding:
        raise AuthorsMissingError("tf-models-official no longer has the legacy padding")
    tf = import_tensorflow()
    movinet, movinet_model = _import_authors()
    gate = _GATES.get(spec.gate, tf.keras.activations.hard_sigmoid)
    image = tf.keras.layers.InputSpec(shape=[None, None, None, None, 3])
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
                strides=block.strides,
            )
            for block in spec.blocks
        ),
        movinet.HeadSpec(
            project_filters=spec.head.project_filters, head_filters=spec.head.head_filters
        ),
    )
    try:
        backbone = movinet.Movinet(
            model_id="custom",
            causal=spec.causal,
            use_positional_encoding=spec.positional_encoding,
            conv_type=spec.conv_type,
            se_type=spec.se_type,
            input_specs=image,
            activation=_ACTIVATIONS.get(spec.activation, spec.activation),
            gating_activation=gate,
            norm_epsilon=spec.norm_epsilon,
            use_sync_bn=False,
            use_external_states=spec.causal,
        )
        return movinet_model.MovinetClassifier(
            backbone,
            num_classes=spec.num_classes,
            output_states=spec.causal,
            input_specs={"image": image},
            activation=_ACTIVATIONS.get(spec.classifier_activation, spec.classifier_activation),
        )
    finally:
        movinet.BLOCK_SPECS.pop("custom", None)


def export_authors_network(model: Any, folder: str, *, causal: bool) -> None:
    """Write a SavedModel with the authors' exporter, every size of a clip left free."""
    with quiet():
        from official.projects.movinet.tools import export_saved_model

        export_saved_model.export_saved_model(
            model,
            input_shape=(None, None, None, None, 3),
            export_path=folder,
            causal=causal,
        )


def _import_authors() -> tuple[Any, Any]:
    try:
        with quiet():
            from official.projects.movinet.modeling import movinet, movinet_model
    except ImportError as error:
        raise AuthorsMissingError(
            f"this needs the authors' code: run pip install 'movinet-port[tf,reference]' "
            f"(missing: {error.name})"
        ) from error
    return movinet, movinet_model
