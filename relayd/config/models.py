"""The shape of relayd.yaml: every key with type, default, meaning. docs/configuration.md is generated from it.

Finding faults that need more than one key is check.py's work, reading the file is load.py's.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    create_model,
    model_validator,
)

from relayd.config import presets
from relayd.config.choice import ThrottleMatch, UpstreamChoice
from relayd.config.types import (
    URL,
    Address,
    Bind,
    BindAddress,
    BlockClass,
    Count,
    Day,
    Domain,
    DomainPattern,
    Duration,
    Expiry,
    FilePath,
    HeaderName,
    Host,
    Name,
    Network,
    NetworkName,
    PlainPath,
    PresetName,
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
from relayd.config.windows import Windows
from relayd.core.blocking import ScopeKind
from relayd.core.lifecycle import OnUncertain
from relayd.core.priority import Priority
from relayd.core.retry import parse_schedule

__all__ = [
    "Access",
    "Account",
    "Acme",
    "BareNewlines",
    "Bind",
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


class Model(BaseModel):
    """Base of all sections: unknown keys are faults, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True)


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
        " name the real client. Nobody else may.",
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
        1000, ge=1, description="Open client connections of all listeners, shared out over the workers (421 4.3.2)."
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
        description="Octets of messages that one worker holds in memory, in reception or on the way out (452 4.3.1).",
    )


class ReturnPath(StrEnum):
    KEEP = "keep"
    ACCOUNT = "account"
    VERP = "verp"


class Per(StrEnum):
    ADDRESS = "address"
    DOMAIN = "domain"


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


class UpstreamTLS(StrEnum):
    REQUIRED = "required"
    OPPORTUNISTIC = "opportunistic"
    NONE = "none"


class UpstreamLimits(Model):
    """What relayd asks of one upstream, or of one account, at most. With `accounts`, `messages` and `recipients` of the
    upstream hold for all accounts together, beside those of each; the others are what each account has where it says
    nothing else.
    """

    messages: Windows = Field(
        (),
        description="Messages in any such period, all workers together: `30/min`, or several: `[30/min, 500/day]`. Mail"
        " over it waits, without an attempt being counted. Absent, or `[]`: no limit.",
    )
    recipients: Windows = Field((), description="Recipients in any such period, in the same way.")
    connections: Count = Field(10, ge=1, description="Connections at once, all workers together.")
    concurrency: Count | None = Field(
        None,
        ge=1,
        description="Messages being sent at once, all workers together. relayd opens no more connections than it has"
        " messages to send, so this matters where it is less than `connections`. Absent: as many as `connections`.",
    )
    messages_per_connection: Count = Field(
        0, ge=0, description="Messages after which a connection is renewed. 0: no limit."
    )
    recipients_per_message: Count = Field(
        100, ge=1, description="Recipients in one transaction; a message with more is sent in several."
    )


class UpstreamTimeouts(Model):
    """How long relayd waits for an upstream (RFC 5321 4.5.3.2)."""

    connect: Duration = Field(30.0, gt=0, description="For the TCP connection.")
    tls: Duration = Field(30.0, gt=0, description="For the TLS handshake.")
    greeting: Duration = Field(300.0, gt=0, description="For the first reply.")
    command: Duration = Field(300.0, gt=0, description="For the reply to a command.")
    data: Duration = Field(180.0, gt=0, description="For progress while the message is written.")
    dot: Duration = Field(600.0, gt=0, description="For the reply after the final dot.")


class Storm(Model):
    """When refusals are taken for the upstream's fault: nothing bounces then, and the upstream is suspended."""

    replies: Count = Field(
        20,
        ge=0,
        description="So many different recipients refused for good (5yz) in the same words. Refusals that speak of the"
        " recipient count only as long as nothing gets through between them. 0: never.",
    )
    within: Duration = Field(60.0, ge=1, le=86400, description="In so short a time.")


