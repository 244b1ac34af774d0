"""Where the wall time of a run went, and what would make it less."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeVar

Item = TypeVar("Item")
_WORTH_A_WORD = 0.05
_TOO_SHORT = 10.0  # seconds
_NO_ADVICE = "too short to say what would help"
_BUSY = (
    "a larger loader.batch_size where the device's memory allows, or a faster device; it waits for "
    "nothing"
)
_MORE = {
    "loader": "more loader.num_workers, or files that are read faster",
    "writer": "more store.threads, or a faster store",
}


class Watch:
    """Counts the seconds that this process waits for others, and the whole."""

    def __init__(self) -> None:
        self._began = perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def waiting(self, part: str) -> Iterator[None]:
        """Count the block for a part."""
        start = perf_counter()
        try:
            yield
        finally:
            self._seconds[part] = self._seconds.get(part, 0.0) + perf_counter() - start

    def watched(self, items: Iterable[Item], part: str) -> Iterator[Item]:
        """Pass items on; what their source takes for each is counted for a part."""
        source = iter(items)
        while True:
            with self.waiting(part):
                item = next(source, None)
            if item is None:
                return
            yield item

    def told(self) -> dict[str, Any]:
        """Return seconds, shares and advice; what nobody waited for is the device's."""
        total = perf_counter() - self._began
        return wall_time(total, {"device": total - sum(self._seconds.values()), **self._seconds})


def wall_time(total: float, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return the share of each part, and what would help.

    Args:
        total: seconds of the run.
        seconds: of `device`, and of what it waited for: `loader`, `writer`.
    """
    shares = {part: own / total if total else 0.0 for part, own in seconds.items()}
    return {"seconds": total, "shares": shares, "advice": _advice(total, shares)}


def in_words(told: Mapping[str, Any]) -> str:
    """Return one line of what `wall_time` found.

    >>> in_words(wall_time(60.0, {"device": 60.0}))[:32]
    'of 60 s: device 100 %. To go fast'
    >>> in_words(wall_time(4.0, {"device": 4.0}))
    'of 4 s: device 100 %. Too short to say what would help.'
    """
    shares = ", ".join(f"{part} {100 * share:.0f} %" for part, share in told["shares"].items())
    advice = told["advice"]
    more = f"{advice.capitalize()}." if advice == _NO_ADVICE else f"To go faster: {advice}."
    return f"of {told['seconds']:.0f} s: {shares}. {more}"


def _advice(total: float, shares: Mapping[str, float]) -> str:
    if total < _TOO_SHORT:
        return _NO_ADVICE
    waited = {part: share for part, share in shares.items() if part != "device"}
    worst = max(waited, key=waited.__getitem__, default=None)
    if worst is None or waited[worst] < _WORTH_A_WORD:
        return _BUSY
    return _MORE[worst]
