"""The shape of `bounces` and `blocks`: what comes back, and who is not mailed any more for it."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import (
    Field,
)

from relayd.config.base import Model, Secret
from relayd.config.names import BlockClass, Domain, Host, Name, Text
from relayd.config.places import FilePath
from relayd.config.quantities import Count, Duration, Expiry
from relayd.core.blocking import ScopeKind


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
