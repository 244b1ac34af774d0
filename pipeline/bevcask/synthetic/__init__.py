"""A toy city that looks like nuScenes on disk."""

from bevcask.synthetic.config import SynthesizeConfig
from bevcask.synthetic.dataset import synthesize

__all__ = ["SynthesizeConfig", "synthesize"]
