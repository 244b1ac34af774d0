"""Data: nuScenes tables and files on disk -> frames, samples, batches."""
