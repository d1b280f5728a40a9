"""Comparing a PyTorch network with its TensorFlow reference, and saying what is wrong.

`compare` runs both sides on one video and returns a `Report`; references are in
`parity.references`.
"""

from parity.compare import compare
from parity.errors import ComparisonError
from parity.references import (
    ChunkValues,
    FunctionReference,
    ModelReference,
    Reference,
    SavedModelReference,
    SavedReference,
    save_reference,
)
from parity.reports.report import Diagnosis, LayerResult, Report, StateResult

# As it was called before.
Moment = ChunkValues

__all__ = [
    "ChunkValues",
    "ComparisonError",
    "Diagnosis",
    "FunctionReference",
    "LayerResult",
    "ModelReference",
    "Moment",
    "Reference",
    "Report",
    "SavedModelReference",
    "SavedReference",
    "StateResult",
    "compare",
    "save_reference",
]
