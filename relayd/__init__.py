"""relayd: an SMTP relay daemon that keeps, signs, routes and delivers the mail of applications."""

from __future__ import annotations

__version__ = "0.1.0"
