"""Targets: what may be cached and how it meets an augmented student."""
