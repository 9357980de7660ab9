"""From a configuration to orders (orders.py), and back: for those who read files, and for workers."""

from __future__ import annotations

import pickle

from relayd.config.models import Config
from relayd.config.secret import secrets_of
from relayd.version import installed
from relayd.workers.orders import ListenerOrders, LogOrders, Orders, WebOrders


def seal(config: Config) -> Orders:
    """Orders of a configuration that was checked."""
    web = config.web
    return Orders(
        config.data_dir,
        config.worker_count,
        config.shutdown,
        LogOrders(config.log.format, config.log.level, frozenset(secrets_of(config))),
        # plain text: a name or an address of the configuration's own kind would load its models with it
        tuple(ListenerOrders(str(each.name), tuple(map(str, each.bind))) for each in config.listeners),
        WebOrders(*(tuple(map(str, binds)) for binds in (web.bind, web.public, web.public_tls))),
        installed(),
        pickle.dumps(config),
    )


def unseal(sealed: bytes) -> Config:
    """The configuration. Raises TypeError where it is none."""
    config = pickle.loads(sealed)  # noqa: S301 - made by `seal`, and handed on in memory that only our processes share
    if not isinstance(config, Config):
        raise TypeError("the supervisor sent something that is no configuration")
    return config
