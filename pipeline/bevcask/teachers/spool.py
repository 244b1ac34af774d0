"""A teacher that ran elsewhere: what it said lies in a folder (docs/spool.md)."""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bevcask.cache.encoded import valid_entries
from bevcask.cache.layout import entry_axis
from bevcask.config import Config as AnyConfig
from bevcask.config import PathText
from bevcask.detectors.base import Batch, Inputs
from bevcask.errors import DataError, TargetMismatchError
from bevcask.fingerprint import canonical as plain
from bevcask.fingerprint import digest
from bevcask.geometry import CLASSES
from bevcask.registry import suggest
from bevcask.spool.manifest import Manifest, read_manifest
from bevcask.spool.reading import canonical
from bevcask.targets.kinds import ROUNDING, kind_of
from bevcask.targets.pixels import PIXELS
from bevcask.targets.spec import TapInfo
from bevcask.teachers.base import Teacher

_log = logging.getLogger(__name__)
_READERS = 4
_LOOK_SECONDS = 0.5


class SpoolConfig(AnyConfig):
    """Where it lies, and whether it is still being filled."""

    folder: PathText = Field(description="folder that a recorder fills, with its manifest.json")
    follow: bool = Field(
        False, description="wait for samples until the recorder says that it has finished"
    )
    consume: bool = Field(
        False, description="remove the samples of a cache once it is sealed; the manifest stays"
    )


class SpoolTeacher(Teacher):
    """Says what was recorded of a sample; it has no network and needs no sensor data."""

    Config = SpoolConfig

    def __init__(self, config: AnyConfig, seed: int) -> None:
        super().__init__(config, seed)
        own = cast(SpoolConfig, config)
        self._folder, self._follow = Path(own.folder), own.follow
        self._read: Manifest | None = None
        self._device: torch.device | str = "cpu"
        self._sleep: Callable[[float], None] = time.sleep

    @classmethod
    def claims(cls, config: AnyConfig) -> dict[str, Any]:
        return cls(config, 0).fingerprint()

    @property
    def manifest(self) -> Manifest:
        """What the spool says of itself."""
        if self._read is None:
            self._read = read_manifest(self._folder)
        return self._read

    def taps(self) -> Mapping[str, TapInfo]:
        return {name: self.manifest.tap(name) for name in self.manifest.taps}

    def inputs(self) -> Inputs:
        return Inputs()

    def offers(self) -> Mapping[str, TapInfo]:
        return {**self.taps(), PIXELS.name: PIXELS}

    def load(self, device: torch.device | str) -> None:
        self._device = device

    def fingerprint(self) -> dict[str, Any]:
        said = self.manifest.model_dump(mode="json", exclude={"recorder", "format", "layout"})
        teacher = said.pop("teacher")
        return {
            "type": "spool",
            "config": plain(said) | {"teacher": plain(teacher)},
            "weights": teacher.get("weights") or digest(plain(said)),
            "classes": list(CLASSES),
            "checkpoint": "elsewhere",
        }

    def sealed(self, tokens: Collection[str]) -> None:
        if not cast(SpoolConfig, self.config).consume:
            return
        for token in tokens:
            self._file(token).unlink(missing_ok=True)
        _log.info("%s: the samples of %d frames are removed.", self._folder, len(tokens))

    def __call__(self, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
        known = self.manifest.taps
        for name in names:
            if name not in known:
                raise TargetMismatchError(
                    f"the spool has no tap {name!r}.{suggest(name, known)} Known: "
                    f"{', '.join(known)}."
                )
        with ThreadPoolExecutor(_READERS) as pool:
            samples = list(pool.map(lambda token: self._sample(token, list(names)), batch.tokens))
        found: dict[str, Tensor] = {}
        for name, tap in self.taps().items():
            if name not in names:
                continue
            own = [sample[name] for sample in samples]
            padded = kind_of(tap).padded
            stacked = torch.zeros if padded else torch.empty
            dtype = torch.int64 if tap.kind == "track_ids" else torch.float32
            found[name] = stacked((len(own), *tap.shape), dtype=dtype)
            axis = entry_axis(tap)
            for row, values in zip(found[name], own, strict=True):
                size = values.shape[axis]
                valid_entries(row, size, axis).copy_(values)  # converted on the way
            if padded:
                found[f"{name}.count"] = torch.tensor([rows.shape[axis] for rows in own])
        return {name: value.to(self._device) for name, value in found.items()}

    def _sample(self, token: str, names: list[str]) -> dict[str, Tensor]:
        path = self._path(token)
        try:
            with safe_open(path, framework="pt") as file:
                recorded = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{path}: damaged or not of this manifest ({error}). Remove the file and record "
                "the sample again."
            ) from error
        for name in names:
            self._require_shape(path, name, recorded[name])
            self._require_probabilities(path, name, recorded[name])
        return canonical(recorded, self.manifest, names)

    def _require_probabilities(self, path: Path, name: str, value: Tensor) -> None:
        said = self.manifest.taps[name]
        if said.kind not in ("heatmap", "occupancy") or not value.numel():
            return
        low, high = float(value.min()), float(value.max())
        if said.values == "probabilities" and (low < -ROUNDING or high > 1 + ROUNDING):
            raise DataError(
                f"{path}: tap {name!r}: the manifest says probabilities, values run from {low:.4g} "
                f'to {high:.4g}. If they are logits, say taps.{name}.values: "logits".'
            )

    def _require_shape(self, path: Path, name: str, value: Tensor) -> None:
        said = self.manifest.taps[name]
        expected, got = said.shape, tuple(value.shape)
        if said.kind == "box_set":
            expected, got = (len(self.manifest.boxes.columns),), got[1:]
        elif kind_of(tap := self.manifest.tap(name)).padded and len(got) == len(expected):
            axis = entry_axis(tap)
            if got[axis] <= expected[axis]:  # fewer than the most
                got = (*got[:axis], expected[axis], *got[axis + 1 :])
        if got != expected:
            raise DataError(
                f"{path}: tap {name!r} is {tuple(value.shape)}, the manifest says "
                f"{said.shape}. It was recorded by another command than the manifest is of."
            )

    def _file(self, token: str) -> Path:
        return self._folder / "samples" / f"{token}.safetensors"

    def _path(self, token: str) -> Path:
        """Return the file of a sample, once it is there.

        Raises:
            DataError: it is not there, and nobody will bring it.
        """
        path = self._file(token)
        while not path.is_file():
            finished = (self._folder / "finished.json").is_file()
            if finished or not self._follow:
                if path.is_file():
                    break
                number = sum(1 for _ in path.parent.glob("*.safetensors"))
                hint = (
                    "It has finished: select frames that it holds (dataset.split, dataset.scenes)."
                    if finished
                    else "teacher.follow=true waits for a recorder that is still at work."
                )
                raise DataError(
                    f"{path.parent}: nothing was recorded of sample {token}; {number} samples are "
                    f"there. {hint}"
                )
            self._sleep(_LOOK_SECONDS)
        return path
