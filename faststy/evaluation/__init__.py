"""How well a painting keeps its photo and takes its style, in numbers."""

from faststy.evaluation.distances import (
    content_distance,
    normalized_content_distance,
    style_distance,
)

__all__ = ["content_distance", "normalized_content_distance", "style_distance"]
