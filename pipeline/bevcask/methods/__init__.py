"""Methods: published distillation losses. See tensors, specs and an `align` object only."""
