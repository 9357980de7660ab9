"""The effective configuration as YAML, defaults filled in, in the units operators write, secrets hidden."""

from __future__ import annotations

from typing import Any

import yaml

from relayd.config.models import Config


def render(config: Config) -> str:
    """YAML of the whole configuration. Secrets are asterisks, keys without a value are left out."""
    data = _without_none(config.model_dump(mode="json"))
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


class _Dumper(yaml.SafeDumper):
    """Lists are indented below their key, as in the example; nothing is abbreviated by anchors."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True
