"""Scenario entries that are one of several components."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Discriminator, GetCoreSchemaHandler, Tag
from pydantic_core import CoreSchema

from fedleak.components import Component


@dataclass(frozen=True)
class OneOf:
    """Says that an entry is one of these components, chosen by ``kind``.

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
