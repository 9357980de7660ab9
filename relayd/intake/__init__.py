"""The one door for SMTP, HTTP and our own reports: admission, then submission to the spool."""

from __future__ import annotations
