"""Fuzzing: what takes octets of others (targets.py), and the run that coverage guides (guided.py, needs atheris)."""
