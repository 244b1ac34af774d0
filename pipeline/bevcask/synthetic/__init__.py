"""A toy city that looks like nuScenes on disk."""

from bevcask.synthetic.dataset import synthesize

__all__ = ["synthesize"]
