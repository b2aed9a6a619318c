"""Scenario entries that are one of several components."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Discriminator, GetCoreSchemaHandler, Tag
from pydantic_core import CoreSchema

from fedleak.components import Component


def _tag(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    if kind is None:
        return None
    return "custom" if isinstance(kind, str) and ":" in kind else str(kind)


@dataclass(frozen=True)
class OneOf:
    """Says that an entry is one of these components, chosen by ``kind``.

    Attributes:
        components: The package's own components.
        custom: Takes the entry when ``kind`` has the form ``"module:name"``.
    """

    components: tuple[type[Component], ...]
    custom: type[Component] | None = None

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
            Annotated[functools.reduce(operator.or_, tagged), Discriminator(_tag)]
        )
