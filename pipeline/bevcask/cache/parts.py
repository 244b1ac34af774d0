"""Parts: which shards one of n processes fills, by arithmetic alone; and portions of a part."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bevcask.cache.layout import Layout
from bevcask.errors import ConfigError

_PORTIONS = 64
_LARGEST = 16  # shards


@dataclass(frozen=True)
class Part:
    """Part `number` of `count`, counted from 1."""

    number: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"part={self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read `i/n`.

        Raises:
            ConfigError: not two whole numbers with 1 <= i <= n.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            raise ConfigError(
                f"part={text}: expected part=i/n with whole numbers and 1 <= i <= n, e.g. part=1/2 "
                "and part=2/2 for two processes."
            )
        return cls(number, count)

    def shards(self, layout: Layout, whole_scenes: bool = False) -> range:
        """Return the shards of this part: contiguous, about as many in each, none left out.

        Args:
            layout: of the cache.
            whole_scenes: never cut a scene, for teachers that remember its earlier frames.
        """
        ends = [layout.num_shards * part // self.count for part in (self.number - 1, self.number)]
        if whole_scenes:
            starts = [*layout.scene_starts, layout.num_shards]
            ends = [next(start for start in starts if start >= end) for end in ends]
        return range(*ends)


def cut(missing: Iterable[int], layout: Layout, scenes: int | None = None) -> list[range]:
    """Cut what is missing into portions, each worth a lease and a start of the loader.

    Args:
        missing: shards, in order.
        layout: of the cache.
        scenes: so many whole ones a portion; None where scenes may be cut: single shards, or more
            where there are many.

    Returns:
        Ranges that cover them, do not overlap, and may cover others between them.
    """
    firsts = np.fromiter(missing, np.int64)
    width = max(1, min(len(firsts) // _PORTIONS, _LARGEST))
    if scenes is not None:
        firsts, width = np.unique([layout.scene_start(shard) for shard in firsts]), scenes
    groups = [firsts[first : first + width].tolist() for first in range(0, len(firsts), width)]
    if scenes is None:
        return [range(group[0], group[-1] + 1) for group in groups]
    ends = [*layout.scene_starts[1:], layout.num_shards]
    stops = dict(zip(layout.scene_starts, ends, strict=True))
    return [range(group[0], stops[group[-1]]) for group in groups]
