"""Small configurations for the tests of this folder."""

from __future__ import annotations

from typing import Any

from relayd.config.models import Config


def values(**changes: Any) -> dict[str, Any]:
    """What a valid file on free ports holds, with `changes`: mail comes from this machine and goes to the sandbox."""
    listener = {
        "name": "local",
        "bind": ["127.0.0.1:0"],
        "tls": "none",
        "access": "network",
        "networks": ["127.0.0.0/8"],
    }
    return {
        "hostname": "relay.example.com",
        "workers": 1,
        "listeners": [listener],
        "upstreams": {"sandbox": {"type": "sandbox"}},
        "routes": [{"upstream": "sandbox"}],
        **changes,
    }


def config(**changes: Any) -> Config:
    """A valid configuration, with `changes`."""
    return Config.model_validate(values(shutdown=2.0) | changes)
