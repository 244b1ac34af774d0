"""A detector and its checkpoint as teacher."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from bevcask.cache.identity import check_identity
from bevcask.catalog import resolve
from bevcask.config import Config as AnyConfig
from bevcask.config import NativeTeacherConfig
from bevcask.detectors import find_detector
from bevcask.detectors.base import Batch, Detections, Detector, Inputs, Output
from bevcask.detectors.file_families import family_of
from bevcask.detectors.memory import Policy, unroll
from bevcask.detectors.weights import identify, load_weights, read_tensors
from bevcask.errors import ConfigError, TargetMismatchError
from bevcask.geometry import CLASSES
from bevcask.registry import suggest
from bevcask.targets.spec import TapInfo
from bevcask.teachers.base import MEMORY, Teacher, of_one_frame
from bevcask.teachers.reckoning import half_precision, identity, prepare, reckoning

if TYPE_CHECKING:
    from bevcask.cache.reader import Cache

_log = logging.getLogger(__name__)


class NativeTeacher(Teacher):
    """A detector, ours or mmdet3d's, frozen: evaluation mode, inference mode, no gradient."""

    Config = NativeTeacherConfig

    def __init__(self, config: NativeTeacherConfig, seed: int) -> None:
        super().__init__(config, seed)
        self._plugin, self._config = find_detector(config.detector, "teacher.detector")
        self._type = str(config.detector["type"])
        self._checkpoint = config.checkpoint
        self._trust = config.trust_checkpoint
        self._reckons = config
        self._detector: Detector | None = None
        self._inputs = replace(self._plugin.inputs(self._config), depth=False, trained=1)
        self._memory = _policy(config, self._inputs)
        if self._memory == "window" and config.history is not None:
            self._inputs = replace(self._inputs, history=config.history)

    @classmethod
    def claims(cls, config: AnyConfig) -> dict[str, Any]:
        own = cast(NativeTeacherConfig, config)
        said: dict[str, Any] = {}
        if own.detector:
            plugin, architecture = find_detector(own.detector, "teacher.detector")
            said["config"] = plugin.identity(architecture)
            said["type"] = f"native/{own.detector['type']}"
        given = {key for key in ("precision", "deterministic") if key in own.model_fields_set}
        if given:
            said["reckoning"] = {key: getattr(own, key) for key in sorted(given)}
        if own.checkpoint != "random":
            path = Path(resolve("checkpoint", own.checkpoint))
            tensors: Mapping[str, Tensor] = read_tensors(path, own.trust_checkpoint)
            if own.detector and _is_published(tensors, str(own.detector["type"])):
                tensors = plugin(architecture).adopt(tensors)  # what a cache is made with
            said["weights"] = identify(tensors)
        return said

    @classmethod
    def matches(cls, config: AnyConfig, cache: "Cache") -> None:
        super().matches(config, cache)
        own = cast(NativeTeacherConfig, config)
        asked = {"policy": own.memory, "history": own.history, "parts": own.parts}
        if own.parts == 1 and "parts" not in cache.fingerprint.get("memory", {}):
            asked["parts"] = None  # whole scenes go without saying
        said = {key: value for key, value in asked.items() if value is not None}
        if said:
            check_identity(cache, {"memory": said})

    @property
    def memory(self) -> Policy:
        return self._memory

    @property
    def parts(self) -> int:
        return cast(NativeTeacherConfig, self.config).parts or 1

    def taps(self) -> Mapping[str, TapInfo]:
        return self._plugin.describe_taps(self._config)

    def inputs(self) -> Inputs:
        return self._inputs

    @property
    def detector(self) -> Detector:
        """The network, on the CPU until `load` moves it."""
        if self._detector is None:
            self._detector = self._build().eval().requires_grad_(False)
        return self._detector

    def _build(self) -> Detector:
        if self._checkpoint != "random":
            detector = self._plugin(self._config)
            load_weights(detector, Path(resolve("checkpoint", self._checkpoint)), self._trust)
            return detector
        _log.warning(
            "teacher.checkpoint=random: weights drawn from seed %d. Good for trying things out, "
            "useless as a teacher.",
            self.seed,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self._plugin(self._config)

    def load(self, device: torch.device | str) -> None:
        prepare(self._reckons, torch.device(device).type)
        self.detector.to(device)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "type": f"native/{self._type}",
            "config": self._plugin.identity(self._config),
            "weights": identify(self.detector.state_dict()),
            "classes": list(CLASSES),
            "reckoning": identity(self._reckons),
            "checkpoint": f"random, seed {self.seed}" if self._checkpoint == "random" else "file",
        }

    def weights(self) -> dict[str, Tensor]:
        return dict(self.detector.state_dict())

    def published(self) -> dict[str, Tensor]:
        return self.detector.published()

    def head(self) -> dict[str, Tensor]:
        return self.detector.head_weights()

    def __call__(self, batch: Batch, names: Collection[str]) -> dict[str, Tensor]:
        taps = self.taps()
        unknown = [name for name in names if name not in taps]
        if unknown:
            raise TargetMismatchError(
                f"teacher has no tap {unknown[0]!r}.{suggest(unknown[0], taps)} "
                f"Known: {', '.join(taps)}."
            )
        alone = all(of_one_frame(taps[name]) for name in names)
        run = unroll if self._memory == "window" and not alone else _alone
        own, device = self._reckons, batch.bev_aug_B44.device.type
        with torch.inference_mode(), reckoning(own.precision, own.deterministic, device):
            with half_precision(own.precision, device):
                output = run(self.detector, batch)
            found = {name: output.taps[name] for name in names if taps[name].kind != "box_set"}
            missing = len(found) < len(names)
            if self.remembers:
                found |= {MEMORY + name: value for name, value in output.memory.items()}
            if missing:
                detections = self.detector.decode(output)
                for name in names:
                    if taps[name].kind == "box_set":
                        found[name], found[f"{name}.count"] = pad_boxes(
                            detections, taps[name].shape
                        )
        assert not any(module.training for module in self.detector.modules())
        return found