class OAuth(Model):
    """Login with OAuth2 tokens (XOAUTH2, or OAUTHBEARER of RFC 7628) instead of a password."""

    flow: Literal["refresh-token", "client-credentials", "service-account"] = Field(
        "refresh-token",
        description="`refresh-token`: on behalf of a person who consented (`relayd upstream login`)."
        " `client-credentials`: an application's own right, like Microsoft's SMTP.SendAsApp. `service-account`: a"
        " Google service account with domain-wide delegation.",
    )
    provider: Literal["microsoft", "google"] | None = Field(
        None, description="Whose tokens: fills `token_url` and `scope`. Absent: that of the preset, or none."
    )
    tenant: Text | None = Field(
        None,
        description="Microsoft: the directory, as an ID or a domain. Absent: `organizations`, for a person's login.",
    )
    client_id: Text | None = Field(None, description="The application, as the provider names it.")
    client_secret: Secret | None = Field(
        None, description="Its secret, brought by `!env`, `!file` or `!credential`; public clients have none."
    )
    client_secret_expires: Day | None = Field(
        None, description="The day on which the secret runs out, as the provider says: relayd warns ahead of it."
    )
    refresh_token: Secret | None = Field(
        None, description="A refresh token from elsewhere. Absent: the one that `relayd upstream login` stored."
    )
    key_file: FilePath | None = Field(None, description="The JSON key of a Google service account.")
    token_url: Text | None = Field(None, description="Where tokens are issued, for any other provider; https.")
    scope: Text | None = Field(None, description="What the token is to be good for. Absent: that of the provider.")
    mechanism: Literal["XOAUTH2", "OAUTHBEARER"] | None = Field(
        None, description="How the token is shown. Absent: XOAUTH2 where offered, else OAUTHBEARER."
    )


class Account(Model):
    """A mailbox or sending domain at an upstream, with its own login."""

    address: Address | None = Field(None, description="The mailbox. It may send as this address.")
    domain: Domain | None = Field(None, description="The domain whose senders all use this login, where it is shared.")
    username: Text | None = Field(None, description="User name for AUTH. Absent: the address.")
    password: Secret | None = Field(
        None, description="Password for AUTH, brought by `!env`, `!file` or `!credential`; never written in the file."
    )
    oauth: OAuth | None = Field(None, description="Login with tokens instead of a password.")
    limits: UpstreamLimits | None = Field(
        None,
        description="What this account is asked at most. `messages` and `recipients`: absent, those of the preset; the"
        " others: absent, those of the upstream.",
    )

    @property
    def name(self) -> str:
        """What it is known by: the address, or the domain."""
        return self.address or self.domain or ""


