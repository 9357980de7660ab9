"""Sends one mail as a Django application would; the job comes as JSON on standard input. Run by support/clients.py."""

from __future__ import annotations

import json
import sys

from django.conf import settings  # type: ignore[import-untyped]
from django.core.mail import send_mail  # type: ignore[import-untyped]

job = json.load(sys.stdin)
settings.configure(
    EMAIL_BACKEND="django.core.mail.backends.smtp.EmailBackend",
    EMAIL_HOST=job["host"],
    EMAIL_PORT=job["port"],
    EMAIL_HOST_USER=job["username"] or "",
    EMAIL_HOST_PASSWORD=job["password"],
    EMAIL_USE_TLS=job["username"] is not None,
    EMAIL_TIMEOUT=30,
    DEFAULT_CHARSET="utf-8",
    USE_TZ=True,
)
sent = send_mail(job["subject"], job["text"], job["sender"], [job["recipient"]])
sys.exit(0 if sent == 1 else 1)
