"""Example, reference and schema tell the same keys as the models, and are current."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from relayd.config.document import parse_document
from relayd.config.load import examine, load
from relayd.config.models import Config
from relayd.config.reference import reference
from relayd.config.schema import all_models, schema, schema_text, written_default
from relayd.config.shape import alternatives, models_in
from tests.support.config_files import HASH, private_key, written

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config.example.yaml"
SECRETS = {"ACME_PASSWORD": "geheim", "SHOP_PASSWORD_HASH": HASH, "BOUNCES_PASSWORD": "geheim"} | {
    "TEAM_CLIENT_SECRET": "geheim",
    "SHOP_REFRESH_TOKEN": "geheim",
}


def model_keys() -> set[tuple[str, str]]:
    return {(model.__name__, name) for model in all_models() for name in model.model_fields}


def uncommented() -> str:
    """The example with every key that is commented out put in force."""
    return re.sub(r"(?m)^#(?! \S)", "", EXAMPLE.read_text())


def test_the_example_runs_as_it_is() -> None:
    examined = examine(EXAMPLE, {})
    assert examined.faults == []
    assert examined.config is not None
    assert examined.config.data_dir == ROOT / "var"
    binds = [bind for listener in examined.config.listeners for bind in listener.bind] + examined.config.web.bind
    assert all(bind.loopback for bind in binds)
    assert all(bind.port >= 1024 for bind in binds)


def test_every_commented_key_of_the_example_is_right(tmp_path: Path) -> None:
    text = uncommented().replace("/etc/relayd/dkim/shop.pem", str(private_key(tmp_path / "shop.pem")))
    trustme.CA().cert_pem.write_to_path(tmp_path / "acme-ca.pem")
    (tmp_path / "google.json").write_text("{}")
    examined = examine(written(tmp_path, text), SECRETS)
    assert [fault.written("") for fault in examined.faults if fault.key != "tls.certificate"] == []
    config = examined.config
    assert config is not None
    assert set(config.upstreams) == {"sandbox", "acme", "team", "shop", "news", "cloud"}
    assert [listener.name for listener in config.listeners] == ["local", "submission", "mx", "smtps"]


def test_commented_values_are_defaults_unless_they_are_examples(tmp_path: Path) -> None:
    text = uncommented().replace("/etc/relayd/dkim/shop.pem", str(private_key(tmp_path / "shop.pem")))
    text = re.sub(r"(?m)^ +ca_file:.*\n", "", text)
    (tmp_path / "google.json").write_text("{}")
    config = load(written(tmp_path, text), SECRETS)
    bounces = config.bounces.model_copy(update={"domain": None, "mailboxes": []})
    for section in (config.limits, config.retry, bounces, config.spool):
        assert section == type(section)(), section
    assert config.upstreams["acme"].on_uncertain == config.upstreams["sandbox"].on_uncertain


def test_every_key_is_in_the_example() -> None:
    document = parse_document(uncommented().encode(), Path("/"), SECRETS)
    assert document.root is not None
    found: set[tuple[str, str]] = set()
    _collect(Config, document.root.plain(), found)
    # a sandbox takes the same keys as a real upstream, which are shown there; optional secret has no file here
    missing = model_keys() - found - {("SandboxUpstream", "limits"), ("SandboxUpstream", "on_uncertain")}
    missing -= {("SandboxUpstream", "return_path")}
    assert missing - {("Config", "secret")} == set()
    assert "\n#secret: !file" in EXAMPLE.read_text()


def _collect(model: Any, data: dict[str, Any], found: set[tuple[str, str]]) -> None:
    for name, value in data.items():
        found.add((model.__name__, name))
        field = model.model_fields[name]
        for part in models_in(field.annotation):
            for one in _values(value, field):
                if set(one) <= set(part.model_fields) and one.get("type", "smtp") in _kinds(part):
                    _collect(part, one, found)


def _values(value: Any, field: Any) -> list[dict[str, Any]]:
    several = value if isinstance(value, list) else list(value.values()) if _is_dict(field) else [value]
    return [one for one in several if isinstance(one, dict)]


def _is_dict(field: Any) -> bool:
    return getattr(alternatives(field.annotation)[0], "__origin__", None) is dict


def _kinds(model: Any) -> tuple[str, ...]:
    return ("sandbox",) if model.__name__ == "SandboxUpstream" else ("smtp",)


def test_every_key_is_in_the_reference_under_its_section() -> None:
    sections = re.split(r"(?m)^## Keys$|^### ", (ROOT / "docs/configuration.md").read_text())[1:]
    assert len(sections) == len(all_models())
    for model, section in zip(all_models(), sections, strict=True):
        rows = re.findall(r"(?m)^\| `(\w+)` \|", section)
        assert rows == list(model.model_fields)


def test_every_key_and_section_is_described() -> None:
    for model in all_models():
        assert model.__doc__
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            assert field.description.endswith("."), f"{model.__name__}.{name}"


def test_the_links_of_the_reference_lead_somewhere() -> None:
    text = reference()
    anchors = {re.sub(r"[^\w-]", "", h.lower().replace(" ", "-")) for h in re.findall(r"(?m)^#+ (.*)$", text)}
    links = set(re.findall(r"\]\(#([^)]*)\)", text))
    assert links <= anchors
    assert len(links) > 10


def test_reference_and_schema_are_current() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == reference(), "run scripts/generate-docs"
    assert (ROOT / "docs/config.schema.json").read_text() == schema_text(), "run scripts/generate-docs"


def test_generate_docs_checks_without_writing() -> None:
    def run(option: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "scripts/generate-docs"), option]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    current = run("--check")
    assert (current.returncode, current.stderr) == (0, "")
    assert run("--chek").returncode == 2


def test_the_example_names_the_schema() -> None:
    first = EXAMPLE.read_text().splitlines()[0]
    name = first.removeprefix("# yaml-language-server: $schema=")
    assert json.loads((EXAMPLE.parent / name).read_text()) == schema()


def test_the_schema_tells_every_key_with_its_description() -> None:
    made = schema()
    for model in all_models():
        part = made if model is Config else made["$defs"][model.__name__]
        assert part["additionalProperties"] is False
        assert list(part["properties"]) == list(model.model_fields)
        assert all(prop["description"] for prop in part["properties"].values())
        required = [name for name, field in model.model_fields.items() if field.is_required()]
        assert part.get("required", []) == required


def test_the_schema_has_defaults_as_operators_write_them() -> None:
    made = schema()
    assert made["$defs"]["Limits"]["properties"]["idle"]["default"] == "5m"
    assert made["$defs"]["Limits"]["properties"]["message_size"]["default"] == "50MiB"
    assert made["properties"]["workers"]["default"] == "auto"
    assert "default" not in made["properties"]["secret"]


def test_defaults_as_written_are_read_as_the_defaults() -> None:
    for model in all_models():
        for name, field in model.model_fields.items():
            default = written_default(model, name)
            if default is None or field.is_required() or models_in(field.annotation):
                continue
            text = yaml.safe_dump(default)
            model.__pydantic_validator__.validate_assignment(model.model_construct(), name, yaml.safe_load(text))


@pytest.mark.parametrize("path", ["docs/configuration.md", "docs/config.schema.json", "config.example.yaml"])
def test_no_machine_is_named(path: str) -> None:
    assert str(ROOT) not in (ROOT / path).read_text()
    assert "/root/" not in (ROOT / path).read_text()
