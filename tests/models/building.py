"""What the builders of models share: the case that each gives, and how it imports its package.

A builder imports its package itself, so that a package that is not installed skips its own models only.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    model: nn.Module
    run: Callable[[], Mapping[str, Any]]  # results by name; "loss" is the one to differentiate
    lstms: int  # modules that replace_lstm has to change
    cells: int
    training_only: tuple[str, ...] = ()  # parameters that are used only in training


def import_module(name: str, without: list[str]) -> ModuleType:
    """Imports a module while mocks stand in for others, which its package imports too and its model does not use."""
    with pytest.MonkeyPatch.context() as patch:
        for each in without:
            patch.setitem(sys.modules, each, MagicMock())
        return pytest.importorskip(name)


def wake(model: nn.Module) -> None:
    """Randomises what a package initialises to zero, since zeros let no gradient reach the LSTMs below."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.5)
