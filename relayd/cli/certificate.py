"""Certificates of tracking hosts as people and programs read them. What is due is relayd/domains/certificates.py's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from relayd.cli.out import clean, iso, moment, print_pairs, say

if TYPE_CHECKING:
    from relayd.config.models import Tracking
    from relayd.spool.certificates import Certificate
    from relayd.spool.domains import TrackingDomain


def certificate_json(known: Certificate | None) -> dict[str, Any] | None:
    """Everything but the key; None where nothing is known."""
    if known is None:
        return None
    return {
        "valid_from": iso(known.not_before),
        "expires_at": iso(known.not_after),
        "due_at": iso(known.due),
        "ordered_at": iso(known.ordered_at),
        "directory": known.directory or None,
        "failures": known.failures,
        "failed_at": iso(known.failed_at),
        "error": known.error or None,
        "chain": known.chain or None,
    }


def certificate_words(known: Certificate | None, tracking: TrackingDomain | None, section: Tracking) -> str:
    """Where it stands, in a few words. `tracking` is None for the shared host."""
    if tracking is not None and tracking.steps > 1:
        return "its TLS front has one"
    if known is None or not known.chain:
        failing = known is not None and known.failures
        if section.acme is None:
            return "none: tracking.acme is not configured"
        if tracking is not None and tracking.state != "verified":
            return "none: got once the host is verified"
        return "none: the last attempt failed" if failing else "none yet"
    end = moment(known.not_after)
    if known.not_after is not None and known.not_after <= time.time() * 1000:
        return f"expired at {end}"
    return f"valid until {end}" + (", renewal fails" if known.failures else "")


def print_certificate(known: Certificate | None, tracking: TrackingDomain | None, section: Tracking) -> None:
    """The same with dates and the last error."""
    say(f"Certificate: {certificate_words(known, tracking, section)}")
    if known is None:
        return
    pairs = [("valid from", moment(known.not_before)), ("ordered", moment(known.ordered_at))]
    print_pairs([*pairs, ("next try" if known.failures else "renewal", moment(known.due))])
    if known.error:
        say(f"   - the last attempt failed at {moment(known.failed_at)}: {clean(known.error)}", "red")
