"""What comes back: bounces, complaints and auto-replies, taken in, matched with the mail they are about, acted on."""

from __future__ import annotations
