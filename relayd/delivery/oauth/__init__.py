"""Logins by OAuth2 tokens: what is asked of token servers, what is kept, how a person logs in."""

from __future__ import annotations