class SMTPUpstream(Model):
    """A provider's SMTP service, with credential and limits."""

    type: Literal["smtp"] = Field("smtp", description="`smtp`, which need not be written.")
    preset: PresetName | None = Field(
        None,
        description="A provider that relayd knows (`relayd upstream presets`, docs/upstreams.md): fills host, ports,"
        " form of login and limits; each can be given all the same.",
    )
    subdomain: Domain | None = Field(None, description="What stands in the host of the preset customers-mail-cloud.")
    host: Host = Field(description="Host name or IP address.")
    port: Count = Field(
        587, ge=1, le=65535, description="465, 587 or 2525 as a rule. 25 is refused unless `allow_port_25` is set."
    )
    ports: list[Count] | None = Field(
        None,
        min_length=1,
        max_length=8,
        description="Ports instead of one `port`, in order of preference: where one cannot be reached, the next is"
        " tried, and each worker begins with that for ten minutes.",
    )
    username: Text | None = Field(None, description="User name for AUTH. Absent: relayd does not log in.")
    password: Secret | None = Field(
        None, description="Password for AUTH, brought by `!env`, `!file` or `!credential`; never written in the file."
    )
    oauth: OAuth | None = Field(None, description="Login with tokens instead of a password.")
    per: Per | None = Field(
        None,
        description="What a login may send as. `address`: only the mailbox that logs in; other senders are refused"
        " (553 5.7.1). `domain`: all senders of the account's domain. Absent: each account as it is named, and without"
        " accounts anything.",
    )
    accounts: list[Account] = Field(
        default_factory=list,
        description="Mailboxes or domains, each with its own login, chosen by the envelope sender; by the From domain"
        " where that is null. Each has its own queue. A sender without one is refused (553 5.7.1).",
    )
    rewrite_sender: bool = Field(
        False,
        description="A sender without an account is not refused but sent as the first account's mailbox: envelope"
        " sender and From become that, the old From becomes Reply-To where there is none.",
    )
    tls: UpstreamTLS = Field(
        UpstreamTLS.REQUIRED,
        description="`required`: STARTTLS, or TLS from the first octet on port 465, certificate verified, or no mail is"
        " sent. `opportunistic`: STARTTLS where offered, certificate not verified. `none`: in the clear.",
    )
    implicit_tls: bool | None = Field(None, description="TLS from the first octet. Absent: on ports 465 and 2465 only.")
    ca_file: FilePath | None = Field(
        None, description="PEM file of the only CAs to trust for this upstream. Absent: those of the system."
    )
    tls_name: Domain | None = Field(None, description="Name that the certificate must carry, where it is not `host`.")
    allow_port_25: bool = Field(False, description="Take port 25 all the same.")
    hostname: Domain | None = Field(None, description="Name said in EHLO. Absent: the `hostname` of the whole file.")
    on_uncertain: OnUncertain = Field(
        OnUncertain.RETRY,
        description="After silence behind the final dot the mail may have arrived or not. `retry` sends it again, which"
        " can make a duplicate; `hold` waits for an operator.",
    )
    return_path: ReturnPath = Field(
        ReturnPath.KEEP,
        description="`keep`: the envelope sender goes out as the app gave it. `account`: it becomes the mailbox that"
        " logs in. `verp`: each recipient gets an envelope sender of its own at `bounces.domain`, or at the"
        " custom return path of the sender domain (`relayd domain add --return-path`), so that bounces come back to"
        " relayd and say whom they are about; one transaction for each recipient. A null sender stays null.",
    )
    overflow: Text | None = Field(
        None,
        description="Upstream that carries the mail once a budget of a day or longer is used up here, as far as the"
        " sender may use it. Absent: it waits.",
    )
    storm: Storm = Field(
        default_factory=Storm,
        description="The guard against bounce storms, when a provider refuses everything, such as for a suspended"
        " account. `relayd upstream resume` goes on.",
    )
    limits: UpstreamLimits = Field(default_factory=UpstreamLimits, description="What this upstream is asked at most.")
    timeouts: UpstreamTimeouts = Field(
        default_factory=UpstreamTimeouts, description="How long this upstream is waited for."
    )

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, value: Any) -> Any:
        """What the preset knows, where it is not given."""
        if not isinstance(value, dict):
            return value
        out = presets.fill(value, frozenset(UpstreamLimits.model_fields))
        ports = out.get("ports")
        if "port" not in out and isinstance(ports, list) and ports:
            out = {**out, "port": ports[0]}
        # a preset that does not say the host has a fault of its own; one is enough
        return {"host": "unknown.invalid", **out} if "preset" in out else out

    @property
    def every_port(self) -> tuple[int, ...]:
        """Ports in order of preference."""
        return tuple(self.ports) if self.ports else (self.port,)

    @property
    def logins(self) -> list[Account]:
        """Accounts that senders are bound to: those given, or the one mailbox that logs in with `per: address`."""
        if not self.accounts and self.per is Per.ADDRESS and self.username and "@" in self.username:
            return [Account(address=self.username, username=self.username, password=self.password, oauth=self.oauth)]
        return self.accounts


class SandboxUpstream(Model):
    """Keeps what it is given instead of sending it. Recipients like 450@ or 550@ rehearse failures."""

    type: Literal["sandbox"] = Field(description="`sandbox`.")
    return_path: ReturnPath = Field(ReturnPath.KEEP, description="As for a real upstream.")
    limits: UpstreamLimits = Field(default_factory=UpstreamLimits, description="As for a real upstream.")
    on_uncertain: OnUncertain = Field(OnUncertain.RETRY, description="As for a real upstream.")


