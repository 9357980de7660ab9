"""JSON Schema of relayd.yaml, for editors that complete and check YAML (docs/config.schema.json)."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, TypeAdapter

from relayd.config.models import Config
from relayd.config.shape import is_secret, models_in, whole_type


def schema() -> dict[str, Any]:
    """The schema. Values brought by !env, !file and !credential are strings to it."""
    made = Config.model_json_schema(mode="validation")
    definitions = made.get("$defs", {})
    for model in all_models():
        target = made if model is Config else definitions[model.__name__]
        _tidy(model, target)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **made,
        "title": "relayd configuration",
        "description": "relayd.yaml; see docs/configuration.md.",
    }


def schema_text() -> str:
    """The schema file, as it is written to docs/."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def all_models() -> list[type[BaseModel]]:
    """Config and every section below it, each once, in the order in which they are met."""
    found: list[type[BaseModel]] = []
    waiting: list[type[BaseModel]] = [Config]
    while waiting:
        model = waiting.pop(0)
        if model not in found:
            found.append(model)
            waiting += [part for field in model.model_fields.values() for part in models_in(field.annotation)]
    return found


def _tidy(model: type[BaseModel], target: dict[str, Any]) -> None:
    """Titles are the keys, defaults are written as in the file, docstrings lose their line breaks."""
    target["description"] = " ".join((model.__doc__ or "").split())
    for name, prop in target["properties"].items():
        field = model.model_fields[name]
        prop.pop("title", None)
        prop.pop("default", None)
        prop["description"] = field.description
        default = written_default(model, name)
        if default not in (None, "", [], {}) and not models_in(field.annotation):
            prop["default"] = default
        if is_secret(field):
            prop["examples"] = ["!env NAME", "!file PATH", "!credential NAME"]


def written_default(model: type[BaseModel], name: str) -> Any:
    """A default as the file would have it, None where there is none (or none that stands alone)."""
    field = model.model_fields[name]
    if field.is_required():
        return None
    default = field.get_default(call_default_factory=True, validated_data={})
    return TypeAdapter(whole_type(field)).dump_python(default, mode="json", by_alias=True)
