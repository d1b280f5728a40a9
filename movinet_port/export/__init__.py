"""Files for where a network is deployed: ONNX, TorchScript, exported programs, safetensors."""

from movinet_port.export.compare import compare
from movinet_port.export.shape import ClipShape
from movinet_port.export.targets import (
    TARGETS,
    Exported,
    ExportError,
    Request,
    Target,
    export_checkpoint,
)

__all__ = [
    "TARGETS",
    "ClipShape",
    "ExportError",
    "Exported",
    "Request",
    "Target",
    "compare",
    "export_checkpoint",
]
