"""Training: the student loop on Lightning."""
