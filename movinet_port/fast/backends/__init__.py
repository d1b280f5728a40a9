"""The ways to compute the stages of the optimised network: one table, and one file a backend.

A new backend is a file beside these, with a function `takes...` and one that makes the
computation for each stage that it has, and a row here for each.
"""

from __future__ import annotations

from movinet_port.fast.backends import inductor, native, onednn, operations, quantised
from movinet_port.fast.choice import (
    CLASSIFIER,
    CONVOLVE,
    LAYER,
    NARROW,
    POOL,
    PRODUCT,
    SPACE,
    STEM,
    TABLE,
    Case,
    Row,
    choose,
)

__all__ = ["CLASSIFIER", "LAYER", "NARROW", "PRODUCT", "SPACE", "STEM", "TABLE", "Case", "choose"]


def _any(part: object, case: Case) -> bool:
    return True


# The first row of a stage that takes a part computes it.
TABLE += (
    Row(STEM, "native", native.takes_packaged_stem, native.packaged_stem),
    Row(STEM, "native", native.takes_stem, native.stem),
    Row(STEM, "onednn", onednn.takes_stem, onednn.stem),
    Row(STEM, "operations", _any, operations.stem),
    Row(LAYER, "native", native.takes_packaged_layer, native.packaged_layer),
    Row(LAYER, "native", native.takes_frame, native.frame),
    Row(LAYER, "operations", _any, operations.Staged),
    Row(CONVOLVE, "native", native.takes_clip, native.clip),
    Row(CONVOLVE, "onednn", onednn.takes_pieces, onednn.in_pieces),
    Row(CONVOLVE, "operations", operations.takes_pieces, operations.in_pieces),
    Row(CONVOLVE, "inductor", inductor.takes_strips, inductor.in_strips),
    Row(CONVOLVE, "operations", _any, operations.convolve),
    Row(SPACE, "inductor", inductor.takes, inductor.over_space),
    Row(SPACE, "onednn", onednn.takes, onednn.over_space),
    Row(SPACE, "operations", _any, operations.over_space),
    Row(NARROW, "quantised", quantised.takes_narrow, quantised.narrow),
    Row(NARROW, "native", native.takes_narrow, native.narrow),
    Row(NARROW, "inductor", inductor.takes, inductor.narrow),
    Row(NARROW, "onednn", onednn.takes_narrow, onednn.narrow),
    Row(NARROW, "operations", _any, operations.narrow),
    Row(POOL, "native", native.takes_pool, native.pool),
    Row(POOL, "onednn", onednn.takes_pool, onednn.pool),
    Row(POOL, "operations", _any, operations.pool),
    Row(PRODUCT, "quantised", quantised.takes_product, quantised.product),
    Row(PRODUCT, "native", native.takes_product, native.product),
    Row(PRODUCT, "inductor", inductor.takes_product, inductor.product),
    Row(PRODUCT, "onednn", onednn.takes_product, onednn.product),
    Row(PRODUCT, "operations", _any, operations.product),
    Row(CLASSIFIER, "native", native.takes_packaged_vector, native.packaged_vector),
    Row(CLASSIFIER, "operations", _any, lambda block, case: choose(PRODUCT, block, case)),
)
