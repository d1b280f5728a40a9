"""The authors' own code as the reference, for weights that come without a graph."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from converters.authors import (
    AuthorsMissingError,
    build_authors_network,
    export_authors_network,
)
from converters.tensorflow import import_tensorflow, quiet
from movinet_port.spec import ModelSpec
from parity.errors import ComparisonError
from parity.references import SavedModelReference


@contextlib.contextmanager
def authors_reference(index: Path, spec: ModelSpec, name: str) -> Iterator[SavedModelReference]:
    """Build the authors' network, restore a checkpoint, and take its exported graph.

    Args:
        index: the TF2 checkpoint's index file.
        spec: of the network, as `converters` recognises it.
        name: of the source, for the report.

    Raises:
        ComparisonError: tf-models-official is not installed, or has no such network.
    """
    if spec.causal_padding == "legacy" or spec.pool_counts_padding:
        raise ComparisonError(
            f"{name}: tf-models-official no longer has the legacy padding; compare with the "
            f"SavedModel of the same network"
        )
    tf = import_tensorflow()
    try:
        with quiet():
            model = build_authors_network(spec)
    except AuthorsMissingError as error:
        raise ComparisonError(
            f"{name} has weights and no graph: {error}; or give the SavedModel of the same network"
        ) from error
    with tempfile.TemporaryDirectory(prefix="movinet-port-") as folder, quiet():
        status = tf.train.Checkpoint(model=model).restore(str(index).removesuffix(".index"))
        try:
            status.assert_existing_objects_matched()
        except AssertionError as error:
            reason = str(error).splitlines()[0]
            raise ComparisonError(f"{name}: the authors' network does not take it: {reason}") from (
                error
            )
        export_authors_network(model, folder, causal=spec.causal)
        yield SavedModelReference(folder, name=f"tf-models-official with {name}")
