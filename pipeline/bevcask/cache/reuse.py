"""Beginning a cache with the shards that another one of the same teacher already has."""

import logging

from bevcask.cache.files import Files
from bevcask.cache.identity import require_same_source
from bevcask.cache.layout import arrays_of
from bevcask.cache.reader import Cache
from bevcask.cache.writer import Writer
from bevcask.paths import local_path

_log = logging.getLogger(__name__)


def reuse(writer: Writer, old: Cache, whole_scenes: bool = False) -> int:
    """Commit every missing shard whose very frames lie in a shard of another cache.

    Local files on one disk are linked: they are never changed in place, only replaced. Others are
    copied. Every byte is hashed on the way; a shard with damage is left to be computed.

    Args:
        writer: of the new cache, entered.
        old: another cache, sealed or not; that it is of the same dataset has been checked.
        whole_scenes: also require the same frames before the shard in its scene.

    Returns:
        The number of shards taken over.

    Raises:
        CacheIdentityError: it is of another teacher, lacks targets, or lays them out otherwise.
    """
    require_same_source(old, writer.cache.identity, [spec.key for spec in writer.specs])
    root = local_path(old.url)
    found = {
        _frames(old, shard, whole_scenes): shard for shard in sorted(old.committed, reverse=True)
    }
    taken = 0
    for shard in writer.missing():
        number = found.get(_frames(writer.cache, shard, whole_scenes))
        objects = None if number is None else _read(writer, old, number)
        if objects is None:
            continue
        links = {key: root / key_there for key, (key_there, _) in objects.items()} if root else {}
        writer.adopt(shard, {key: data for key, (_, data) in objects.items()}, links)
        taken += 1
    return taken


def _read(writer: Writer, old: Cache, number: int) -> dict[str, tuple[str, bytes]] | None:
    """Return array key -> (key there, bytes) of a shard; None (and a warning) if it is damaged."""
    layout, files = writer.cache.layout, Files(old.url)
    wanted = {a.key for spec in writer.specs for a in arrays_of(spec, layout.num_rows)}
    objects: dict[str, tuple[str, bytes]] = {}
    for array, row in zip(old.layout.arrays, old.commit[number], strict=True):
        if array.key not in wanted:
            continue
        key = array.object_key(number)
        data = files.get_range(key, 0, row.length + 1) or b"" if row.length else b""
        if not row.holds(data):
            _log.warning(
                "%s/%s: its bytes do not match their digest; this shard is computed. `bevcask "
                "verify` tells what else is damaged there.",
                old.url,
                key,
            )
            return None
        objects[array.key] = key, data
    return objects


def _frames(cache: Cache, shard: int, whole_scenes: bool) -> tuple[bytes, bytes]:
    """Return what must be equal for two shards to be: their tokens, and those that went before."""
    layout, tokens_N16 = cache.layout, cache.frames.tokens.bytes_N16
    own = layout.frames_of(shard)
    start = layout.frames_of(layout.scene_start(shard)).start if whole_scenes else own.start
    return tokens_N16[start : own.start].tobytes(), tokens_N16[own.start : own.stop].tobytes()
