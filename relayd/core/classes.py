"""The table of reply classes: which words and codes of upstreams mean what. The first row that fits decides.

classify.py reads it. Rows stand from the particular to the general; the tests have an example for each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from relayd.core.lifecycle import Stage


class ReplyClass(StrEnum):
    """What a reply means for people and statistics. The ids are stable."""

    USER_UNKNOWN = "user-unknown"
    USER_MOVED = "user-moved"
    MAILBOX_DISABLED = "mailbox-disabled"
    MAILBOX_FULL = "mailbox-full"
    HOST_UNKNOWN = "host-unknown"
    NO_SUCH_DOMAIN_MAIL = "no-such-domain-mail"
    ADDRESS_SYNTAX = "address-syntax"
    MESSAGE_TOO_BIG = "message-too-big"
    CONTENT_REJECTED = "content-rejected"
    SPAM_DETECTED = "spam-detected"
    VIRUS = "virus"
    SENDER_REJECTED = "sender-rejected"
    REPUTATION_BLOCKED = "reputation-blocked"
    REVERSE_DNS_MISSING = "reverse-dns-missing"
    AUTHENTICATION_FAILED = "authentication-failed"
    """Of the message: SPF, DKIM, DMARC."""
    LOGIN_REFUSED = "login-refused"
    """Of relayd at its upstream: AUTH."""
    POLICY = "policy"
    RELAYING_DENIED = "relaying-denied"
    RATE_LIMITED = "rate-limited"
    TOO_MANY_CONNECTIONS = "too-many-connections"
    GREYLISTED = "greylisted"
    FILTERED = "filtered"
    """By the recipient's own filter."""
    NETWORK_ERROR = "network-error"
    TLS_FAILED = "tls-failed"
    PROTOCOL_ERROR = "protocol-error"
    SYSTEM_ERROR = "system-error"
    SYSTEM_FULL = "system-full"
    MAILER_ERROR = "mailer-error"
    EXPIRED = "expired"
    ON_HOLD = "on-hold"
    COMPLAINT = "complaint"
    VACATION = "vacation"
    DELIVERED = "delivered"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Row:
    """One rule. What is not given fits anything; what is given must all fit."""

    name: str
    """Names the row in tests."""
    cls: ReplyClass
    codes: re.Pattern[str] | None = None
    """Reply code, whole."""
    enhanced: re.Pattern[str] | None = None
    """Enhanced status code, whole."""
    text: re.Pattern[str] | None = None
    """Anywhere in the lower-case text."""
    stages: frozenset[Stage] | None = None


def _row(name: str, cls: ReplyClass, *, codes: str = "", enhanced: str = "", text: str = "", stages: str = "") -> Row:
    return Row(
        name,
        cls,
        re.compile(codes) if codes else None,
        re.compile(enhanced.replace(".", r"\.").replace("#", r"\d+")) if enhanced else None,
        re.compile(text) if text else None,
        frozenset(Stage(stage) for stage in stages.split()) if stages else None,
    )


C = ReplyClass

