"""The long part of the torture suite: trials that `scripts/torture` runs. How to add one: trial.py."""
