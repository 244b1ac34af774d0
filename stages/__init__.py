"""Stages: each verb of the command line, readable top to bottom."""
