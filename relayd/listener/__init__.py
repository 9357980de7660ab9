"""SMTP in: the server side of the protocol, on aiosmtpd."""

from __future__ import annotations