def _upstream_kind(value: Any) -> str:
    kind = value.get("type", "smtp") if isinstance(value, dict) else getattr(value, "type", "smtp")
    return f"<{kind}>"


def _network_kind(value: Any) -> str:
    return "<fetched>" if isinstance(value, dict | FetchedNetwork) else "<list>"


# The angle brackets keep these tags apart from keys where pydantic names the place of a fault.
Upstream = SMTPUpstream | SandboxUpstream
_TaggedUpstream = Annotated[
    Annotated[SMTPUpstream, Tag("<smtp>")] | Annotated[SandboxUpstream, Tag("<sandbox>")],
    Discriminator(_upstream_kind),
]
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


class Domains(Model):
    """Sender domains (`relayd domain add`): what their records hold of ours, and how they are checked."""

    recheck: Duration = Field(
        3600.0, gt=0, description="How often the records of verified domains are looked at again, give or take a tenth."
    )
    grace: Duration = Field(
        72 * 3600.0, description="How long mail still goes out after a record of a verified domain has disappeared."
    )
    retire_after: Duration = Field(
        7 * 86400.0, description="How long the record of an old key must stay after a rotation."
    )
    resolvers: list[BindAddress] = Field(
        default_factory=list,
        description="Resolvers to ask as receivers would, in this order. Empty: those of /etc/resolv.conf.",
    )
    authoritative_port: Count = Field(
        53, ge=1, le=65535, description="Port of authoritative servers; another one is for test set-ups."
    )
    timeout: Duration = Field(3.0, gt=0, description="For one answer; each question is asked twice.")
    spf: list[Text] = Field(
        default_factory=list,
        description="Terms for the SPF records of sender domains that let our mail pass, like"
        " `include:_spf.example.com` or `ip4:192.0.2.1`. Empty: only what the provider demands.",
    )
    mail_host: Domain | None = Field(
        None, description="Host that takes the mail of return paths: the target of MX records. Absent: `hostname`."
    )
    zone: Domain | None = Field(
        None, description="Zone of our own that `relayd domain add --delegate` lets CNAMEs lead to. Absent: none."
    )


class Acme(Model):
    """Certificates for tracking hosts from a CA that speaks ACME (RFC 8555), proven over HTTP on port 80."""

    directory: URL = Field(
        "https://acme-v02.api.letsencrypt.org/directory", description="Where the CA's directory is; https."
    )
    agree_terms: bool = Field(
        False, description="You have read the CA's terms of service and agree to them. It issues nothing without."
    )
    email: Address | None = Field(None, description="Where the CA reaches you. Absent: it gets no address.")
    ca_file: FilePath | None = Field(
        None, description="PEM file of the only CAs to trust for the directory itself. Absent: those of the system."
    )
    self_check: bool = Field(
        True,
        description="Before each order, look whether port 80 of the host leads here. `false`: where this machine cannot"
        " reach its own public address.",
    )
    http_port: Count = Field(
        80, ge=1, le=65535, description="Port that the CA looks at; another one is for test set-ups."
    )


class Tracking(Model):
    """Where links and opens are counted."""

    host: Domain | None = Field(
        None, description="Host that is used where no tracking domain fits, and that tracking domains lead to."
    )
    tls_host: Domain | None = Field(
        None, description="TLS front that tracking domains of three steps lead to in the end. Absent: `host`."
    )
    proof_zone: Domain | None = Field(
        None, description="Zone below which the TLS front expects proofs of ownership. Absent: `host`."
    )
    acme: Acme | None = Field(
        None,
        description="How `host` and the tracking domains of one step get their certificates. Absent: they get none.",
    )


