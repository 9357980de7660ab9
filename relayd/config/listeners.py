"""The shape of `tls`, `networks`, `listeners`, `credentials` and `limits`: who may come in, and what they can ask.

Finding faults that need more than one key is check_listeners.py's work.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from relayd.config.base import Model, Secret
from relayd.config.names import Name, SenderPattern, Text
from relayd.config.places import URL, BindAddress, Network, PlainPath
from relayd.config.quantities import Count, Duration, Rate, Size
from relayd.core.priority import Priority


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


def draft_of(path: Path) -> Path:
    """Where a file is written before it is put in its place whole."""
    return path.with_name(f"{path.name}.new")


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


def _network_kind(value: Any) -> str:
    return "<fetched>" if isinstance(value, dict | FetchedNetwork) else "<list>"


TaggedNetwork = Annotated[
    Annotated[list[Network], Tag("<list>")] | Annotated[FetchedNetwork, Tag("<fetched>")],
    Discriminator(_network_kind),
]


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
