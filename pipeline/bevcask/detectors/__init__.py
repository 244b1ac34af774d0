"""Detectors: plain torch modules that find boxes; each can be a teacher or a student."""
