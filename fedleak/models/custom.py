"""A user's own network."""

from __future__ import annotations

import inspect
import traceback

from pydantic import Field, JsonValue
from torch import nn

from fedleak.components import CUSTOM_KIND, import_object
from fedleak.errors import Problem, ScenarioError
from fedleak.models.architecture import Architecture


class CustomModel(Architecture):
    """``"module:Class"``, a `torch.nn.Module` made with ``parameters``.

    It takes a float tensor ``(b, *input)`` and gives logits ``(b, K)``. The data's shape
    and class count are not passed to it: name them in ``parameters`` where it needs them.
    """

    kind: str = Field(
        pattern=CUSTOM_KIND, description="module:Class, or a function that returns the network"
    )
    parameters: dict[str, JsonValue] = Field({}, description="keyword arguments for the class")

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Import the class and make the network.

        Raises:
            ScenarioError: It cannot be imported, does not take the parameters, raises
                an error of its own, or gives something else.
        """
        try:
            make = import_object(self.kind)
        except ImportError as error:
            raise ScenarioError(Problem("model.kind", f"{error}.")) from error
        if not callable(make):
            raise ScenarioError(Problem("model.kind", f"{self.kind!r} is not callable."))
        try:
            inspect.signature(make).bind(**self.parameters)
        except TypeError as error:
            message = f"{self.kind!r} does not take these parameters: {error}."
            raise ScenarioError(Problem("model.parameters", message)) from error
        try:
            model = make(**self.parameters)
        except Exception as error:  # whatever the user's code does
            frame = traceback.extract_tb(error.__traceback__)[-1]
            message = f"{self.kind!r} raised {error!r} ({frame.filename}, line {frame.lineno})."
            raise ScenarioError(Problem("model.kind", message)) from error
        if not isinstance(model, nn.Module):
            message = f"{self.kind!r} gave {type(model).__name__}; it must give a torch.nn.Module."
            raise ScenarioError(Problem("model.kind", message))
        return model
