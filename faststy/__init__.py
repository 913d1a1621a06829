"""faststy: train the look of a painting in minutes, paint photos and video with it in real time.

The names below are loaded on first use, so that ``import faststy`` brings in neither torch nor
CUDA:

- ``faststy.train(faststy.TrainConfig(...))`` trains a style into a small generator;
- ``faststy.Stylizer.load(path)`` paints pictures with it;
- ``faststy.ops`` holds the fused differentiable operations.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faststy import ops as ops
    from faststy.stylization.stylizer import Stylizer as Stylizer
    from faststy.training.config import TrainConfig as TrainConfig
    from faststy.training.loop import train as train

__version__ = "0.1.0"
__all__ = ["Stylizer", "TrainConfig", "__version__", "ops", "train"]

_HOMES = {
    "Stylizer": "faststy.stylization.stylizer",
    "TrainConfig": "faststy.training.config",
    "train": "faststy.training.loop",
}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return import_module("faststy.ops")
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value  # later look-ups skip this function
        return value
    raise AttributeError(f"module 'faststy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
