"""The shipped catalog of datasets, checkpoints and caches."""
