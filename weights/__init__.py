"""The published weights: where they are and what they reach, as data. No weights are kept here."""

from weights.catalogue import (
    Published,
    PublishedModel,
    UnknownModelError,
    catalogue,
    find_handle,
    find_model,
    models,
    newest_handle,
)

__all__ = [
    "Published",
    "PublishedModel",
    "UnknownModelError",
    "catalogue",
    "find_handle",
    "find_model",
    "models",
    "newest_handle",
]
