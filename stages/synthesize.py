"""`synthesize`: write a toy city that the nuScenes devkit takes for nuScenes."""

from typing import Any

from bevcask.progress import progress_bar
from bevcask.synthetic import synthesize
from bevcask.verbs import SynthesizeConfig


def run(config: SynthesizeConfig) -> dict[str, Any]:
    """Write the dataset with a progress bar on stderr; see `synthesize` for the summary."""
    keyframes = config.num_scenes * config.num_keyframes
    with progress_bar("synthesize", keyframes) as ticker:
        return synthesize(config, on_keyframes=ticker.advance)
