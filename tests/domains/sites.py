"""Configurations whose resolvers are a World's servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from relayd.config.load import load
from relayd.config.models import Config
from tests.support.dns_world import World


def settings_for(world: World, **sections: Any) -> dict[str, Any]:
    """The sections of a whole configuration."""
    host, port = world.resolver
    return {
        "hostname": "relay.test",
        "data_dir": "data",
        "workers": 1,
        "listeners": [
            {"name": "local", "bind": ["127.0.0.1:0"], "tls": "none", "access": "network", "networks": ["127.0.0.0/8"]}
        ],
        "upstreams": {"sandbox": {"type": "sandbox"}},
        "routes": [{"upstream": "sandbox"}],
        "domains": {
            "resolvers": [f"{host}:{port}"],
            "authoritative_port": port,
            "timeout": "20s",
            "spf": ["include:_spf.relay.test"],
            "zone": "keys.relay.test",
        },
        "tracking": {"host": "link.relay.test", "tls_host": "tls.relay.test", "proof_zone": "proof.relay.test"},
    } | sections


def config_for(world: World, directory: Path, **sections: Any) -> Config:
    """The configuration, written and loaded."""
    path = directory / "relayd.yaml"
    path.write_text(yaml.safe_dump(settings_for(world, **sections), allow_unicode=True))
    return load(path, {})
