"""From the configuration to what the dispatcher works by: connectors, routes, keys, policy.

Everything that can fail on a faulty configuration fails here, before anything running is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from relayd.config.models import Config, ReturnPath, SandboxUpstream
from relayd.core.session import Connector
from relayd.core.token import ReturnPaths
from relayd.core.units import Millis
from relayd.delivery.dispatch import Plan, UpstreamPlan
from relayd.delivery.dkim import Signer, SigningPool, load_keys
from relayd.delivery.routing import RouteTable
from relayd.delivery.sandbox import SandboxConnector
from relayd.delivery.settle import Policy
from relayd.delivery.smtp import SMTPConnector
from relayd.delivery.tls import ClientContexts


def policy_of(config: Config) -> Policy:
    """Retry, lifetime and reports, in milliseconds."""
    return Policy(
        schedule=config.retry.schedule,
        lifetime=round(config.retry.lifetime * 1000),
        delay_notice=round(config.retry.delay_notice * 1000),
        notify=config.bounces.notify == "sender",
    )


def connector_for(
    name: str, config: Config, data_dir: Path, contexts: ClientContexts, clock: Callable[[], Millis]
) -> Connector:
    """The connector of one upstream."""
    upstream = config.upstreams[name]
    if isinstance(upstream, SandboxUpstream):
        return SandboxConnector(name, data_dir / "sandbox.db", clock)
    return SMTPConnector(name, upstream, config.hostname, contexts)


def build_plan(config: Config, clock: Callable[[], Millis], return_paths: ReturnPaths | None = None) -> Plan:
    """Raises DKIMKeyError for keys that cannot be used. `return_paths` is what `return_path: verp` needs."""
    contexts = ClientContexts()
    upstreams = {
        name: UpstreamPlan(
            name=name,
            connector=connector_for(name, config, config.data_dir, contexts, clock),
            connections=upstream.limits.connections,
            recipients=upstream.limits.recipients_per_message,
            on_uncertain=upstream.on_uncertain,
            identity=(upstream, config.hostname),
            return_path=(
                return_paths.address if return_paths is not None and upstream.return_path is ReturnPath.VERP else None
            ),
        )
        for name, upstream in config.upstreams.items()
    }
    return Plan(
        upstreams=upstreams,
        table=RouteTable(config.routes),
        signing=SigningPool(Signer(load_keys(config.dkim), clock)),
        policy=policy_of(config),
        window=config.spool.window,
    )
