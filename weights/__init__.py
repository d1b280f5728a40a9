"""The published weights: where they are and what they reach, as data. No weights are kept here."""

from weights.catalogue import (
    LabelFile,
    Published,
    PublishedModel,
    UnknownModelError,
    catalogue,
    find_handle,
    find_model,
    label_files,
    models,
    newest_handle,
)

__all__ = [
    "LabelFile",
    "Published",
    "PublishedModel",
    "UnknownModelError",
    "catalogue",
    "find_handle",
    "find_model",
    "label_files",
    "models",
    "newest_handle",
]
