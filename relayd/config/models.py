"""The shape of relayd.yaml: every key with type, default, meaning. docs/configuration.md is generated from it.

Finding faults that need more than one key is check.py's work, reading the file is load.py's.
"""

from __future__ import annotations

import ipaddress
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    WithJsonSchema,
)

from relayd.core.lifecycle import OnUncertain
from relayd.core.retry import Schedule, parse_schedule
from relayd.core.units import (
    Rate as RateValue,
)
from relayd.core.units import (
    format_duration,
    format_size,
    parse_duration,
    parse_rate,
    parse_share,
    parse_size,
)


class Model(BaseModel):
    """Base of all sections: unknown keys are faults, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


def _text_or(kind: type, parse: Any) -> BeforeValidator:
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


Duration = Annotated[
    float,
    _text_or(float, parse_duration),
    Field(ge=0),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["30s", "5m", "1h30m", "5d"]}),
]
"""Seconds."""
Size = Annotated[
    int,
    _text_or(int, parse_size),
    Field(ge=0),
    PlainSerializer(format_size, return_type=str),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["998", "50MiB"]}),
]
"""Octets."""
Rate = Annotated[
    RateValue,
    _text_or(RateValue, parse_rate),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["600/min"]}),
]
Share = Annotated[
    float,
    _text_or(float, parse_share),
    PlainSerializer(lambda share: f"{share * 100:g}%", return_type=str),
    WithJsonSchema({"type": "string", "examples": ["5%"]}),
]
"""0 to 1."""
RetrySchedule = Annotated[
    Schedule,
    _text_or(Schedule, parse_schedule),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["1m, 5m*2, 15m, 1h*3, 4h*"]}),
]


class Bind(str):
    """An address and port to listen on, like 0.0.0.0:587 or [::]:587."""

    __slots__ = ()

    @property
    def host(self) -> str:
        return self.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.rpartition(":")[2])


def _bind(text: str) -> Bind:
    bind = Bind(text)
    try:
        ipaddress.ip_address(bind.host)
        if not 0 <= bind.port <= 65535:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{text!r} is not an address to listen on: write IP:PORT, like 127.0.0.1:2525 or [::]:587"
        ) from None
    return bind


BindAddress = Annotated[
    str,
    AfterValidator(_bind),
    WithJsonSchema({"type": "string", "examples": ["127.0.0.1:2525", "[::]:587"]}),
]


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not a network: write an address or CIDR, like 192.0.2.0/24") from None


Network = Annotated[
    ipaddress.IPv4Network | ipaddress.IPv6Network,
    BeforeValidator(lambda value: _network(value) if isinstance(value, str) else value),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["192.0.2.0/24", "2001:db8::/32"]}),
]


class TLSFiles(Model):
    """The certificate our listeners show. Read again on reload; a self-signed one is made where the files are absent."""

    certificate: Path = Field(Path("tls/fullchain.pem"), description="PEM chain; relative to data_dir.")
    key: Path = Field(Path("tls/privkey.pem"), description="PEM private key; relative to data_dir.")


class FetchedNetwork(Model):
    """A source allowlist kept current from a URL that answers JSON."""

    url: str = Field(description="https URL that answers JSON.")
    path: str = Field("", description="Dotted path to the list of addresses inside the answer, like ip_addresses.")
    refresh: Duration = Field(3600.0, ge=1, description="How often to fetch.")
    keep_removed: Duration = Field(
        7 * 86400.0, description="An address that vanished from the list stays allowed this long."
    )
    fallback: list[Network] = Field(default_factory=list, description="Allowed until the first fetch has succeeded.")


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


class Listener(Model):
    """A place where apps connect."""

    name: str = Field(description="Shown in logs, metrics and Received.", pattern=r"^[a-z0-9][a-z0-9_-]*$")
    bind: list[BindAddress] = Field(min_length=1, description="Addresses and ports to listen on.")
    tls: ListenerTLS = Field(
        ListenerTLS.STARTTLS,
        description="none, starttls (offered) or implicit (from the first octet).",
    )
    require_tls: bool = Field(False, description="With starttls: refuse MAIL before STARTTLS (530 5.7.0).")
    access: Access = Field(Access.AUTH, description="Who may send: network, auth, network-or-auth, network-and-auth.")
    networks: list[str] = Field(default_factory=list, description="Names from `networks`, or CIDRs written here.")
    proxy_protocol: list[Network] = Field(
        default_factory=list,
        description="Peers that must speak PROXY v1 or v2, or may use XCLIENT, to name the real client.",
    )
    bare_newlines: BareNewlines = Field(
        BareNewlines.REFUSE,
        description="Bare CR or LF in a message: refuse (550 5.6.11) or normalise to CRLF before signing.",
    )


class Credential(Model):
    """What an app logs in with."""

    username: str = Field(min_length=1, description="SASL user name.")
    password: SecretStr = Field(
        description="argon2id hash (`relayd config hash-password`), or !env / !file holding one."
    )
    senders: list[str] = Field(
        default_factory=lambda: ["*"],
        min_length=1,
        description='Envelope senders it may use: "*@example.com", "info@example.com", "*".',
    )
    rate: Rate | None = Field(
        None,
        description="Messages it may send in any such window, like 600/min (450 4.7.1 beyond).",
    )


class Limits(Model):
    """What a client can ask of us. Each has a reply and a metric."""

    message_size: Size = Field(50 * 1024**2, ge=1024, description="Largest message (SIZE, 552 5.3.4).")
    recipients: int = Field(1000, ge=1, description="Recipients of one message (452 4.5.3).")
    connections: int = Field(
        1000,
        ge=1,
        description="Open client connections, all listeners, shared out over workers (421 4.3.2).",
    )
    connections_per_ip: int = Field(
        50, ge=1, description="Open connections of one client address, per worker (421 4.7.0)."
    )
    line_length: Size = Field(
        998,
        ge=998,
        description="Length up to which a line counts as standard (RFC 5322 2.1.1); longer ones are counted and relayed as they came.",
    )
    line_length_max: Size = Field(1024**2, ge=998, description="Longest line that is taken (554 5.6.0 beyond).")
    received_headers: int = Field(
        50,
        ge=1,
        description="Received headers from which a message is taken for a loop (550 5.4.6).",
    )
    commands: int = Field(1000, ge=10, description="Commands without a mail accepted in between (421 4.7.0).")
    errors: int = Field(20, ge=1, description="Refused commands in one session (421 4.7.0).")
    idle: Duration = Field(300.0, ge=1, description="Wait for the next command (421 4.4.2).")
    data_idle: Duration = Field(180.0, ge=1, description="Wait for the next octets of a message (421 4.4.2).")
    min_rate: Size = Field(
        100,
        description="Slowest rate of message data, octets a second averaged over a minute; 0 to allow any.",
    )
    session: Duration = Field(
        3600.0 * 24, ge=60, description="Longest life of one connection (421 4.4.2 between mails)."
    )
    auth_failures: int = Field(
        10,
        ge=1,
        description="Failed logins of one address within auth_window, above which it is refused (421 4.7.0); eight times as many for its /24 or /64.",
    )
    auth_window: Duration = Field(600.0, ge=1, description="Window of auth_failures.")
    memory: Size = Field(
        512 * 1024**2,
        ge=16 * 1024**2,
        description="Octets of messages in reception or handed on in memory, per worker (452 4.3.1 beyond).",
    )


class UpstreamTLS(StrEnum):
    REQUIRED = "required"
    OPPORTUNISTIC = "opportunistic"
    NONE = "none"


class UpstreamLimits(Model):
    """What we ask of an upstream at most."""

    connections: int = Field(10, ge=1, description="Connections at once, all workers together.")
    messages_per_connection: int = Field(
        0, ge=0, description="Messages after which a connection is renewed; 0 for no limit."
    )
    recipients_per_message: int = Field(100, ge=1, description="Recipients in one transaction.")


class UpstreamTimeouts(Model):
    """How long to wait for an upstream (RFC 5321 4.5.3.2)."""

    connect: Duration = Field(30.0, gt=0)
    tls: Duration = Field(30.0, gt=0)
    greeting: Duration = Field(300.0, gt=0)
    command: Duration = Field(300.0, gt=0)
    data: Duration = Field(180.0, gt=0, description="For progress while content is written.")
    dot: Duration = Field(600.0, gt=0)


class SMTPUpstream(Model):
    """A provider's SMTP service."""

    type: Literal["smtp"] = "smtp"
    host: str = Field(min_length=1)
    port: int = Field(587, ge=1, le=65535, description="465, 587 or 2525 as a rule; 25 only with allow_port_25.")
    username: str | None = None
    password: SecretStr | None = Field(None, description="Give it by !env or !file.")
    tls: UpstreamTLS = Field(
        UpstreamTLS.REQUIRED,
        description="required: STARTTLS (implicit on 465), certificate verified; opportunistic: STARTTLS when offered, unverified; none.",
    )
    implicit_tls: bool | None = Field(None, description="TLS from the first octet; by default on port 465 only.")
    ca_file: Path | None = Field(None, description="PEM file of the only CAs to trust for this upstream.")
    tls_name: str | None = Field(None, description="Name the certificate must carry, where it differs from host.")
    allow_port_25: bool = Field(False, description="Take port 25 all the same.")
    hostname: str | None = Field(None, description="Name said in EHLO; by default `hostname`.")
    on_uncertain: OnUncertain = Field(
        OnUncertain.RETRY,
        description="After silence behind the final dot: retry (a duplicate is possible) or hold.",
    )
    limits: UpstreamLimits = Field(default_factory=UpstreamLimits)
    timeouts: UpstreamTimeouts = Field(default_factory=UpstreamTimeouts)


