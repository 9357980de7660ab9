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

from relayd.core.classify import classify, dropped, outcome_of, timeout
from relayd.core.lifecycle import Outcome, OutcomeKind, Stage
from relayd.core.reply import Reply, parse_reply
from relayd.delivery.client import RefusedError
from relayd.delivery.protocol import MalformedReplyError


def worded(kind: OutcomeKind, stage: Stage, code: int, enhanced: str, text: str) -> Outcome:
    """An outcome with a reply of our own."""
    return Outcome(kind, stage, Reply(code, enhanced, text), classify(code, enhanced, text, stage))


def of_fault(stage: Stage, fault: SMTPException | None) -> Outcome:
    """A connection that failed in the middle of a transaction, at this stage. At DOT the mail may have been taken."""
    if isinstance(fault, MalformedReplyError):
        return malformed(stage, str(fault))
    return timeout(stage) if isinstance(fault, TimeoutError) else dropped(stage)


def malformed(stage: Stage, what: str) -> Outcome:
    """The upstream said something that SMTP does not know."""
    kind = OutcomeKind.UNCERTAIN if stage is Stage.DOT else OutcomeKind.DEFERRED
    return worded(kind, stage, 451, "4.5.0", f"The upstream broke the protocol: {what}")


def of_opening(stage: Stage, error: BaseException) -> Outcome:
    """No session came about: always the upstream's trouble, whatever it said."""
    outcome = _opening(stage, error)
    return outcome if outcome.kind is OutcomeKind.TROUBLE else replace(outcome, kind=OutcomeKind.TROUBLE)


def _opening(stage: Stage, error: BaseException) -> Outcome:
    match error:
        case RefusedError():
            outcome = _trouble(stage, error.reply.code, error.reply.enhanced, error.reply.text)
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
            return _trouble(stage, 454, "4.7.5", text)
        case ssl.SSLError():
            reason = (error.reason or "unknown").replace("_", " ").lower()
            return _trouble(stage, 454, "4.7.5", f"The TLS handshake failed: {reason}")
        case socket.gaierror():
            return _trouble(stage, 451, "4.4.3", "The name of the upstream cannot be resolved")
        case OSError() if error.errno is not None and error.errno in errno.errorcode:
            return _trouble(stage, 451, "4.4.1", f"No connection to the upstream: {os.strerror(error.errno)}")
        case _:
            return dropped(stage)


def _trouble(stage: Stage, code: int, enhanced: str, text: str) -> Outcome:
    return worded(OutcomeKind.TROUBLE, stage, code, enhanced, text)
