"""Fused differentiable operations; each picks its fastest implementation for the device at hand.

- `combined_loss`, `discriminator_loss`: all terms of the objective at once;
- `gram`, `gram_loss`: Gram matrices and the relative distance between them;
- `instance_norm`, `instance_statistics`: normalisation, affine, residual and activation in one;
- `convolve`, `reflected_conv3x3`, `frozen_conv3x3`: convolutions of nets that train, or only pass
  gradients on, with what follows them: `bias_activation`, `max_pool`;
- `reflection_pad`, `pixel_shuffle`, `pixel_unshuffle`, `blur`, `averages`: what nets do with
  pixels;
- `from_pixels`, `to_pixels`: uint8 frames to tensors and back;
- `conv3x3`, `upsample`, `blur_cells`, `blur_cells_frames`, `repair_hints`, `repair_apply`: what
  painting takes beyond those, without gradients;
- `tune`: measures block sizes of the Triton kernels on this GPU, and remembers them;
- `implementations`: what computes each op here, and why.

`faststy.ops.reference` holds the definitions in plain PyTorch.
"""

from faststy.ops.averages import averages
from faststy.ops.bias_activation import bias_activation
from faststy.ops.blur import blur
from faststy.ops.combined_loss import TERMS, Losses, combined_loss, discriminator_loss
from faststy.ops.conv3x3 import conv3x3
from faststy.ops.conv3x3_train import frozen_conv3x3, reflected_conv3x3
from faststy.ops.convolution import convolve
from faststy.ops.dispatch import Implementation, implementations
from faststy.ops.gram import gram, gram_loss
from faststy.ops.instance_norm import instance_norm, instance_statistics
from faststy.ops.max_pool import max_pool
from faststy.ops.pixel_shuffle import pixel_shuffle, pixel_unshuffle
from faststy.ops.pixels import from_pixels, to_pixels
from faststy.ops.reflection_pad import reflection_pad
from faststy.ops.repair import repair_apply, repair_hints
from faststy.ops.tune import Tuned, tune
from faststy.ops.upsample import blur_cells, blur_cells_frames, upsample

__all__ = [
    "TERMS",
    "Implementation",
    "Losses",
    "Tuned",
    "averages",
    "bias_activation",
    "blur",
    "blur_cells",
    "blur_cells_frames",
    "combined_loss",
    "conv3x3",
    "convolve",
    "discriminator_loss",
    "from_pixels",
    "frozen_conv3x3",
    "gram",
    "gram_loss",
    "implementations",
    "instance_norm",
    "instance_statistics",
    "max_pool",
    "pixel_shuffle",
    "pixel_unshuffle",
    "reflected_conv3x3",
    "reflection_pad",
    "repair_apply",
    "repair_hints",
    "to_pixels",
    "tune",
    "upsample",
]
