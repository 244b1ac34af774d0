"""inspect: what a cache holds, who made it, how complete it is, a picture, a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bevcask.cache import Cache, open_cache
from bevcask.cache.union import split_urls
from bevcask.catalog import resolve
from bevcask.cluster import workers_of
from bevcask.data.index.frames import Frames
from bevcask.errors import BevcaskError, CacheIdentityError, ConfigError
from bevcask.outputs import output_file
from bevcask.paths import whereabouts
from bevcask.verbs import InspectConfig
from bevcask.viz.report import describe, render
from bevcask.viz.statistics import statistics

if TYPE_CHECKING:
    from bevcask.viz.html.report import Asked
    from bevcask.viz.html.student import Student

__all__ = ["render", "run"]


def run(config: InspectConfig) -> dict[str, Any]:
    """Open `config.cache` (sealed or not) and describe it.

    Returns:
        Plain JSON data: `viz.report.describe`, `statistics` per target, `sample`, `picture` and
        `html` where asked for. With `html` its `html_bytes`, `html_frames` and `warnings` take the
        place of `statistics`, for which everything would be read once more.

    Raises:
        ConfigError: no cache URL, or a picture without its dataset; a dataset that is named is not
            there.
        CacheCorruptError: stored bytes are damaged.
        TokenNotCachedError: `sample` has no row.
        MissingDependencyError: `mcap=` without its package.
    """
    if config.cache is None:
        raise ConfigError("inspect needs a cache URL: bevcask inspect URL.")
    picture = None if config.picture is None else output_file("picture", config.picture, ".png")
    if config.run is not None and config.html is None:
        raise ConfigError(f"run={config.run}: is shown in a report; say html=FILE too.")
    page = None if config.html is None else output_file("html", config.html, ".html")
    film = None if config.mcap is None else output_file("mcap", config.mcap, ".mcap")
    cache = open_cache(resolve("cache", config.cache), allow_unsealed=True)
    result = describe(cache) | {"sample": None, "picture": None, "html": None, "mcap": None}
    if config.sample is not None or config.picture is not None:
        from bevcask.viz.sample import compose_picture, describe_sample, open_frames, pick_token

        token = pick_token(cache, config.sample or "first")
        result["sample"] = describe_sample(cache, token)
        if picture is not None:
            from bevcask.viz.pictures import draw

            frames = open_frames(cache, config.dataset)
            draw(compose_picture(cache, frames, token), picture)
            result["picture"] = str(picture)
    if film is not None:
        from bevcask.viz.sample import open_frames
        from bevcask.viz.scene_file import write_scene

        frames = open_frames(cache, config.dataset)
        result["mcap"] = {"file": str(film), **write_scene(cache, frames, config.scene, film)}
    if page is not None:
        from bevcask.viz.html.report import write_report

        return result | write_report(asked_of(cache, config), page)
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
        if config.run is not None:
            raise ConfigError(f"run={config.run}: a student is shown frames. {error}") from error
        lacks.append(f"camera images, LiDAR points, ground truth, scores, calibration: {error}")
    student = None if frames is None else student_of(cache, config, frames)
    size = int(config.html_mb * 1e6)
    return Asked(cache.url, frames, lacks, config.html_frames, size, student)


def student_of(cache: Cache, config: InspectConfig, frames: Frames) -> "Student | None":
    """Open the student of `run`, if one is named.

    Raises:
        ConfigError: no training has ended there, or its student remembers.
        CacheIdentityError: it learned from another cache.
    """
    if config.run is None:
        return None
    from bevcask.config import DetectorConfig
    from bevcask.training.checkpoint import open_detector
    from bevcask.training.record import RunFolder
    from bevcask.viz.html.student import Student

    folder = RunFolder(Path(config.run))
    result = folder.finished()
    if result is None or not folder.student.is_file():
        raise ConfigError(
            f"run={config.run}: expected the folder of a training that has ended (metrics.json and "
            "student.safetensors). Name the run= of student-distill, or leave it out."
        )
    _require_taught_by(cache, config.run, result)
    plugin, own, detector = open_detector(DetectorConfig(checkpoint=str(folder.student)))
    inputs = plugin.inputs(own)
    if inputs.memory:
        raise ConfigError(
            f"run={config.run}: its student remembers the frames before, and a report shows single "
            "ones. Leave run out."
        )
    taps = plugin.describe_taps(own)
    return Student(folder.path.name, detector.eval(), taps, frames, inputs, config.html_augment)


def _require_taught_by(cache: Cache, run: str, result: dict[str, Any]) -> None:
    """Refuse a run that learned from another cache; one that targets were added to is the same.

    Raises:
        CacheIdentityError: another place or another teacher.
    """
    from bevcask.training.identity import told_of

    taught_by = result.get("cache_id")
    if not taught_by or cache.id in str(taught_by):
        return
    places = [whereabouts(url) for url in split_urls(str(result.get("cache")))]
    if whereabouts(cache.url) in places and told_of(cache) in str(result.get("teacher")):
        return
    raise CacheIdentityError(
        f"run={run}: its student learned from cache {result.get('cache')} "
        f"({str(taught_by)[:12]}, teacher {result.get('teacher')}), this one is {cache.url} "
        f"({cache.id[:12]}, teacher {told_of(cache)}). Name the cache it learned from, or another "
        "run."
    )
