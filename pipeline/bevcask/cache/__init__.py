"""Cache: how targets are stored. Knows no models."""
