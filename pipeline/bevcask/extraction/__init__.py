"""From frames to encoded shards: who says what, in which order, and whether the disk holds it."""
