"""The networks that can be trained, and their initial weights."""

from __future__ import annotations

from fedleak.models.architecture import Architecture
from fedleak.models.boenisch import BoenischCnn, BoenischFc
from fedleak.models.building import build, check_model, normalised
from fedleak.models.custom import CustomModel
from fedleak.models.dropout import DROPOUT_NOTE, has_dropout
from fedleak.models.initialisation import (
    DefaultInit,
    Init,
    KaimingInit,
    NormalInit,
    UniformInit,
    XavierInit,
)
from fedleak.models.lenet import LeNet, LeNetDlg
from fedleak.models.mlp import Mlp
from fedleak.models.mo import VGG9, AlexNet, TextClf
from fedleak.models.resnet18 import ResNet18
from fedleak.models.text import BoenischText
from fedleak.models.transformer import TextTransformer

MODELS = (
    Mlp,
    LeNetDlg,
    LeNet,
    AlexNet,
    VGG9,
    BoenischFc,
    BoenischCnn,
    ResNet18,
    BoenischText,
    TextClf,
    TextTransformer,
)
INITS = (DefaultInit, UniformInit, NormalInit, XavierInit, KaimingInit)

__all__ = [
    "DROPOUT_NOTE",
    "INITS",
    "MODELS",
    "Architecture",
    "CustomModel",
    "DefaultInit",
    "Init",
    "build",
    "check_model",
    "has_dropout",
    "normalised",
]
