"""Another name of `converters.dialects`'s table row, for code that imports it from here."""

from converters.dialects import Dialect as Dialect
