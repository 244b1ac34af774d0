"""From the batches of a teacher to the encoded targets of whole shards."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from bevcask.cache.layout import Encoded, concatenate
from bevcask.cache.quantize import encode_targets
from bevcask.detectors.base import Batch
from bevcask.extraction.steps import Step
from bevcask.targets.spec import TargetSpec
from bevcask.teachers.base import Teacher


def encoded_shards(
    teacher: Teacher,
    specs: Sequence[TargetSpec],
    batches: Iterable[tuple[Step, Batch]],
    device: torch.device,
) -> Iterator[tuple[int, dict[str, Encoded[Any]]]]:
    """Yield (shard, encoded targets by name) as the teacher completes them."""
    parts: dict[str, list[Encoded[Any]]] = {spec.key: [] for spec in specs}
    for step, batch in batches:
        own = [spec for spec in specs if spec.view == step.view]
        outputs = teacher.targets(batch.to(device), [spec.name for spec in own])
        if not step.kept:
            continue
        boxes = None if batch.labels is None else batch.labels.canonical_boxes
        for name, target in encode_targets(outputs, own, boxes, batch.tokens).items():
            parts[name].append(target)
        if step.completes_shard:
            yield step.shard, {name: concatenate(found) for name, found in parts.items()}
            parts = {name: [] for name in parts}
