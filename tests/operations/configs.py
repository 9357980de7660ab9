"""Small configurations for the tests of this folder."""

from __future__ import annotations

from typing import Any

from relayd.config.models import Config


def config(**changes: Any) -> Config:
    """A valid configuration on free ports, with `changes`."""
    values: dict[str, Any] = {
        "hostname": "relay.example.com",
        "workers": 1,
        "listeners": [
            {
                "name": "local",
                "bind": ["127.0.0.1:0"],
                "tls": "none",
                "access": "network",
                "networks": ["127.0.0.0/8"],
            }
        ],
        "upstreams": {"sandbox": {"type": "sandbox"}},
        "routes": [{"upstream": "sandbox"}],
        "shutdown": 2.0,
    }
    return Config.model_validate(values | changes)
