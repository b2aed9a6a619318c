"""pydantic's errors, told in the scenario's own words."""

from __future__ import annotations

import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedleak.components import Component, OneOf
from fedleak.errors import Problem, nearest

_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "path_type": "a path",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_ELSEWHERE = {
    "server-noise": "[aggregation.server_noise]",
    "secure-aggregation": "[aggregation] secure_aggregation",
    "local-averaging": "[client] local_steps or local_epochs",
}
"""Defenses that are settings of other tables."""
_LIMITS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}

_LONG = 1e16
"""From here on, numbers are read more easily with an exponent."""


def problems_of(error: ValidationError, schema: type[BaseModel], raw: Any) -> list[Problem]:
    """Translate every error of a failed validation.

    Args:
        error: What pydantic raised.
        schema: The model that was validated against.
        raw: The data as read, used to tell keys from pydantic's own union tags.
    """
    problems: dict[str, Problem] = {}
    for detail in error.errors():
        if detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]:
            continue  # only because entries that have errors of their own do not count
        path = ".".join(key_path(detail, raw))
        # A union of types without tags complains once for each of them.
        problems.setdefault(path, Problem(path, _message(detail, schema, path)))
    return list(problems.values())


def key_path(detail: ErrorDetails, raw: Any) -> list[str]:
    """Keys of an error's location in the raw data; union tags are left out."""
    parts = list(detail["loc"])
    if detail["type"].startswith("union_tag") and isinstance(detail["input"], dict):
        parts.append("kind")
    path: list[str] = []
    here = raw
    for position, part in enumerate(parts):
        inside = (
            part in here
            if isinstance(here, dict)
            else isinstance(here, list) and isinstance(part, int) and part < len(here)
        )
        if inside:
            here = here[part]
        elif position < len(parts) - 1 or not isinstance(here, dict) or here.get("kind") == part:
            continue
        path.append(str(part))
    return path


def _message(detail: ErrorDetails, schema: type[BaseModel], path: str) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        fields = sorted(_fields_beside(detail["loc"], schema))
        near = nearest(str(detail["loc"][-1]), fields)
        return f"unknown key; allowed here: {', '.join(fields)}.{near}"
    if kind == "missing":
        return "is missing and has no default"
    if kind == "union_tag_not_found":
        kinds = f"one of: {', '.join(_kinds_at(detail['loc'], schema))}"
        if isinstance(value, dict):
            return f"is missing; {kinds}"
        return f"must be a table with a `kind`, {kinds}; not {_shown(value)}"
    if kind in {"literal_error", "union_tag_invalid"}:
        wrong = context.get("tag", value)
        if path.startswith("client.defenses.") and wrong in _ELSEWHERE:
            return f"{_shown(wrong)} is set elsewhere: {_ELSEWHERE[wrong]}"
        allowed = re.findall(r"'([^']+)'", str(context.get("expected") or context["expected_tags"]))
        names = [name for name in allowed if name != "custom"]
        own = "; or your own as 'module:name'" if "custom" in allowed else ""
        return (
            f"{_shown(wrong)} is not one of: {', '.join(names)}{own}.{nearest(str(wrong), names)}"
        )
    if kind == "tuple_type" and isinstance(value, dict) and _models_at(detail["loc"], schema):
        return f"is a list of tables: write [[{path}]], in double brackets"
    if kind == "string_type" and isinstance(value, (int, float)):
        return f"must be text, not {_shown(value)}; as text it is '\"{_shown(value)}\"'"
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}, not {_shown(value)}"
    if kind in _LIMITS:
        key, words = _LIMITS[kind]
        return f"must be {words} {_shown(context[key])}, not {_shown(value)}"
    if kind == "string_pattern_mismatch" and path == "name":
        return (
            "must be up to 64 letters, digits, dots, dashes and underscores, and begin with a "
            f"letter or a digit; not {_shown(value)}"
        )
    if kind == "too_short":
        return f"needs at least {context['min_length']} entry"
    if kind == "value_error":
        return str(context["error"])
    return f"{detail['msg'][0].lower()}{detail['msg'][1:]} (got {_shown(value)})"


def _shown(value: Any) -> str:
    """A value as a scenario would spell it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < _LONG:
        return str(int(value))
    return repr(value)


def _fields_beside(loc: tuple[int | str, ...], schema: type[BaseModel]) -> set[str]:
    """Names of the fields that may stand where the last part of ``loc`` stands."""
    return {name for model in _models_at(loc[:-1], schema) for name in model.model_fields}


def _kinds_at(loc: tuple[int | str, ...], schema: type[BaseModel]) -> list[str]:
    """Names of the components that may stand at ``loc``."""
    return [
        "'module:name'" if _tag_of(model) == "custom" else model.kind_name()
        for model in _models_at(loc, schema)
        if issubclass(model, Component)
    ]


def _models_at(loc: tuple[int | str, ...], schema: type[BaseModel]) -> list[type[BaseModel]]:
    models = [schema]
    for part in loc:
        if isinstance(part, int):
            continue
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if fields:
            models = [
                model for field in fields for model in _models_in(field.annotation, *field.metadata)
            ]
        else:  # a union's tag: keep the component that bears it
            models = [
                model for model in models if issubclass(model, Component) and _tag_of(model) == part
            ]
    return models


def _tag_of(model: type[Component]) -> str:
    """The component's tag in a union; the user's own has no name of its own."""
    return "custom" if model.model_fields["kind"].is_required() else model.kind_name()


def _models_in(*annotations: Any) -> list[type[BaseModel]]:
    for part in annotations:
        if isinstance(part, OneOf):
            return list(part.all)
    return [
        model
        for part in annotations
        for model in (
            [part]
            if isinstance(part, type) and issubclass(part, BaseModel)
            else _models_in(*get_args(part))
        )
    ]
