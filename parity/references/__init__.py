"""What a PyTorch network is compared with."""

from parity.chunk_values import ChunkValues
from parity.references.programs import FunctionReference, ModelReference
from parity.references.reference import Reference
from parity.references.saved import SavedReference, save_reference
from parity.references.saved_model import SavedModelReference
from parity.references.tflite import TfliteReference

__all__ = [
    "ChunkValues",
    "FunctionReference",
    "ModelReference",
    "Reference",
    "SavedModelReference",
    "SavedReference",
    "TfliteReference",
    "save_reference",
]
