"""A user's own data, loaded by a callable of theirs."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from pydantic import Field, JsonValue

from fedleak.components import CUSTOM_KIND, import_object
from fedleak.data.arrays import as_images, as_labels, checked, count_classes
from fedleak.data.source import Source
from fedleak.errors import Problem, ScenarioError
from fedleak.records import Dataset, DataSplits

ARRAYS = ("x_train", "y_train", "x_test", "y_test")


class CustomSource(Source):
    """Calls ``"module:callable"`` with ``parameters``.

    It returns a `DataSplits`, or a tuple of arrays ``(x_train, y_train, x_test,
    y_test)`` with images and labels as the npz source takes them. It must give the same
    samples in the same order whenever it is called.
    """

    kind: str = Field(pattern=CUSTOM_KIND, description="module:callable that returns the samples")
    parameters: dict[str, JsonValue] = Field({}, description="keyword arguments for the callable")

    def load(self) -> DataSplits:
        """Import the callable, call it and check what it returns.

        Raises:
            ScenarioError: It cannot be imported, does not take the parameters, or
                returns something else. What it raises itself is passed on.
        """
        try:
            make = import_object(self.kind)
        except ImportError as error:
            raise ScenarioError(Problem("data.kind", f"{error}.")) from error
        if not callable(make):
            raise ScenarioError(Problem("data.kind", f"{self.kind!r} is not callable."))
        try:
            inspect.signature(make).bind(**self.parameters)
        except TypeError as error:
            message = f"{self.kind!r} does not take these parameters: {error}."
            raise ScenarioError(Problem("data.parameters", message)) from error
        return checked(self._splits(make(**self.parameters)), "data.kind")

    def _splits(self, made: Any) -> DataSplits:
        if isinstance(made, DataSplits):
            return made
        if not (
            isinstance(made, tuple)
            and len(made) == 4
            and all(isinstance(array, np.ndarray) for array in made)
        ):
            message = (
                f"{self.kind!r} returned {type(made).__name__}; it must return a DataSplits "
                f"or a tuple of NumPy arrays ({', '.join(ARRAYS)})."
            )
            raise ScenarioError(Problem("data.kind", message))
        x_train, y_train, x_test, y_test = made
        train_labels = as_labels(y_train, "data.kind", "y_train")
        test_labels = as_labels(y_test, "data.kind", "y_test")
        classes = count_classes(train_labels, test_labels)
        return DataSplits(
            Dataset(as_images(x_train, "data.kind", "x_train"), train_labels, classes),
            Dataset(as_images(x_test, "data.kind", "x_test"), test_labels, classes),
        )