class SandboxUpstream(Model):
    """Keeps what it is given instead of sending it; local parts like 450 or 550 rehearse failures."""

    type: Literal["sandbox"]
    limits: UpstreamLimits = Field(default_factory=UpstreamLimits)
    on_uncertain: OnUncertain = OnUncertain.RETRY


Upstream = SMTPUpstream | SandboxUpstream


class Match(Model):
    """Conditions of a route; all given ones must hold. Patterns take * and ?, compared without case."""

    sender: str | None = Field(None, description="Envelope sender, a pattern like *@example.co.jp.")
    sender_domain: str | None = Field(None, description="Domain of the envelope sender (of From for the null sender).")
    credential: str | None = Field(None, description="User name the app logged in with.")
    network: str | None = Field(None, description="Named network the app connected from.")
    campaign: str | None = Field(None, description="Value of the campaign header.")
    recipient_domain: str | None = None
    header: dict[str, str] | None = Field(None, description="Header name → pattern of its value.")


class Route(Model):
    """One rule: the first whose match holds carries the message."""

    match: Match | None = Field(None, description="Absent: every message.")
    upstream: str


class DKIMKey(Model):
    """A signing key. Several of one domain sign all."""

    domain: str
    selector: str
    key: Path = Field(description="PEM file, RSA (1024 bits or more) or Ed25519, readable by relayd only.")


