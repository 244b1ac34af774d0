"""inspect: what a cache holds, who made it, how complete it is, and a picture of one sample."""

from typing import Any

from bevcask.cache import open_cache
from bevcask.catalog import resolve
from bevcask.cluster import workers_of
from bevcask.errors import ConfigError
from bevcask.outputs import output_file
from bevcask.verbs import InspectConfig
from bevcask.viz.report import describe, render
from bevcask.viz.statistics import statistics

__all__ = ["render", "run"]


def run(config: InspectConfig) -> dict[str, Any]:
    """Open `config.cache` (sealed or not) and describe it.

    Returns:
        Plain JSON data: `viz.report.describe`, `statistics` per target, `sample` and `picture`
        where asked for.

    Raises:
        ConfigError: no cache URL, or a picture without its dataset.
        CacheCorruptError: stored bytes are damaged.
        TokenNotCachedError: `sample` has no row.
    """
    if config.cache is None:
        raise ConfigError("inspect needs a cache URL: bevcask inspect URL.")
    picture = None if config.picture is None else output_file("picture", config.picture, ".png")
    cache = open_cache(resolve("cache", config.cache), allow_unsealed=True)
    result = describe(cache) | {"sample": None, "picture": None}
    if config.sample is not None or config.picture is not None:
        from bevcask.viz.sample import compose_picture, describe_sample, open_frames, pick_token

        token = pick_token(cache, config.sample or "first")
        result["sample"] = describe_sample(cache, token)
        if picture is not None:
            from bevcask.viz.pictures import draw

            frames = open_frames(cache, config.dataset)
            draw(compose_picture(cache, frames, token), picture)
            result["picture"] = str(picture)
    with workers_of(config):  # dask finds them by itself
        return result | {"statistics": statistics(cache)}
