"""inspect: what a cache holds, who made it, how complete it is, a picture, a report."""

from typing import TYPE_CHECKING, Any

from bevcask.cache import Cache, open_cache
from bevcask.catalog import resolve
from bevcask.cluster import workers_of
from bevcask.errors import BevcaskError, ConfigError
from bevcask.outputs import output_file
from bevcask.verbs import InspectConfig
from bevcask.viz.report import describe, render
from bevcask.viz.statistics import statistics

if TYPE_CHECKING:
    from bevcask.viz.html.report import Asked

__all__ = ["render", "run"]


def run(config: InspectConfig) -> dict[str, Any]:
    """Open `config.cache` (sealed or not) and describe it.

    Returns:
        Plain JSON data: `viz.report.describe`, `statistics` per target (left out where the report
        finds damage), `sample`, `picture` and `html` where asked for; with `html` also its
        `html_bytes`, `html_frames` and `warnings`.

    Raises:
        ConfigError: no cache URL, or a picture without its dataset; a dataset that is named is not
            there.
        CacheCorruptError: stored bytes are damaged.
        TokenNotCachedError: `sample` has no row.
    """
    if config.cache is None:
        raise ConfigError("inspect needs a cache URL: bevcask inspect URL.")
    picture = None if config.picture is None else output_file("picture", config.picture, ".png")
    page = None if config.html is None else output_file("html", config.html, ".html")
    cache = open_cache(resolve("cache", config.cache), allow_unsealed=True)
    result = describe(cache) | {"sample": None, "picture": None, "html": None}
    if config.sample is not None or config.picture is not None:
        from bevcask.viz.sample import compose_picture, describe_sample, open_frames, pick_token

        token = pick_token(cache, config.sample or "first")
        result["sample"] = describe_sample(cache, token)
        if picture is not None:
            from bevcask.viz.pictures import draw

            frames = open_frames(cache, config.dataset)
            draw(compose_picture(cache, frames, token), picture)
            result["picture"] = str(picture)
    if page is not None:
        from bevcask.viz.html.report import write_report

        result |= write_report(asked_of(cache, config), page)
        if any(own["kind"] == "damaged" for own in result["warnings"]):
            return result
    with workers_of(config):  # dask finds them by itself
        return result | {"statistics": statistics(cache)}


def asked_of(cache: Cache, config: InspectConfig) -> "Asked":
    """Return what a report is to hold; without its dataset it says what it lacks.

    Raises:
        ConfigError: a dataset is named, and is not there.
    """
    from bevcask.viz.html.report import Asked
    from bevcask.viz.sample import open_frames

    frames, lacks = None, []
    try:
        frames = open_frames(cache, config.dataset)
    except BevcaskError as error:
        if config.dataset.model_fields_set:
            raise
        lacks.append(f"camera images, LiDAR points, ground truth, scores, calibration: {error}")
    return Asked(cache.url, frames, lacks, config.html_frames, int(config.html_mb * 1e6))
