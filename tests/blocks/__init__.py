"""Blocks: how they come about, what they stop, and who is told."""
