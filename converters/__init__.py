"""Converting Google's MoViNets: TensorFlow's files in, a PyTorch checkpoint out.

TensorFlow is imported when a source is read, not before.
"""

from converters.convert import Conversion, convert, convert_source
from converters.errors import ConversionError, VerificationError

__all__ = ["Conversion", "ConversionError", "VerificationError", "convert", "convert_source"]
