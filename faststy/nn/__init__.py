"""Modules: the nets of the method, their encoder, and drop-in normalisation layers."""

from faststy.nn.discriminator import Discriminator
from faststy.nn.encoder import Encoder, VGG19Encoder, load_encoder
from faststy.nn.generator import Generator, GeneratorConfig
from faststy.nn.normalization import (
    ConditionalInstanceNorm2d,
    InstanceNorm2d,
    replace_instance_norm,
)
from faststy.nn.repairer import Repairer

__all__ = [
    "ConditionalInstanceNorm2d",
    "Discriminator",
    "Encoder",
    "Generator",
    "GeneratorConfig",
    "InstanceNorm2d",
    "Repairer",
    "VGG19Encoder",
    "load_encoder",
    "replace_instance_norm",
]
