"""What products are made in: the dtype of their factors, and how tensor cores treat float32."""

from __future__ import annotations

import os

import torch
import triton.language as tl
from torch import Tensor

# The interpreter multiplies with NumPy, which knows no bfloat16.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def factor_dtype(x: Tensor) -> tl.dtype:
    """What the factors of products are rounded to: nothing is lost of x."""
    if x.dtype == torch.bfloat16 and not INTERPRETED:
        return tl.bfloat16
    return tl.float16 if x.dtype == torch.float16 else tl.float32


def precision(x: Tensor) -> str:
    """How products of float32 are made: as torch's own, but never without tensor cores."""
    if x.dtype != torch.float32 or torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "tf32x3"
