"""Parts: which shards one of n processes fills, by arithmetic alone."""

import re
from dataclasses import dataclass

from bevcask.cache.layout import Layout
from bevcask.errors import ConfigError


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
