"""Memory is data: it comes back in the output, and whoever loops over time carries it.

A detector is shown one frame and what it said to remember of the frame before; it hides nothing.
`Stream` carries memory from batch to batch, `unroll` over the frames of a window.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from bevcask.detectors.base import Batch, Detector, Memory, Output
from bevcask.errors import DataError

Policy = Literal["none", "window", "scene"]
"""Where memory begins anew: at every frame, before each frame's own window, or with a scene."""


class Stream:
    """Carries what a detector remembers from one batch to the next, row by row, by token.

    A frame that is in a batch twice, under two augmentations, is remembered twice: a sample goes on
    with its own row where that shows the frame it asks for.
    """

    def __init__(self) -> None:
        self._memory: Memory = {}
        self._tokens: list[str] = []
        self._on_host: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Stream":
        """Return a new one: a copy of a detector, as of a moving average, has seen no frames."""
        return Stream()

    def recall(self, batch: Batch) -> Batch:
        """Return the batch with the memory of each sample's frame before; zeros for a new scene.

        Raises:
            DataError: a sample goes on with a frame that was not in the batch before.
        """
        after = batch.after or [None] * len(batch.tokens)
        lost = [token for token in after if token is not None and token not in self._tokens]
        if lost:
            raise DataError(
                f"a detector that remembers was to go on after frame {lost[0]}, which it was not "
                "shown just before. Show it the frames of a scene in order, from the first."
            )
        known_B = torch.tensor([token is not None for token in after])
        if not bool(known_B.any()):
            return replace(batch, memory=None, known_B=None)
        row_B = torch.tensor([self._row(row, token) for row, token in enumerate(after)])

        device = batch.bev_aug_B44.device

        def rows(name: str, value: torch.Tensor) -> torch.Tensor:
            if name not in self._on_host:
                value = value.to(device)  # a checkpoint is read onto the host
            keep = known_B.to(value.device).view(-1, *[1] * (value.ndim - 1))
            return torch.where(keep, value[row_B.to(value.device)], torch.zeros_like(value[:1]))

        memory = {name: rows(name, value) for name, value in self._memory.items()}
        return replace(batch, memory=memory, known_B=known_B.to(device))

    def _row(self, row: int, token: str | None) -> int:
        """Return where the memory of a frame is, for the sample in a row; 0 for no frame."""
        if token is None:
            return 0
        own = row < len(self._tokens) and self._tokens[row] == token
        return row if own else self._tokens.index(token)

    def keep(self, batch: Batch, memory: Memory) -> None:
        """Keep a copy of what was said of a batch, without gradients, in place of what was kept."""
        here = batch.bev_aug_B44.device.type
        self._memory = {name: value.detach().clone() for name, value in memory.items()}
        self._tokens = list(batch.tokens)
        self._on_host = {
            name for name, value in memory.items() if value.device.type == "cpu" != here
        }

    def show(self, detector: Detector, batch: Batch) -> Output:
        """Run a detector on a batch with what it remembers, and keep what it says to remember."""
        shown = self.recall(batch)
        output: Output = detector(shown)
        self.keep(shown, output.memory)
        return output

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, so that a run resumed in mid-scene goes on exactly."""
        return {
            "memory": dict(self._memory),
            "tokens": list(self._tokens),
            "on_host": sorted(self._on_host),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._memory = dict(state["memory"])
        self._tokens = list(state["tokens"])
        self._on_host = set(state["on_host"])


def joined_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the state of one stream from those of ranks that hold a part of its rows each.

    Nothing of nobody.
    """
    if len(states) < 2:
        return dict(states[0]) if states else {}
    names = states[0]["memory"]
    return {
        "memory": {
            name: torch.cat([own["memory"][name].cpu() for own in states]) for name in names
        },
        "tokens": [token for own in states for token in own["tokens"]],
        "on_host": states[0]["on_host"],
    }


def rows_of(state: dict[str, Any], rank: int, ranks: int) -> dict[str, Any]:
    """Return a rank's part of what `joined_states` joined, on any number of ranks."""
    size = len(state["tokens"]) // ranks
    rows = slice(rank * size, (rank + 1) * size)
    memory = {name: value[rows] for name, value in state["memory"].items()}
    return {**state, "memory": memory, "tokens": state["tokens"][rows]}


def unroll(detector: Detector, batch: Batch) -> Output:
    """Run a detector on a window: its history without gradient, in evaluation mode, then the frame.

    A window is a short stream that starts from nothing. A batch without history is just run.
    """
    stream = _looked_back(detector, batch.history)
    output: Output = detector(stream.recall(batch) if batch.history else batch)
    return output


def unroll_trained(detector: Detector, batch: Batch) -> list[tuple[Batch, Output]]:
    """Run a detector on a window; return its frames that are trained, oldest first.

    They are those of its history that have labels, and the frame itself. What is remembered of one
    reaches the next without gradient.
    """
    labelled = (n for n, earlier in enumerate(batch.history) if earlier.labels is not None)
    first = next(labelled, len(batch.history))
    if first == len(batch.history):
        return [(batch, unroll(detector, batch))]
    stream = _looked_back(detector, batch.history[:first])
    return [(own, stream.show(detector, own)) for own in (*batch.history[first:], batch)]


def _looked_back(detector: Detector, history: Sequence[Batch]) -> Stream:
    """Return what a detector remembers of frames shown without gradient, in evaluation mode."""
    stream, modes = Stream(), [(module, module.training) for module in detector.modules()]
    detector.eval()
    with torch.no_grad():
        for earlier in history:
            stream.show(detector, earlier)
    for module, training in modes:
        module.training = training
    return stream
