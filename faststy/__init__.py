"""faststy: train the look of a painting in minutes, paint photos and video with it in real time.

The names below are loaded on first use, so that ``import faststy`` brings in neither torch nor
CUDA:

- ``faststy.train(faststy.TrainConfig(...))`` trains a style into a small generator; it tells
  ``Progress`` and returns a ``TrainResult``;
- ``faststy.Stylizer.load(path)`` paints pictures with it, which are a ``Painting`` each;
  ``faststy.paint_video`` paints videos;
- ``faststy.evaluation`` says in numbers how good a model is;
- ``faststy.ops`` holds the fused differentiable operations, ``faststy.nn`` what is made of them;
- ``faststy.FaststyError`` is what all of it raises for what a user can mend.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from faststy import errors
from faststy.errors import FaststyError

if TYPE_CHECKING:
    from faststy import evaluation, nn, ops
    from faststy.stylization.stylizer import Painting, Stylizer
    from faststy.stylization.video import paint_video
    from faststy.training.config import TrainConfig
    from faststy.training.log import Progress
    from faststy.training.loop import TrainResult, train

__version__ = "0.1.0"
__all__ = [
    "FaststyError",
    "Painting",
    "Progress",
    "Stylizer",
    "TrainConfig",
    "TrainResult",
    "__version__",
    "errors",
    "evaluation",
    "nn",
    "ops",
    "paint_video",
    "train",
]

_MODULES = ("evaluation", "nn", "ops")
_HOMES = {
    "Painting": "faststy.stylization.stylizer",
    "Progress": "faststy.training.log",
    "Stylizer": "faststy.stylization.stylizer",
    "TrainConfig": "faststy.training.config",
    "TrainResult": "faststy.training.loop",
    "paint_video": "faststy.stylization.video",
    "train": "faststy.training.loop",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"faststy.{name}")
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value  # later look-ups skip this function
        return value
    raise AttributeError(f"module 'faststy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
