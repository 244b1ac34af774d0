"""Does the disk hold what is to come? Asked before the first byte, and after the first shard."""

from collections.abc import Sequence

from bevcask.cache.room import check_bound, check_projection
from bevcask.cache.write_queue import WriteQueue
from bevcask.cache.writer import Writer
from bevcask.targets.kinds import kind_of


def check_upper_bound(writer: Writer) -> None:
    """Judge by the uncompressed size of what is missing, of all parts; see `check_bound`."""
    sizes = (kind_of(spec.tap).bytes_per_frame(spec) for spec in writer.specs)
    check_bound(writer.cache.url, sum(sizes) * _num_frames(writer, writer.missing(True)))


def check_first_shards(writer: Writer, queue: WriteQueue, shards: Sequence[int]) -> bool:
    """Judge by the first shards that are written; what other parts have yet to write counts.

    Args:
        writer: knows what is missing.
        queue: writes the shards.
        shards: in the order they are written.

    Returns:
        False while nothing is written.
    """
    written, number = queue.num_bytes, queue.num_shards
    if number:
        left = _num_frames(writer, writer.missing(everywhere=True))
        done = _num_frames(writer, shards[:number])
        check_projection(writer.cache.url, written, done, left)
    return number > 0


def _num_frames(writer: Writer, shards: Sequence[int]) -> int:
    return sum(len(writer.tokens(shard)) for shard in shards)
