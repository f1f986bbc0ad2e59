"""The networks that the DLA, DIA and MRLA papers describe, by name."""

from .attentions import ATTENTIONS
from .convert import convert
from .published import from_published, to_published
from .registry import create_model, list_models
from .resnet import ResNet
from .timms import register_timm
from .vit import VisionTransformer

__all__ = [
    "ATTENTIONS",
    "ResNet",
    "VisionTransformer",
    "convert",
    "create_model",
    "from_published",
    "list_models",
    "register_timm",
    "to_published",
]
