"""YAML groups, one folder a group."""
