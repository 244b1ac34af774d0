"""The training loader as the trainer sees it: one pass, counted from the run's first batch."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

BatchT = TypeVar("BatchT")


class Steps(Generic[BatchT]):
    """The batches of a whole run, resumable at any of them.

    Args:
        make: returns the loader that starts at a batch.
        length: batches of the whole run, also when it is resumed.
    """

    def __init__(self, make: Callable[[int], Iterable[BatchT]], length: int) -> None:
        self._make = make
        self._length = length
        self._done = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[BatchT]:
        for batch in self._make(self._done):
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches handed out."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the batches a checkpoint has seen."""
        self._done = int(state["done"])
