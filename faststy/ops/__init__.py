"""Fused differentiable operations; each picks its fastest implementation for the device at hand.

- `gram`, `gram_loss`: Gram matrices and the relative distance between them;
- `instance_norm`, `instance_statistics`: normalisation, affine, residual and activation in one;
- `from_pixels`, `to_pixels`: uint8 frames to tensors and back;
- `implementations`: what computes each op here, and why.

`faststy.ops.reference` holds the definitions in plain PyTorch.
"""

from faststy.ops.dispatch import Implementation, implementations
from faststy.ops.gram import gram, gram_loss
from faststy.ops.instance_norm import instance_norm, instance_statistics
from faststy.ops.pixels import from_pixels, to_pixels

__all__ = [
    "Implementation",
    "from_pixels",
    "gram",
    "gram_loss",
    "implementations",
    "instance_norm",
    "instance_statistics",
    "to_pixels",
]
