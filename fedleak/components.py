"""What every component shares: data sources, models, strategies, attacks, measures.

A component is one file with one frozen pydantic model. Its ``kind`` is its name in a
scenario, its fields are its parameters, its method does the work. The package's
``__init__`` lists the components in a tuple; the scenario schema, ``fedleak list``
and the JSON Schema are made from those tuples.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

CUSTOM_KIND = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


class Component(BaseModel):
    """Base of all components: immutable, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str

    @classmethod
    def kind_name(cls) -> str:
        """The component's name in a scenario, from the default of its ``kind`` field."""
        return str(cls.model_fields["kind"].default)


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
