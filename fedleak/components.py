"""What every component shares: data sources, models, strategies, attacks, measures.

A component is one file with one frozen pydantic model. Its ``kind`` is its name in a
scenario, its fields are its parameters, its method does the work. The package's
``__init__`` lists the components in a tuple; the scenario schema, ``fedleak list``
and the JSON Schema are made from those tuples.
"""

from __future__ import annotations

import functools
import importlib
import operator
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, GetCoreSchemaHandler, Tag
from pydantic_core import CoreSchema

from fedleak.records import Setting

CUSTOM_KIND = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


class Component(BaseModel):
    """Base of all components: immutable, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str

    @classmethod
    def kind_name(cls) -> str:
        """The component's name in a scenario, from the default of its ``kind`` field."""
        return str(cls.model_fields["kind"].default)


class Applicable(Component):
    """Base of what works on updates, and says up front where it cannot."""

    def unsupported(self, setting: Setting) -> str | None:
        """Say in one sentence why it cannot work here, or return None."""
        return None


@dataclass(frozen=True)
class OneOf:
    """Says that a field is one of these components, chosen by ``kind``.

    Attributes:
        components: The package's own components.
        custom: Takes the entry when ``kind`` has the form ``"module:name"``.
        default: Takes the entry when it has no ``kind``.
    """

    components: tuple[type[Component], ...]
    custom: type[Component] | None = None
    default: type[Component] | None = None

    @property
    def all(self) -> tuple[type[Component], ...]:
        """Every component that can take the entry."""
        return self.components if self.custom is None else (*self.components, self.custom)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        if len(self.all) == 1:
            return handler.generate_schema(self.all[0])
        tagged = [
            Annotated[
                component, Tag("custom" if component is self.custom else component.kind_name())
            ]
            for component in self.all
        ]
        return handler.generate_schema(
            Annotated[functools.reduce(operator.or_, tagged), Discriminator(self._tag)]
        )

    def _tag(self, value: Any) -> str | None:
        kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
        if kind is None:
            # What is no table at all is told to be one.
            stands_in = self.default if isinstance(value, dict) else None
            return None if stands_in is None else stands_in.kind_name()
        return "custom" if isinstance(kind, str) and ":" in kind else str(kind)


def import_object(spec: str) -> Any:
    """Import what ``"their.module:Name"`` names; the working directory is searched too.

    Raises:
        ImportError: The module or the name in it cannot be imported; says which.
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise ImportError(f"{spec!r} is not of the form 'module:name'")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        raise
    except Exception as error:  # whatever the user's module does when it is imported
        raise ImportError(f"importing {module_name!r} failed: {error!r}") from error
    try:
        return getattr(module, name)
    except AttributeError:
        raise ImportError(f"module {module_name!r} has no {name!r}") from None
