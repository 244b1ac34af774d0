"""Teachers: where targets come from."""
