"""The shape of relayd.yaml: every key with type, default, meaning. docs/configuration.md is generated from it.

Finding faults that need more than one key is check.py's work, reading the file is load.py's.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    create_model,
)

from relayd.config.base import Model
from relayd.config.choice import ThrottleMatch, UpstreamChoice
from relayd.config.domains import Acme, Domains, Tracking
from relayd.config.returns import BlockRule, Blocks, Bounces, Mailbox, MailboxTLS
from relayd.config.types import (
    URL,
    BindAddress,
    Count,
    Domain,
    DomainPattern,
    Duration,
    FilePath,
    HeaderName,
    Name,
    Network,
    NetworkName,
    PlainPath,
    Rate,
    RetrySchedule,
    Secret,
    Selector,
    SenderPattern,
    Share,
    Size,
    Text,
    wrong,
)
from relayd.config.upstreams import (
    Account,
    OAuth,
    Per,
    ReturnPath,
    SandboxUpstream,
    SMTPUpstream,
    TaggedUpstream,
    Upstream,
    UpstreamLimits,
    UpstreamTimeouts,
    UpstreamTLS,
)
from relayd.core.lifecycle import OnUncertain
from relayd.core.priority import Priority
from relayd.core.retry import parse_schedule

__all__ = [
    "Access",
    "Account",
    "Acme",
    "BareNewlines",
    "BlockRule",
    "Blocks",
    "Bounces",
    "Config",
    "Credential",
    "DKIMKey",
    "Domains",
    "FetchedNetwork",
    "Limits",
    "Listener",
    "ListenerTLS",
    "Log",
    "Mailbox",
    "MailboxTLS",
    "Match",
    "Model",
    "OAuth",
    "OnUncertain",
    "Per",
    "Retry",
    "ReturnPath",
    "Role",
    "Route",
    "SMTPUpstream",
    "SandboxUpstream",
    "Spool",
    "TLSFiles",
    "Tracking",
    "Upstream",
    "UpstreamLimits",
    "UpstreamTLS",
    "UpstreamTimeouts",
    "Web",
]


class TLSFiles(Model):
    """The certificate that listeners show. Read again on reload. Where both files are absent, a self-signed one is made
    on first start.
    """

    certificate: PlainPath = Field(
        Path("tls/fullchain.pem"),
        description="PEM file of the certificate and its chain. A relative path starts in `data_dir`.",
    )
    key: PlainPath = Field(
        Path("tls/privkey.pem"),
        description="PEM file of the private key, readable by relayd only. A relative path starts in `data_dir`.",
    )


class FetchedNetwork(Model):
    """A network whose addresses are kept current from a URL that answers JSON."""

    url: URL = Field(
        description="Where the addresses are fetched from; https, because who answers decides who may send."
    )
    path: Text = Field(
        "",
        description="Where in the answer the list of addresses is: keys joined by dots, like `ip_addresses` or"
        " `data.ranges`. Empty: the answer itself is the list.",
    )
    refresh: Duration = Field(3600.0, ge=1, description="How often the list is fetched.")
    keep_removed: Duration = Field(
        7 * 86400.0, description="An address that vanished from the list stays allowed this long."
    )
    fallback: list[Network] = Field(
        default_factory=list, description="Addresses that are allowed until the first fetch has succeeded."
    )


class ListenerTLS(StrEnum):
    NONE = "none"
    STARTTLS = "starttls"
    IMPLICIT = "implicit"


class Access(StrEnum):
    NETWORK = "network"
    AUTH = "auth"
    NETWORK_OR_AUTH = "network-or-auth"
    NETWORK_AND_AUTH = "network-and-auth"


class BareNewlines(StrEnum):
    REFUSE = "refuse"
    NORMALISE = "normalise"


class Role(StrEnum):
    SUBMISSION = "submission"
    INBOUND = "inbound"


class Listener(Model):
    """A place where apps connect, or, with `role: inbound`, where other servers bring bounces."""

    name: Name = Field(description="Shown in logs, metrics and Received headers.")
    role: Role = Field(
        Role.SUBMISSION,
        description="`submission`: apps send mail. `inbound`: the MX of `bounces.domain`, and of the return paths of"
        " sender domains: takes mail for the addresses that relayd issued there and for postmaster and abuse (550 5.1.1"
        " otherwise), from anyone; no AUTH, and nothing is relayed. `access` and `networks` say nothing then.",
    )
    bind: list[BindAddress] = Field(min_length=1, description="IP addresses and ports to listen on, IPv6 in brackets.")
    tls: ListenerTLS = Field(
        ListenerTLS.STARTTLS,
        description="`starttls`: offered after EHLO. `implicit`: TLS from the first octet, as on port 465."
        " `none`: never; then nobody can log in, except over loopback.",
    )
    require_tls: bool = Field(False, description="With `starttls`: refuse MAIL before STARTTLS (530 5.7.0).")
    access: Access = Field(
        Access.AUTH,
        description="Who may send. `network`: clients in `networks`. `auth`: clients that logged in."
        " `network-or-auth`: either. `network-and-auth`: only both together.",
    )
    networks: list[Text] = Field(
        default_factory=list, description="Source addresses: names from the section `networks`, or CIDRs written here."
    )
    proxy_protocol: list[Network] = Field(
        default_factory=list,
        description="Load balancers in front of this listener. They must speak PROXY v1 or v2, or may use XCLIENT, to"
        " name the real client. Nobody else may, and a client that was named by XCLIENT may not name itself anew."
        " Where a proxy says that it does not know its client (PROXY UNKNOWN), that one is in no network.",
    )
    bare_newlines: BareNewlines = Field(
        BareNewlines.REFUSE,
        description="What happens to a message with a bare CR or LF: `refuse` it (550 5.6.11), or `normalise` it to"
        " CRLF before signing.",
    )
    message_size: Size | None = Field(
        None,
        ge=1024,
        description="Largest message here (552 5.3.4). Absent: `limits.message_size`, with `role: inbound` at most"
        " 16MiB.",
    )


class Credential(Model):
    """What an app logs in with, and what it may send then."""

    username: Text = Field(min_length=1, description="User name for SMTP AUTH.")
    password: Secret = Field(
        description="An argon2id hash, made by `relayd config hash-password`; never the password itself."
    )
    senders: list[SenderPattern] = Field(
        default_factory=lambda: ["*"],
        min_length=1,
        description="Envelope senders it may use (553 5.7.1 otherwise). `*` is any run of characters, `?` is one.",
    )
    accounts: list[Text] = Field(
        default_factory=list,
        description="Sender accounts (`relayd sender add`) whose addresses are the only envelope senders it may use"
        " (553 5.7.1 otherwise). Empty: `senders` alone decides.",
    )
    rate: Rate | None = Field(
        None, description="Messages it may send in any such period (450 4.7.1 beyond). Absent: no limit."
    )
    priority: Priority | None = Field(
        None,
        description="How urgent its mail is: `high`, `normal` or `bulk`. `priority_header` may say less, never more."
        " Absent: what the header or the route says.",
    )


class Limits(Model):
    """What clients can ask of relayd. Each limit has a reply, given in brackets, and a metric."""

    message_size: Size = Field(50 * 1024**2, ge=1024, description="Largest message (552 5.3.4).")
    recipients: Count = Field(1000, ge=1, description="Recipients of one message (452 4.5.3).")
    connections: Count = Field(
        1000,
        ge=1,
        description="Open client connections of all listeners, shared out over the workers (421 4.3.2). At the limit,"
        " who has been there for longest without a login, an allowed network or a mail makes room.",
    )
    connections_per_ip: Count = Field(
        50, ge=1, description="Open connections of one client address, per worker (421 4.7.0)."
    )
    line_length: Size = Field(
        998,
        ge=998,
        description="Length up to which a line is standard (RFC 5322 2.1.1). Longer ones are counted and relayed as"
        " they came.",
    )
    line_length_max: Size = Field(1024**2, ge=998, description="Longest line that is taken at all (554 5.6.0).")
    received_headers: Count = Field(
        50, ge=1, description="A message with so many Received headers is taken for a loop (550 5.4.6)."
    )
    commands: Count = Field(1000, ge=10, description="Commands without an accepted mail in between (421 4.7.0).")
    errors: Count = Field(20, ge=1, description="Refused commands in one session (421 4.7.0).")
    idle: Duration = Field(300.0, ge=1, description="How long to wait for the next command (421 4.4.2).")
    data_idle: Duration = Field(
        180.0, ge=1, description="How long to wait for the next octets of a message (421 4.4.2)."
    )
    min_rate: Size = Field(
        100, description="Slowest flow of a message, in octets a second over a minute (421 4.4.2). 0: any."
    )
    session: Duration = Field(
        3600.0 * 24, ge=60, description="Longest life of one connection; it ends between two mails (421 4.4.2)."
    )
    auth_failures: Count = Field(
        10,
        ge=1,
        description="Failed logins of one address within `auth_window` before it is refused (421 4.7.0). Its /24 or /64"
        " may have eight times as many.",
    )
    auth_window: Duration = Field(600.0, ge=1, description="The period in which `auth_failures` are counted.")
    memory: Size = Field(
        512 * 1024**2,
        ge=16 * 1024**2,
        description="Octets of messages that one worker holds in memory, in reception or on the way out (452 4.3.1)."
        " An eighth more is for mails of up to 64 KiB, so that big ones keep nobody out.",
    )


INBOUND_LIMITS: dict[str, float] = {
    "message_size": 16 * 1024**2,
    "recipients": 100,
    "commands": 200,
    "errors": 10,
    "idle": 120.0,
    "data_idle": 120.0,
    "session": 1800.0,
}
"""What a listener with `role: inbound` grants at most (RFC 5321 4.5.3.1.8: 100 recipients must do)."""


def _network_kind(value: Any) -> str:
    return "<fetched>" if isinstance(value, dict | FetchedNetwork) else "<list>"


_TaggedNetwork = Annotated[
    Annotated[list[Network], Tag("<list>")] | Annotated[FetchedNetwork, Tag("<fetched>")],
    Discriminator(_network_kind),
]


class Match(Model):
    """Conditions of a route; all that are given must hold. Patterns take `*` and `?`; case makes no difference."""

    sender: SenderPattern | None = Field(None, description="Pattern of the envelope sender.")
    sender_domain: DomainPattern | None = Field(
        None, description="Pattern of the envelope sender's domain; of the From header's for the null sender."
    )
    credential: Text | None = Field(None, description="User name the app logged in with.")
    network: Text | None = Field(None, description="Name of the network the app connected from.")
    campaign: Text | None = Field(None, description="Pattern of the campaign header's value.")
    recipient_domain: DomainPattern | None = Field(None, description="Pattern of the recipient's domain.")
    header: dict[HeaderName, str] | None = Field(None, description="Names of headers with patterns of their values.")

    @property
    def everything(self) -> bool:
        """No condition at all is given."""
        return all(getattr(self, name) in (None, {}) for name in type(self).model_fields)


class Route(Model):
    """One rule. The first whose `match` holds carries the message; looked at again on every attempt."""

    match: Match | None = Field(None, description="Conditions. Absent: every message.")
    upstream: UpstreamChoice = Field(
        description="Name of the upstream that carries the message. `[a, b]`: the first that can be used at the moment."
        " `{a: 80, b: 20}`: by weight, each message by its id; the others stand in for one that cannot be used.",
    )
    priority: Priority | None = Field(
        None,
        description="How urgent its mail is, where neither `priority_header` nor the credential says so. `high` goes"
        " first, `bulk` last; of ten mails one is from behind, so that nothing starves. Absent: `normal`. A message to"
        " several recipients has the most urgent of theirs; it is decided when the message is accepted.",
    )

    @property
    def upstreams(self) -> tuple[str, ...]:
        """All that it names, in the order of the file."""
        return (self.upstream,) if isinstance(self.upstream, str) else tuple(self.upstream)

    @property
    def weights(self) -> dict[str, int] | None:
        """The weight of each, where they have weights."""
        return self.upstream if isinstance(self.upstream, dict) else None


class _ThrottleRule(Model):
    """What is done about a reply by which a provider says "too much" or "not now". The first that fits counts."""

    upstream: Text | None = Field(None, description="Name of the upstream. Absent: all.")
    match: ThrottleMatch = Field(
        description="Code, enhanced code and words as they stand in a reply: `452 too many`, `550 5.7.x"
        " suspended`, `4xx throttl-`. `x`: any digit or number; `a|b`: either word; `word-`: any that begins so; `*`:"
        " up to six words. Case and punctuation make no difference; every part may be missing."
    )
    action: Literal["pause", "slow", "defer", "next-upstream"] = Field(
        description="`pause`: nothing goes out by this upstream, or this account, for so long. `slow`: half as many"
        " connections, and no more for so long. `defer`: this mail is not tried again before. `next-upstream`: it goes"
        " by the next upstream that its route names. None of them bounces."
    )

    @property
    def seconds(self) -> float:
        """How long."""
        return float(getattr(self, "for"))


if TYPE_CHECKING:
    ThrottleRule = _ThrottleRule
else:
    # the key is a word of Python's
    ThrottleRule = create_model(
        "ThrottleRule",
        __base__=_ThrottleRule,
        __doc__=_ThrottleRule.__doc__,
        **{"for": (Duration, Field(300.0, gt=0, le=7 * 86400.0, description="How long."))},
    )


class DKIMKey(Model):
    """A signing key for the mail of one From domain. Several keys of one domain all sign."""

    domain: Domain = Field(description="Domain of the From header; subdomains use it unless they have their own.")
    selector: Selector = Field(description="Where the public key stands in DNS: SELECTOR._domainkey.DOMAIN.")
    key: FilePath = Field(description="PEM file, RSA (2048 bits as a rule) or Ed25519, readable by relayd only.")


class Retry(Model):
    """When relayd tries again, and when it gives up."""

    schedule: RetrySchedule = Field(
        default_factory=lambda: parse_schedule("1m, 5m*2, 15m, 1h*3, 4h*"),
        description="Waits between attempts. `5m*2` is twice five minutes; `4h*` at the end repeats until the lifetime"
        " ends.",
    )
    lifetime: Duration = Field(5 * 86400.0, gt=0, description="A recipient not reached after this long expires.")
    held_lifetime: Duration = Field(
        default_factory=lambda data: max(30 * 86400.0, data.get("lifetime", 0.0)),
        gt=0,
        description="The same for a recipient that is held, counted from acceptance, too; by default 30 days, or"
        " `lifetime` if that is longer. Mail that is released after `lifetime` has one more attempt.",
    )
    delay_notice: Duration = Field(
        4 * 3600.0, description="The sender is told about a delay after this long. 0s: never."
    )


class Spool(Model):
    """How mail is kept on disk."""

    segment: Duration = Field(86400.0, ge=60, description="Period of one spool file.")
    segment_size: Size = Field(
        4 * 1024**3, ge=1024**2, description="Size from which a new file is begun before the period ends."
    )
    keep: Duration = Field(40 * 86400.0, description="How long finished mail stays, as history and as a full copy.")
    keep_body: Duration = Field(
        default_factory=lambda data: min(40 * 86400.0, data.get("keep", 40 * 86400.0)),
        description="How long message bodies stay once all recipients are final; at most, and by default, as long as"
        " `keep`. 0s: they go on delivery.",
    )
    min_free: Share = Field(0.05, lt=1, description="Share of disk and inodes that stays free (452 4.3.1 below).")
    window: Count = Field(
        2000, ge=1, description="Messages of one upstream that a worker holds in memory; the rest waits on disk."
    )


class Web(Model):
    """Where HTTP is served: health and metrics for you, tracking hosts for the world."""

    bind: list[BindAddress] = Field(
        default_factory=list,
        description="IP addresses and ports of health and metrics, and of all that is public. Not for the internet.",
    )
    public: list[BindAddress] = Field(
        default_factory=list,
        description="IP addresses and ports, like `0.0.0.0:80`, of what the world may see: tracking hosts, and the"
        " answers to a CA that looks whether they are ours.",
    )
    public_tls: list[BindAddress] = Field(
        default_factory=list,
        description="The same over TLS, like `0.0.0.0:443`. A tracking host shows the certificate that `tracking.acme`"
        " got for it, any other name that of the section `tls`.",
    )


class Log(Model):
    """What is logged, and how."""

    format: Literal["auto", "json", "console"] = Field(
        "auto", description="`console` is for people, `json` for machines, `auto` looks whether a terminal is there."
    )
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity that is logged.")
    mail: FilePath | None = Field(
        None, description="File of the mail log, one JSON line per event. Absent: standard output."
    )


def draft_of(path: Path) -> Path:
    """Where a file is written before it is put in its place whole."""
    return path.with_name(f"{path.name}.new")


def _workers(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value, whole = int(value[:9]), True
    if value != "auto" and not (whole and 1 <= value <= 512):
        raise wrong(f"{value!r} is not a number of processes", "Write auto, or a number from 1 to 512")
    return value


class Config(Model):
    """The whole file."""

    hostname: Domain = Field(description="Our name in greetings, Received and Message-ID headers.")
    data_dir: FilePath = Field(
        Path("/var/lib/relayd"),
        description="Directory of spool, state and generated keys.",
    )
    workers: Annotated[
        Literal["auto"] | int,
        BeforeValidator(_workers),
        WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 512}]}),
    ] = Field("auto", description="Processes. `auto`: one per core. 1: a single process.")
    secret: Secret | None = Field(
        None,
        description="Key for tokens and stored secrets. Where it, or the file it names, is absent, one is made in"
        " `data_dir`/secret on first start.",
    )
    tls: TLSFiles = Field(default_factory=TLSFiles, description="The certificate that listeners show.")
    networks: dict[NetworkName, _TaggedNetwork] = Field(
        default_factory=dict,
        description="Named source allowlists: a list of addresses and CIDRs, or a URL that they are fetched from.",
    )
    listeners: list[Listener] = Field(min_length=1, description="Where apps connect.")
    credentials: list[Credential] = Field(default_factory=list, description="What apps log in with.")
    limits: Limits = Field(default_factory=Limits, description="What clients can ask of relayd.")
    upstreams: dict[Name, TaggedUpstream] = Field(
        min_length=1, description="Providers that carry the mail, by the names that routes use."
    )
    routes: list[Route] = Field(min_length=1, description="Which upstream carries a message: the first match wins.")
    rules: list[ThrottleRule] = Field(
        default_factory=list,
        description="What is done about certain replies of upstreams, ahead of the rules that presets bring"
        " (`relayd upstream presets`).",
    )
    campaign_header: HeaderName = Field(
        "X-Relay-Campaign", description="Header that names the campaign of a message; removed before sending."
    )
    priority_header: HeaderName = Field(
        "X-Priority-Lane",
        description="Header by which an app says how urgent a message is: `high`, `normal` or `bulk`; removed before"
        " sending. Whoever may send may use it, within the `priority` of its credential. Other values say nothing.",
    )
    dkim: list[DKIMKey] = Field(default_factory=list, description="Keys that sign outgoing mail.")
    require_verified_domain: bool | None = Field(
        None,
        description="Refuse mail whose From header is on no verified sender domain (550 5.7.1). Absent: true as soon as"
        " a sender domain is added, false until then.",
    )
    domains: Domains = Field(default_factory=Domains, description="How sender domains are set up and checked.")
    tracking: Tracking = Field(default_factory=Tracking, description="Where links and opens are counted.")
    retry: Retry = Field(default_factory=Retry, description="When relayd tries again, and when it gives up.")
    bounces: Bounces = Field(default_factory=Bounces, description="Who is told about mail that did not arrive.")
    blocks: Blocks = Field(default_factory=Blocks, description="Which addresses are not mailed any more.")
    spool: Spool = Field(default_factory=Spool, description="How mail is kept on disk.")
    web: Web = Field(default_factory=Web, description="Where HTTP is served.")
    log: Log = Field(default_factory=Log, description="What is logged, and how.")
    shutdown: Duration = Field(
        30.0, ge=1, description="How long stopping may take before what is in flight is cut off."
    )

    @property
    def worker_count(self) -> int:
        """Processes to run."""
        return len(os.sched_getaffinity(0)) if self.workers == "auto" else self.workers

    def limits_of(self, listener: Listener) -> Limits:
        """What clients of this listener can ask: other servers that bring bounces need less than apps."""
        own: dict[str, Any] = {}
        if listener.role is Role.INBOUND:
            own = {name: min(getattr(self.limits, name), most) for name, most in INBOUND_LIMITS.items()}
        if listener.message_size is not None:
            own["message_size"] = listener.message_size
        return self.limits.model_copy(update=own) if own else self.limits

    @property
    def certificate_path(self) -> Path:
        """Where the listeners' certificate is or will be made."""
        return self.data_dir / self.tls.certificate

    @property
    def key_path(self) -> Path:
        """Where the certificate's private key is or will be made."""
        return self.data_dir / self.tls.key
