"""A toy city that looks like nuScenes on disk."""

from bevcask.data.synthetic.config import SynthesizeConfig
from bevcask.data.synthetic.dataset import synthesize

__all__ = ["SynthesizeConfig", "synthesize"]
