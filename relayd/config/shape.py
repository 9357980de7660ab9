"""Finds its way in the models: which model a key belongs to, of what kind its values are, whether it is secret.

For wording, show, docs and diff; says nothing about values.
"""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Union, cast, get_args, get_origin

from pydantic import BaseModel, SecretStr, Tag
from pydantic.fields import FieldInfo

from relayd.config.models import Config


def alternatives(annotation: Any) -> list[Any]:
    """What a value can be: unions and Annotated taken apart, lists and mappings left whole."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [part for choice in get_args(annotation) for part in alternatives(choice)]
    return [annotation]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a value, the items of a list or the values of a mapping can be."""
    found: list[type[BaseModel]] = []
    for part in alternatives(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            found.append(part)
        elif get_origin(part) in (list, dict):
            found += models_in(get_args(part)[-1])
    return found


def model_at(way: tuple[Any, ...]) -> type[BaseModel] | None:
    """The model that has, or should have, the last key of the way.

    The way is one of pydantic's: a choice within a union is named by its tag, <smtp> say.
    """
    annotation: Any = Config
    for part in way[:-1]:
        annotation = _step(annotation, part)
    models = [part for part in alternatives(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
    return models[0] if models else None


def field_at(way: tuple[Any, ...]) -> FieldInfo | None:
    """The field that the way ends in; for an item of a list, the list's."""
    while way and isinstance(way[-1], int):
        way = way[:-1]
    model = model_at(way)
    return model.model_fields.get(str(way[-1])) if model is not None else None


def _step(annotation: Any, part: Any) -> Any:
    if isinstance(part, str) and part.startswith("<"):
        return _tagged(annotation, part)
    for choice in alternatives(annotation):
        if get_origin(choice) is list and isinstance(part, int):
            return get_args(choice)[0]
        if get_origin(choice) is dict:
            return get_args(choice)[1]
        if isinstance(choice, type) and issubclass(choice, BaseModel) and part in choice.model_fields:
            return choice.model_fields[part].annotation
    return None


def _tagged(annotation: Any, tag: str) -> Any:
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        if any(isinstance(item, Tag) and item.tag == tag for item in metadata):
            return inner
        return _tagged(inner, tag)
    if get_origin(annotation) in (Union, UnionType):
        return next((found for choice in get_args(annotation) if (found := _tagged(choice, tag)) is not None), None)
    return None


def is_secret(field: FieldInfo) -> bool:
    """The value must never be shown."""
    return SecretStr in alternatives(field.annotation)


def kind_of(field: FieldInfo) -> str:
    """The kind of value by our own name ("duration", "size"), "" for what pydantic knows itself."""
    return _kind(field.metadata) or inner_kind(field.annotation)


def inner_kind(annotation: Any) -> str:
    """The same for a bare annotation."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return _kind(metadata) or inner_kind(inner)
    if get_origin(annotation) in (Union, UnionType, list):
        return next((kind for choice in get_args(annotation) if (kind := inner_kind(choice))), "")
    return ""


def _kind(metadata: list[Any]) -> str:
    for item in metadata:
        schema = getattr(item, "json_schema", None)
        if isinstance(schema, dict) and "x-kind" in schema:
            return str(schema["x-kind"])
    return ""


def whole_type(field: FieldInfo) -> Any:
    """The field's type with its constraints."""
    return cast(Any, Annotated)[field.annotation, *field.metadata] if field.metadata else field.annotation
