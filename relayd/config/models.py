"""The shape of relayd.yaml: all of its sections, the small ones here. docs/configuration.md is generated from it.

Every key has its type, default and meaning. Finding faults that need more than one key is check.py's work, reading
the file is load.py's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    WithJsonSchema,
)

from relayd.config.base import Model, Secret, wrong
from relayd.config.domains import Acme, Domains, Tracking
from relayd.config.listeners import (
    INBOUND_LIMITS,
    Access,
    BareNewlines,
    Credential,
    FetchedNetwork,
    Limits,
    Listener,
    ListenerTLS,
    Role,
    TaggedNetwork,
    TLSFiles,
    draft_of,
)
from relayd.config.names import Domain, HeaderName, Name, NetworkName, Selector
from relayd.config.places import BindAddress, FilePath
from relayd.config.quantities import Count, Duration, RetrySchedule, Share, Size
from relayd.config.returns import BlockRule, Blocks, Bounces, Mailbox, MailboxTLS
from relayd.config.routes import Match, Route, ThrottleRule
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
    "draft_of",
]


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
    networks: dict[NetworkName, TaggedNetwork] = Field(
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