# In `enhanced`, a dot is a dot and # is any number. Texts are searched in lower case; repetitions are bounded, so
# that no reply, however hostile, takes long.
ROWS: tuple[Row, ...] = (
    # --- where it happened says enough
    _row("taken", C.DELIVERED, codes="2.."),
    _row("tls-wanted", C.TLS_FAILED, codes="530|454|538", text=r"starttls|encrypt|\btls\b"),
    _row("tls-stage", C.TLS_FAILED, stages="tls"),
    _row("login-code", C.LOGIN_REFUSED, codes="530|534|535|538"),
    _row("login-status", C.LOGIN_REFUSED, enhanced="5.7.(8|9|1[1-4])", stages="auth mail"),
    _row("login-stage", C.LOGIN_REFUSED, codes="5..", stages="auth"),
    # --- words that say more than the codes they come with
    _row("virus", C.VIRUS, text=r"\bvirus|malware|\binfected\b|\btrojan"),
    _row("greylist", C.GREYLISTED, text=r"gr[ea]y-?list"),
    _row(
        "connections",
        C.TOO_MANY_CONNECTIONS,
        text=r"too many (?:concurrent |simultaneous |smtp |open )*(?:connections|sessions)|connection (?:count |rate )?"
        r"(?:limit|exceeded)|maximum (?:number of )?(?:concurrent )?connections|connection (?:frequency|rate)",
    ),
    _row(
        "sending-quota",
        C.RATE_LIMITED,
        text=r"(?:daily|hourly|monthly|sending|outgoing|account)[^.]{0,30}(?:quota|limit|rate)[^.]{0,30}(?:exceed"
        r"|reach)"
        r"|exceed[^.]{0,30}(?:daily|hourly|monthly|sending|outgoing) (?:[a-z]+ )?(?:quota|limit|rate)|throttl",
    ),
    _row(
        "rate",
        C.RATE_LIMITED,
        text=r"rate[ -]?limit|(?:unusual|excessive) rate|too many (?:messages|mails|e-?mails|requests|recipients)"
        r"|too much mail|receiving mail (?:at a rate|too quickly)|slow down|frequency limited|over rate",
    ),
    _row("rate-status", C.RATE_LIMITED, enhanced="[45].(5.3|7.28|4.5)"),
    _row(
        "reverse-dns",
        C.REVERSE_DNS_MISSING,
        text=r"reverse[ -]?dns|\brdns\b|\bptr\b|reverse (?:host ?name|lookup)|cannot find your (?:reverse )?host ?name",
    ),
    _row("reverse-dns-status", C.REVERSE_DNS_MISSING, enhanced="[45].7.25"),
    _row(
        "message-authentication",
        C.AUTHENTICATION_FAILED,
        text=r"\bspf\b|\bdkim\b|\bdmarc\b|sender policy framework|unauthenticated (?:e-?mail|mail|sender|message)"
        r"|anti-?spoofing",
    ),
    _row("message-authentication-status", C.AUTHENTICATION_FAILED, enhanced="[45].7.(2[0-4]|26|29|30|509|515)"),
    _row(
        "listed",
        C.REPUTATION_BLOCKED,
        text=r"spamhaus|spamcop|barracudacentral|sorbs|\bdnsbl\b|\brbls?\b|(?:black|block|deny)[ -]?list"
        r"|\blisted (?:in|at|by|on)\b|reputation|user complaints|ipcheck\."
        r"|your ip (?:address )?(?:is|has been) (?:blocked|banned)"
        r"|banned sending ip|\[(?:bl|tss)\d\d\]",
    ),
    _row("listed-status", C.REPUTATION_BLOCKED, enhanced="[45].7.(511|60[0-9]|6[1-4][0-9])"),
    _row(
        "recipient-filter",
        C.FILTERED,
        text=r"(?:blocked|rejected|refused|denied) by (?:the )?recipient"
        r"|recipient (?:has )?(?:blocked|refuses|does not accept)"
        r"|not accepting (?:e-?mail|mail|messages) from (?:you|this sender|outside)|user reject"
        r"|recipient's (?:filter|allow)"
        r"|only accepts? (?:e-?mail|mail|messages) from",
    ),
    _row(
        "sender-domain",
        C.SENDER_REJECTED,
        text=r"sender(?:'s)?(?: e-?mail)?(?: address| domain)? (?:rejected|denied|blocked|refused|verif|not |is not "
        r"|does not )"
        r"|not owned by user|invalid sender|bad sender|(?:address|domain|identity)(?: is|s are)? not verified"
        r"|domain of sender|sender domain|from (?:address|header) (?:is )?(?:not|invalid)",
    ),
    _row("sender-status", C.SENDER_REJECTED, enhanced="[45].(1.[78]|7.27)"),
    _row(
        "relaying",
        C.RELAYING_DENIED,
        text=r"relay(?:ing)?(?: access)?(?: is)? (?:denied|prohibited|not (?:permitted|allowed))"
        r"|not (?:permitted|allowed|authorized) to relay"
        r"|(?:unable|cannot|refuse|refusing|do not|won't|don't)(?: to)? relay|no relaying",
    ),
    _row(
        "exchange-not-found",
        C.USER_UNKNOWN,
        enhanced="5.(1.10|4.1)",
        text=r"recipient ?(?:address|not ?found)|resolver|not found",
    ),
    _row(
        "null-mx", C.NO_SUCH_DOMAIN_MAIL, text=r"null ?mx|domain (?:does not|doesn't|never) accepts? (?:e-?mail|mail)"
    ),
    _row("null-mx-status", C.NO_SUCH_DOMAIN_MAIL, enhanced="5.1.10"),
    _row(
        "spam",
        C.SPAM_DETECTED,
        text=r"\bspam(?!(?:cop|haus))|\bjunk|unsolicited|bulk (?:e-?mail|mail)|\bube\b|\buce\b|phishing",
    ),
    _row(
        "mailbox-full",
        C.MAILBOX_FULL,
        text=r"(?:mailbox|mail box|account|inbox|user|recipient)[^.]{0,40}\bfull\b|over ?quota"
        r"|quota (?:is )?(?:exceeded|full)"
        r"|exceed[^.]{0,40}(?:quota|mailbox|storage)|out of (?:storage|quota)|full mailbox|mailbox size limit"
        r"|not enough (?:storage|space) [^.]{0,20}mailbox",
    ),
    _row("mailbox-full-status", C.MAILBOX_FULL, enhanced="[45].2.2"),
    _row(
        "too-big",
        C.MESSAGE_TOO_BIG,
        text=r"(?:message|mail|content|body|data)[^.]{0,30}(?:too (?:big|large|long)|exceed[^.]{0,40}(?:size|limit"
        r"|maximum))"
        r"|size (?:limit|of message) [^.]{0,20}exceed|exceeds? [^.]{0,30}(?:message|maximum) size"
        r"|maximum (?:message )?size",
    ),
    _row("too-big-status", C.MESSAGE_TOO_BIG, enhanced="[45].(3.4|2.3)"),
    # --- about the mailbox
    _row(
        "disabled",
        C.MAILBOX_DISABLED,
        text=r"(?:mailbox|account|user|recipient|address)[^.]{0,30}(?:disabled|suspended|inactive|deactivated|locked"
        r"|closed"
        r"|terminated|not active|discontinued|no longer (?:in use|active|available))|not currently accepting",
    ),
    _row(
        "moved",
        C.USER_MOVED,
        text=r"(?:user|recipient|mailbox|address)[^.]{0,30}\bmoved\b|has moved to|please try <|new (?:e-?mail )?address"
        r"|changed (?:his|her|their|its) (?:e-?mail )?address",
    ),
    _row("moved-status", C.USER_MOVED, enhanced="5.1.6"),
    _row("disabled-status", C.MAILBOX_DISABLED, enhanced="[45].2.1"),
    _row(
        "user",
        C.USER_UNKNOWN,
        codes="5..",
        text=r"(?:user|account|mailbox|recipient|address|addressee)[^.,]{0,60}(?:unknown|not (?:be )?(?:found|exist"
        r"|known|listed|here)"
        r"|doesn't exist|does not exist|doesn't have|invalid|no longer (?:exist|valid|work))"
        r"|(?:unknown|invalid|no such|nonexistent|non-existent|undeliverable)[^.,]{0,20}"
        r"\b(?:user|account|mailbox|recipient|address|local[ -]part|person)"
        r"|doesn't have an? [^ ]{1,60} account|no mailbox (?:here|by that name)|mailbox unavailable"
        r"|not a valid (?:mailbox|recipient|user)",
    ),
    _row("user-status", C.USER_UNKNOWN, enhanced="5.1.(1|4)"),
    _row(
        "host",
        C.HOST_UNKNOWN,
        text=r"(?:host|domain|name)(?: name)?[^.]{0,30}(?:not found|not exist|unknown|could not be resolved)"
        r"|no such (?:host|domain)|unknown (?:host|domain)|unroute?able|nxdomain|name or service not known"
        r"|no mail exchanger",
    ),
    _row("host-status", C.HOST_UNKNOWN, enhanced="[45].(1.2|4.4)"),
    _row(
        "syntax",
        C.ADDRESS_SYNTAX,
        text=r"(?:bad|malformed|invalid|illegal|incorrect)[^.]{0,30}address(?: syntax)?|address[^.]{0,20}syntax"
        r"|syntax[^.]{0,20}address",
    ),
    _row("syntax-status", C.ADDRESS_SYNTAX, enhanced="[45].(1.3|6.7)"),
    # --- about the way
    _row(
        "expired",
        C.EXPIRED,
        text=r"(?:message|delivery|retry|queue)[^.]{0,30}(?:expired|timeout exceeded|too old)"
        r"|too long in (?:the )?queue",
    ),
    _row("expired-status", C.EXPIRED, enhanced="[45].4.7"),
    _row("tls", C.TLS_FAILED, text=r"\bstarttls\b|\btls\b|\bssl\b|certificate"),
    _row("tls-status", C.TLS_FAILED, enhanced="[45].7.(5|10|323|324)"),
    _row(
        "network",
        C.NETWORK_ERROR,
        text=r"connection (?:timed out|refused|reset|lost|dropped|closed)|lost connection|no route to host"
        r"|network (?:is )?unreachable|\bloop|too many hops|\btimed out|\btimeout",
    ),
    _row("network-status", C.NETWORK_ERROR, enhanced="[45].4.#"),
    _row(
        "system-full",
        C.SYSTEM_FULL,
        text=r"insufficient (?:system |disk )?(?:storage|space|resources)|disk (?:is )?full|no space left",
    ),
    _row("system-full-status", C.SYSTEM_FULL, enhanced="[45].3.1"),
    _row("mailer", C.MAILER_ERROR, text=r"mailer error|command (?:died|failed|output)|exited with|procmail|\bpipe\b"),
    _row("mailer-status", C.MAILER_ERROR, enhanced="[45].(3.0|2.4)"),
    _row("hold", C.ON_HOLD, text=r"\bon hold\b|quarantine|held for"),
    # --- about the message
    _row(
        "content",
        C.CONTENT_REJECTED,
        text=r"content (?:is )?(?:rejected|denied|refused|filter|not)|attachment|\bmime\b|bare (?:lf|cr|newline)"
        r"|rfc ?\d{3,4}|header[^.]{0,20}(?:invalid|missing|malformed|multiple)|not supported by [^.]{0,20}upstream",
    ),
    _row("content-status", C.CONTENT_REJECTED, enhanced="[45].6.#"),
    _row(
        "policy",
        C.POLICY,
        text=r"policy|prohibit|not (?:permitted|allowed|authori[sz]ed)|access denied|forbidden|security"
        r"|(?:blocked|rejected|refused) (?:by|for|due)|sensitive",
    ),
    _row("policy-status", C.POLICY, enhanced="[45].7.#"),
    _row(
        "protocol",
        C.PROTOCOL_ERROR,
        text=r"command[^.]{0,20}(?:unrecogni|unknown|not (?:implemented|recogni))|bad sequence|syntax error"
        r"|broke the protocol|pipelining",
    ),
    _row("protocol-status", C.PROTOCOL_ERROR, enhanced="[45].5.#"),
    _row(
        "system",
        C.SYSTEM_ERROR,
        text=r"(?:internal|local|server|system|configuration|processing|lookup) (?:[a-z]+ )?error|shutting down"
        r"|(?:service|system|server|temporarily|resources)[^.]{0,30}unavailable"
        r"|temporar(?:y|ily) [^.]{0,20}(?:failure|problem|error|deferred|reject)",
    ),
    _row("system-status", C.SYSTEM_ERROR, enhanced="[45].(3.#|2.0)"),
    # --- only the code and the place are left
    _row("status-1", C.USER_UNKNOWN, codes="5..", enhanced="5.1.#"),
    _row("code-moved", C.USER_MOVED, codes="551"),
    _row("code-size", C.MESSAGE_TOO_BIG, codes="552", stages="mail data dot"),
    _row("code-mailbox-full", C.MAILBOX_FULL, codes="552", stages="rcpt"),
    _row("code-system-full", C.SYSTEM_FULL, codes="452"),
    _row("code-protocol", C.PROTOCOL_ERROR, codes="50[0-4]|555"),
    _row("code-temporary", C.SYSTEM_ERROR, codes="4.."),
    _row("code-user", C.USER_UNKNOWN, codes="550", stages="rcpt"),
    _row("code-syntax", C.ADDRESS_SYNTAX, codes="553", stages="rcpt"),
    _row("code-content", C.CONTENT_REJECTED, codes="550|554", stages="dot"),
    _row("code-policy", C.POLICY, codes="550|554", stages="connect ehlo"),
)