def _alone(detector: Detector, batch: Batch) -> Output:
    output: Output = detector(batch)
    return output


def _is_published(tensors: Mapping[str, Tensor], kind: str) -> bool:
    """Tell whether tensors have published names that detectors of this type read."""
    family = family_of(tensors)
    return family is not None and kind in family.types


def _policy(config: NativeTeacherConfig, inputs: Inputs) -> Policy:
    """Return how memory goes on, as the configuration and the detector say.

    Raises:
        ConfigError: they do not go together.
    """
    kind = config.detector["type"]
    if not inputs.memory:
        if config.memory or config.history or config.parts:
            raise ConfigError(
                f"teacher.memory={config.memory}, teacher.history={config.history}, "
                f"teacher.parts={config.parts}: {kind} does not remember. Leave them out."
            )
        return "none"
    if config.memory != "window":
        if config.history is not None:
            raise ConfigError(
                f"teacher.history={config.history} is the length of a window, and memory goes on "
                "through whole scenes. Say teacher.memory=window, or leave it out."
            )
        return "scene"
    if config.parts is not None:
        raise ConfigError(
            f"teacher.parts={config.parts} cuts scenes, and memory begins anew before each window. "
            "Say teacher.memory=scene, or leave it out."
        )
    if not (config.history or inputs.history):
        raise ConfigError(
            f"teacher.memory=window: {kind} does not say how many frames a window has. Say "
            "teacher.history=N."
        )
    return "window"


def pad_boxes(detections: list[Detections], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Pack detections of B samples into (B, N, 11) float32 and a count (B,) int64.

    Columns: the nine box fields, score, class; rows best first, zeros behind the count.
    """
    rows = [
        torch.cat([d.boxes_N9, d.scores_N[:, None], d.classes_N[:, None].float()], dim=1)
        for d in detections
    ]
    packed = rows[0].new_zeros((len(rows), *shape))
    for sample, row in enumerate(rows):
        packed[sample, : len(row)] = row[: shape[0]]
    count = torch.tensor([min(len(row), shape[0]) for row in rows], dtype=torch.int64)
    return packed, count
