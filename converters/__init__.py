"""Converters: from one checkpoint to artifacts of its variants, measured for fidelity and speed."""
