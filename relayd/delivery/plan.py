"""From the configuration to what the dispatcher works by: connectors, routes, keys, policy.

Everything that can fail on a faulty configuration fails here, before anything running is touched.
"""

from __future__ import annotations

from collections.abc import Callable

from relayd.config.models import Account, Config, ReturnPath, SMTPUpstream, Upstream
from relayd.config.presets import Throttle
from relayd.config.presets import find as find_preset
from relayd.core.ids import MessageId
from relayd.core.session import Connector
from relayd.core.throttle import ThrottleAction, ThrottleRule, throttle_rule
from relayd.core.token import ReturnPaths
from relayd.core.units import Millis
from relayd.delivery.accounts import AccountBook, LaneTable, Outward, books_of, lane_name
from relayd.delivery.allowance import limits_of, shares_of
from relayd.delivery.dkim import Signer, SigningPool, load_keys
from relayd.delivery.line import Plan, UpstreamPlan
from relayd.delivery.oauth.grants import Grant, grant_of
from relayd.delivery.oauth.keeper import Bearer, TokenKeeper
from relayd.delivery.pace import FIRST
from relayd.delivery.sandbox import SandboxConnector
from relayd.delivery.settle import Policy
from relayd.delivery.smtp import SMTPConnector
from relayd.delivery.storm import StormRule
from relayd.delivery.tls import ClientContexts


def policy_of(config: Config) -> Policy:
    """Retry, lifetime and reports, in milliseconds."""
    return Policy(
        schedule=config.retry.schedule,
        lifetime=round(config.retry.lifetime * 1000),
        delay_notice=round(config.retry.delay_notice * 1000),
        notify=config.bounces.notify == "sender",
        held_lifetime=round(config.retry.held_lifetime * 1000),
    )


def logins_of(config: Config) -> dict[str, tuple[str, Upstream, Account | None]]:
    """Lane → name and settings of its upstream, with the login of the lane's account in place, and that account."""
    out: dict[str, tuple[str, Upstream, Account | None]] = {}
    for name, upstream in config.upstreams.items():
        if not isinstance(upstream, SMTPUpstream) or not upstream.accounts:
            out[name] = (name, upstream, None)
            continue
        for account in upstream.accounts:
            login = {
                "username": account.username or account.address,
                "password": account.password,
                "oauth": account.oauth,
                "limits": limits_of(upstream, account),
            }
            out[lane_name(name, account)] = (name, upstream.model_copy(update=login), account)
    return out


def grants_of(config: Config) -> dict[str, Grant]:
    """Lane → how its tokens are got, for the lanes that log in by token."""
    return {
        lane: grant_of(name, account.name if account else "", upstream.username or "", upstream.oauth)
        for lane, (name, upstream, account) in logins_of(config).items()
        if isinstance(upstream, SMTPUpstream) and upstream.oauth is not None
    }


def bearer_of(lane: str, config: Config, keeper: TokenKeeper | None) -> Bearer | None:
    """The tokens of a lane; None where it does not log in by token."""
    _, upstream, _ = logins_of(config)[lane]
    if keeper is None or not isinstance(upstream, SMTPUpstream) or upstream.oauth is None:
        return None
    return Bearer(grants_of(config)[lane], keeper, upstream.oauth.mechanism)


def _outward(book: AccountBook | None, upstream: Upstream, account: Account | None) -> Outward | None:
    """What changes on the way out by this login; None: nothing ever does."""
    if not isinstance(upstream, SMTPUpstream):
        return None
    address = account.address if account is not None else upstream.username
    if not address or not (upstream.rewrite_sender or upstream.return_path is ReturnPath.ACCOUNT):
        return None
    return Outward(book if upstream.rewrite_sender else None, address, upstream.return_path)


def _storm(upstream: Upstream) -> StormRule | None:
    if not isinstance(upstream, SMTPUpstream) or not upstream.storm.replies:
        return None
    return StormRule(upstream.storm.replies, round(upstream.storm.within * 1000))


def rules_of(name: str, upstream: Upstream, config: Config) -> tuple[ThrottleRule, ...]:
    """The rules about replies of an upstream: those of the file, then those of its preset."""
    if not isinstance(upstream, SMTPUpstream):
        return ()
    own = [
        throttle_rule(rule.match, ThrottleAction(rule.action), round(rule.seconds * 1000))
        for rule in config.rules
        if rule.upstream in (None, name)
    ]
    preset = find_preset(upstream.preset) if upstream.preset else None
    return (*own, *(preset_rule(throttle) for throttle in (preset.throttles if preset else ())))


def preset_rule(throttle: Throttle) -> ThrottleRule:
    """A rule that a preset brings."""
    return throttle_rule(throttle.match, ThrottleAction(throttle.action), throttle.seconds * 1000)


def overflows_of(config: Config) -> dict[str, str]:
    """Upstream → the one that stands in once its day is used up."""
    return {
        name: upstream.overflow
        for name, upstream in config.upstreams.items()
        if isinstance(upstream, SMTPUpstream) and upstream.overflow is not None
    }


ReturnDomain = Callable[[str], str | None]
"""Domain of From → the domain at which its return paths are issued; None: at `bounces.domain`. Asked for each mail."""


def _no_domain(from_domain: str) -> None:
    del from_domain


def _verp(paths: ReturnPaths, return_domain: ReturnDomain) -> Callable[[MessageId, int, Millis, str], str]:
    def make(message: MessageId, n: int, now: Millis, from_domain: str) -> str:
        return paths.address(message, n, now, return_domain(from_domain))

    return make


def build_plan(
    config: Config,
    clock: Callable[[], Millis],
    return_paths: ReturnPaths | None = None,
    tokens: TokenKeeper | None = None,
    return_domain: ReturnDomain = _no_domain,
) -> Plan:
    """Raises DKIMKeyError for keys that cannot be used. `return_paths` and `return_domain` are what `return_path: verp`
    needs, `tokens` what `oauth` needs.
    """
    contexts, books, shares = ClientContexts(), books_of(config), shares_of(config)
    verp = None if return_paths is None else _verp(return_paths, return_domain)

    def connector(lane: str, upstream: Upstream) -> Connector:
        if not isinstance(upstream, SMTPUpstream):
            return SandboxConnector(lane, config.data_dir / "sandbox.db", clock)
        return SMTPConnector(lane, upstream, config.hostname, contexts, bearer_of(lane, config, tokens))

    upstreams = {
        lane: UpstreamPlan(
            name=lane,
            connector=connector(lane, upstream),
            connections=min(upstream.limits.connections, upstream.limits.concurrency or upstream.limits.connections),
            recipients=upstream.limits.recipients_per_message,
            on_uncertain=upstream.on_uncertain,
            identity=(upstream, config.hostname),
            return_path=verp if upstream.return_path is ReturnPath.VERP else None,
            outward=_outward(books.get(name), upstream, account),
            storm=_storm(upstream),
            rules=rules_of(name, upstream, config),
            first=FIRST if isinstance(upstream, SMTPUpstream) else 0,
            shares=shares[lane],
        )
        for lane, (name, upstream, account) in logins_of(config).items()
    }
    return Plan(
        upstreams=upstreams,
        table=LaneTable(config.routes, books, overflows_of(config)),
        signing=SigningPool(Signer(load_keys(config.dkim), clock)),
        policy=policy_of(config),
        window=config.spool.window,
    )
