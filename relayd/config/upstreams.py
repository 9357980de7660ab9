"""The shape of `upstreams`: an SMTP service with its login, limits and accounts, or the sandbox.

Finding faults that need more than one key is check_upstreams.py's work.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from relayd.config import presets
from relayd.config.base import Model, Secret
from relayd.config.names import Address, Domain, Host, PresetName, Text
from relayd.config.places import FilePath
from relayd.config.quantities import Count, Day, Duration
from relayd.config.windows import Windows
from relayd.core.lifecycle import OnUncertain


class ReturnPath(StrEnum):
    KEEP = "keep"
    ACCOUNT = "account"
    VERP = "verp"


class Per(StrEnum):
    ADDRESS = "address"
    DOMAIN = "domain"


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


# The angle brackets keep these tags apart from keys where pydantic names the place of a fault.
Upstream = SMTPUpstream | SandboxUpstream


TaggedUpstream = Annotated[
    Annotated[SMTPUpstream, Tag("<smtp>")] | Annotated[SandboxUpstream, Tag("<sandbox>")],
    Discriminator(_upstream_kind),
]