class Retry(Model):
    schedule: RetrySchedule = Field(
        default_factory=lambda: parse_schedule("1m, 5m*2, 15m, 1h*3, 4h*"),
        description="Waits between attempts; N* at the end repeats until the lifetime ends.",
    )
    lifetime: Duration = Field(5 * 86400.0, gt=0, description="After this long without delivery a recipient expires.")
    delay_notice: Duration = Field(
        4 * 3600.0, description="Tell the sender about the delay after this long; 0s for never."
    )


class Bounces(Model):
    notify: Literal["sender", "none"] = Field(
        "sender", description="Who gets failure and delay reports; a null sender never does."
    )


class Spool(Model):
    segment: Duration = Field(86400.0, ge=60, description="Period of one spool file.")
    segment_size: Size = Field(
        4 * 1024**3,
        ge=1024**2,
        description="Size from which a new file is begun before its period ends.",
    )
    keep: Duration = Field(
        40 * 86400.0,
        description="How long finished mail stays in the spool, as history and full copy.",
    )
    keep_body: Duration = Field(
        40 * 86400.0,
        description="How long bodies stay once all recipients are final; 0s drops them on delivery.",
    )
    min_free: Share = Field(0.05, description="Share of disk and inodes to leave free (452 4.3.1 below).")
    window: int = Field(
        2000,
        ge=1,
        description="Messages of one upstream that a worker holds in memory; the rest waits on disk.",
    )


class Web(Model):
    bind: list[BindAddress] = Field(
        default_factory=list, description="Addresses for health and metrics; none: no HTTP."
    )


class Log(Model):
    format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: colour on a terminal, JSON elsewhere."
    )
    level: Literal["debug", "info", "warning", "error"] = "info"
    mail: Path | None = Field(
        None,
        description="File of the mail log (one JSON line per event); by default standard output.",
    )


def _workers(value: Any) -> Any:
    return len(os.sched_getaffinity(0)) if value == "auto" else value


class Config(Model):
    """The whole file."""

    hostname: str = Field(description="Our name in greetings, Received and Message-ID.")
    data_dir: Path = Field(Path("/var/lib/relayd"), description="Where spool, state and generated keys live.")
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=512)] = Field(
        "auto", description="Processes: auto is one per core, 1 a single process."
    )
    secret: SecretStr | None = Field(
        None,
        description="Key for tokens and stored secrets; made in data_dir/secret on first start where absent.",
    )
    tls: TLSFiles = Field(default_factory=TLSFiles)
    networks: dict[str, list[Network] | FetchedNetwork] = Field(default_factory=dict)
    listeners: list[Listener] = Field(min_length=1)
    credentials: list[Credential] = Field(default_factory=list)
    limits: Limits = Field(default_factory=Limits)
    upstreams: dict[str, Upstream] = Field(min_length=1)
    routes: list[Route] = Field(min_length=1)
    campaign_header: str = Field(
        "X-Relay-Campaign", description="Header that names the campaign; removed before sending."
    )
    dkim: list[DKIMKey] = Field(default_factory=list)
    retry: Retry = Field(default_factory=Retry)
    bounces: Bounces = Field(default_factory=Bounces)
    spool: Spool = Field(default_factory=Spool)
    web: Web = Field(default_factory=Web)
    log: Log = Field(default_factory=Log)
    shutdown: Duration = Field(30.0, ge=1, description="How long stopping may take.")

    @property
    def worker_count(self) -> int:
        """Processes to run."""
        return int(_workers(self.workers))
