"""What a failure on the way to an upstream means, as an Outcome: replies by core/classify.py, the rest worded here.

Text for the record is ours or OpenSSL's fixed wording, never an exception's own.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from dataclasses import replace

from aiosmtplib.errors import (
    SMTPAuthenticationError,
    SMTPConnectResponseError,
    SMTPException,
    SMTPHeloError,
    SMTPServerDisconnected,
)

from relayd.core.classes import ReplyClass
from relayd.core.classify import dropped, outcome_of, timeout
from relayd.core.lifecycle import Outcome, OutcomeKind, Stage
from relayd.core.reply import Reply, parse_reply
from relayd.delivery.client import RefusedError
from relayd.delivery.protocol import MalformedReplyError


def of_fault(stage: Stage, fault: SMTPException | None) -> Outcome:
    """A connection that failed in the middle of a transaction, at this stage. At DOT the mail may have been taken."""
    if isinstance(fault, MalformedReplyError):
        return malformed(stage, str(fault))
    return timeout(stage) if isinstance(fault, TimeoutError) else dropped(stage)


def cut_off() -> Outcome:
    """We stopped waiting for the reply to a message that was sent whole."""
    text = "relayd had to stop before the upstream answered; we waited for its reply after the message"
    return Outcome(OutcomeKind.UNCERTAIN, Stage.DOT, Reply(451, "4.4.2", text), ReplyClass.NETWORK_ERROR.value)


def malformed(stage: Stage, what: str) -> Outcome:
    """The upstream said something that SMTP does not know."""
    kind = OutcomeKind.UNCERTAIN if stage is Stage.DOT else OutcomeKind.DEFERRED
    reply = Reply(451, "4.5.0", f"The upstream broke the protocol: {what}")
    return Outcome(kind, stage, reply, ReplyClass.PROTOCOL_ERROR.value)


def of_opening(stage: Stage, error: BaseException) -> Outcome:
    """No session came about: always the upstream's trouble, whatever it said."""
    outcome = _opening(stage, error)
    return outcome if outcome.kind is OutcomeKind.TROUBLE else replace(outcome, kind=OutcomeKind.TROUBLE)


def _opening(stage: Stage, error: BaseException) -> Outcome:
    match error:
        case RefusedError():
            cls = ReplyClass.TLS_FAILED if stage is Stage.TLS else ReplyClass.LOGIN_REFUSED
            outcome = _trouble(stage, cls, error.reply)
        case SMTPConnectResponseError() | SMTPHeloError() | SMTPAuthenticationError() if error.code >= 400:
            outcome = outcome_of(stage, parse_reply(error.code, error.message))
        case SMTPConnectResponseError() | SMTPHeloError() | SMTPAuthenticationError():
            outcome = malformed(stage, f"an unexpected reply ({error.code})")
        case MalformedReplyError():
            outcome = malformed(stage, str(error))
        case TimeoutError():
            outcome = timeout(stage)
        case SMTPServerDisconnected():
            outcome = dropped(stage)
        case _:
            outcome = _network(stage, error)
    return outcome


def _network(stage: Stage, error: BaseException) -> Outcome:
    match error:
        case ssl.SSLCertVerificationError():
            text = f"The certificate of the upstream is not to be trusted: {error.verify_message}"
            return _trouble(stage, ReplyClass.TLS_FAILED, Reply(454, "4.7.5", text))
        case ssl.SSLError():
            reason = (error.reason or "unknown").replace("_", " ").lower()
            return _trouble(stage, ReplyClass.TLS_FAILED, Reply(454, "4.7.5", f"The TLS handshake failed: {reason}"))
        case socket.gaierror():
            reply = Reply(451, "4.4.3", "The name of the upstream cannot be resolved")
            return _trouble(stage, ReplyClass.NETWORK_ERROR, reply)
        case OSError() if error.errno is not None and error.errno in errno.errorcode:
            reply = Reply(451, "4.4.1", f"No connection to the upstream: {os.strerror(error.errno)}")
            return _trouble(stage, ReplyClass.NETWORK_ERROR, reply)
        case _:
            return dropped(stage)


def _trouble(stage: Stage, cls: ReplyClass, reply: Reply) -> Outcome:
    return Outcome(OutcomeKind.TROUBLE, stage, reply, cls.value)
