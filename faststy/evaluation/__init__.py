"""How well a painting keeps its photo and takes its style, in numbers.

- `evaluate` paints photos with a model and measures the paintings against `style_grams`, which
  `match_styles` finds the pictures for;
- `content_distance` and `style_distance` compare features.
"""

from faststy.evaluation.distances import content_distance, style_distance
from faststy.evaluation.measure import (
    Entry,
    Evaluation,
    Scores,
    evaluate,
    match_styles,
    style_grams,
)

__all__ = [
    "Entry",
    "Evaluation",
    "Scores",
    "content_distance",
    "evaluate",
    "match_styles",
    "style_distance",
    "style_grams",
]