class Retry(Model):
    """When relayd tries again, and when it gives up."""

    schedule: RetrySchedule = Field(
        default_factory=lambda: parse_schedule("1m, 5m*2, 15m, 1h*3, 4h*"),
        description="Waits between attempts. `5m*2` is twice five minutes; `4h*` at the end repeats until the lifetime"
        " ends.",
    )
    lifetime: Duration = Field(5 * 86400.0, gt=0, description="A recipient not reached after this long expires.")
    delay_notice: Duration = Field(
        4 * 3600.0, description="The sender is told about a delay after this long. 0s: never."
    )


class MailboxTLS(StrEnum):
    IMPLICIT = "implicit"
    STARTTLS = "starttls"
    NONE = "none"


class Mailbox(Model):
    """An IMAP mailbox that bounces are sent to, where the return path is not ours to choose."""

    name: Name = Field(description="Shown in logs and metrics, and remembered with what was read: keep it.")
    host: Host = Field(description="Host name or IP address of the IMAP server.")
    port: Count | None = Field(None, ge=1, le=65535, description="Absent: 993, or 143 without implicit TLS.")
    tls: MailboxTLS = Field(
        MailboxTLS.IMPLICIT,
        description="`implicit`: TLS from the first octet. `starttls`: STARTTLS before login. The certificate is"
        " verified with both. `none`: in the clear.",
    )
    ca_file: FilePath | None = Field(
        None, description="PEM file of the only CAs to trust for this mailbox. Absent: those of the system."
    )
    username: Text = Field(min_length=1, description="User name for login.")
    password: Secret = Field(
        description="Password for login, brought by `!env`, `!file` or `!credential`; never written in the file."
    )
    folder: Text = Field("INBOX", min_length=1, description="Folder that is read.")
    done_folder: Text | None = Field(
        None,
        min_length=1,
        description="Folder that mails are moved to once they are kept here; made where absent. Absent: they stay,"
        " marked as seen.",
    )
    poll: Duration = Field(
        300.0, ge=1, description="How often to look. A server that offers IDLE tells of new mail at once."
    )


class Bounces(Model):
    """Who is told about mail that did not arrive, and how bounces come back."""

    notify: Literal["sender", "none"] = Field(
        "sender",
        description="`sender`: failure and delay reports go to the envelope sender. `none`: nobody gets any."
        " A null sender never gets one.",
    )
    domain: Domain | None = Field(
        None,
        description="Domain of return paths that relayd issues; its MX is a listener with `role: inbound`.",
    )
    verify_for: Duration = Field(
        40 * 86400.0,
        ge=86400,
        le=10 * 365 * 86400.0,
        description="How long an issued return path is good, and how old a message may be that a bounce names.",
    )
    mailboxes: list[Mailbox] = Field(default_factory=list, description="IMAP mailboxes in which bounces arrive.")


class BlockRule(Model):
    """When failures of one class block an address. What is left out stays as it is by default: classes whose addresses
    never work again block at the first failure and for good, others at the fifth within 14 days, for 30 days.
    """

    after: Count | None = Field(None, ge=0, le=1000, description="Failures that it takes. 0: the class never blocks.")
    within: Duration | None = Field(None, ge=1, description="The period in which they must lie.")
    expires: Expiry | None = Field(None, description="How long the block holds.")
    scope: ScopeKind | None = Field(
        None,
        description="For which mail it holds: `everything`, mail of one `sender-domain`, or of one `stream` (campaign)."
        " Absent: everything; for `filtered` the sender's domain.",
    )


class Blocks(Model):
    """Addresses that are not mailed any more, because they cannot receive or do not want to. Troubles of an upstream
    and refusals of the sender or the content never block.
    """

    enabled: bool = Field(
        True,
        description="Block by rule, and stop mail to blocked addresses. `false`: neither; what is blocked is kept.",
    )
    rules: dict[BlockClass, BlockRule] = Field(
        default_factory=dict,
        description="Rules by class of failure, like `user-unknown`, `mailbox-full` or `complaint`, where they differ"
        " from the defaults (docs/blocks.md).",
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
    upstreams: dict[Name, _TaggedUpstream] = Field(
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
