"""Tests of the commands and of the control socket."""

from __future__ import annotations
