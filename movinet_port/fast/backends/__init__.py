"""The ways to compute the stages of the optimised network: one table, and one file a backend.

A backend is a file beside these, with a row for each stage that it computes: what it takes, and
what makes the function. Its name stands below, before those that it goes before.
"""

from __future__ import annotations

from movinet_port.fast.backends import inductor, native, onednn, operations, quantised
from movinet_port.fast.choice import (
    CLASSIFIER,
    LAYER,
    NARROW,
    PRODUCT,
    SPACE,
    STEM,
    TABLE,
    Case,
    choose,
)

__all__ = ["CLASSIFIER", "LAYER", "NARROW", "PRODUCT", "SPACE", "STEM", "TABLE", "Case", "choose"]

# Of all rows of a stage the first that takes a part computes it.
for backend in (quantised, native, inductor, onednn, operations):
    TABLE.extend(backend.ROWS)
