"""From the batches of a teacher to the encoded targets of whole shards."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from bevcask.cache.encoded import Encoded
from bevcask.cache.quantize import encode_targets
from bevcask.detectors.base import Batch
from bevcask.detectors.memory import Stream
from bevcask.extraction.host import HostCopies, Mark
from bevcask.extraction.steps import Step
from bevcask.targets.spec import TargetSpec
from bevcask.teachers.base import Teacher, memory_in


def encoded_shards(
    teacher: Teacher,
    specs: Sequence[TargetSpec],
    batches: Iterable[tuple[Step, Batch]],
    device: torch.device,
) -> Iterator[tuple[int, dict[str, list[Encoded[Any]]]]]:
    """Yield (shard, encoded targets by name) as the teacher completes them, on the host.

    A target comes in the pieces that the teacher's batches made of it: joining them would keep the
    device waiting. A shard whose copies are still on their way is yielded behind the next batch.
    """
    copies = HostCopies(device)
    stream, in_order = Stream(), any(spec.tap.in_order for spec in specs)
    parts: dict[int, dict[str, list[Encoded[Any]]]] = defaultdict(lambda: defaultdict(list))
    copied: deque[tuple[int, Mark]] = deque()

    def complete(*, waiting: bool) -> Iterator[tuple[int, dict[str, list[Encoded[Any]]]]]:
        while copied and (waiting or copied[0][1].reached):
            shard, mark = copied.popleft()
            mark.wait()
            yield shard, dict(parts.pop(shard))

    for step, batch in batches:
        own = [spec for spec in specs if spec.view == step.view]
        shown, goes_on = batch.to(device), in_order and not step.view
        if goes_on:
            shown = stream.recall(shown)
        outputs = teacher.targets(shown, [spec.name for spec in own])
        yield from complete(waiting=True)
        if goes_on:
            stream.keep(shown, memory_in(outputs))
        rows_of: dict[int, list[int]] = defaultdict(list)
        for row, shard in enumerate(step.shards):
            if shard is not None:
                rows_of[shard].append(row)
        if not rows_of:
            continue
        boxes = None if batch.labels is None else batch.labels.canonical_boxes
        encoded = encode_targets(outputs, own, boxes, batch.tokens)
        for shard, rows in rows_of.items():
            for name, target in encoded.items():
                whole = len(rows) == len(step.shards)
                parts[shard][name].append(copies.start(target if whole else target.sample(rows)))
        copied.extend((shard, copies.mark()) for shard in step.completes)
        yield from complete(waiting=False)
    yield from complete(waiting=True)
