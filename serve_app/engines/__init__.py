"""Engines run one artifact inside a process: token ids in, unit vectors out. No Ray here."""
