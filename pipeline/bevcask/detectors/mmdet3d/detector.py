"""Any mmdet3d detector as a bevcask detector."""

import copy
import functools
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from bevcask.config import Config as AnyConfig
from bevcask.detectors.base import Batch, Detections, Detector, Inputs, Output
from bevcask.detectors.mmdet3d import recipe as recipes
from bevcask.detectors.mmdet3d.border import MAX_BOXES, from_mmdet3d, to_mmdet3d
from bevcask.detectors.mmdet3d.head import export_center_head
from bevcask.detectors.mmdet3d.recipe import Mmdet3dConfig, Recipe
from bevcask.detectors.mmdet3d.sparse import make_exact
from bevcask.detectors.mmdet3d.taps import Reader
from bevcask.detectors.weights import NETWORK
from bevcask.errors import ConfigError
from bevcask.geometry import CLASSES
from bevcask.targets.spec import TapInfo

_PROBE_POINTS = 2000


class Mmdet3dDetector(Detector):
    """A model built from an mmdet3d config; its own preprocessing, loss and decoding.

    mmdet3d computes losses and boxes inside its forward, so `forward` decides by mode: in training
    `preds` holds the losses (the batch must have labels), in evaluation the boxes.
    """

    Config = Mmdet3dConfig

    def __init__(self, config: Mmdet3dConfig) -> None:
        super().__init__()
        self.recipe = _recipe(config.model_dump_json())
        self.network = _build(self.recipe)
        self.network.init_weights()
        make_exact(self.network)
        self._reader = Reader(self.network, self.recipe)

    @classmethod
    def inputs(cls, config: AnyConfig) -> Inputs:
        return _recipe(config.model_dump_json()).inputs

    @classmethod
    def describe_taps(cls, config: AnyConfig) -> Mapping[str, TapInfo]:
        return _describe(config.model_dump_json())

    @classmethod
    def identity(cls, config: AnyConfig) -> dict[str, Any]:
        return recipes.identity(cast(Mmdet3dConfig, config))

    def adopt(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Take mmdet3d's names, and sparse kernels as spconv 1 and mmcv laid them out."""
        own = self.state_dict()
        named = {NETWORK + name.removeprefix(NETWORK): tensor for name, tensor in tensors.items()}
        for name in named.keys() & own.keys():
            if named[name].ndim == 5 and named[name].shape != own[name].shape:
                turned = named[name].permute(4, 0, 1, 2, 3)  # (..., in, out) -> (out, ..., in)
                if turned.shape == own[name].shape:
                    named[name] = turned
        return named

    def head_weights(self) -> dict[str, Tensor]:
        return export_center_head(self.network, self.recipe)

    def forward(self, batch: Batch) -> Output:
        data = self.network.data_preprocessor(to_mmdet3d(batch, self.recipe), self.training)
        if self.training:
            assert batch.labels is not None, "mmdet3d computes its losses in the forward pass"
            preds = self._losses(data)
        else:
            said = self.network.predict(data["inputs"], data["data_samples"])
            found = from_mmdet3d(said, batch, self.recipe)
            preds = {f"{index}": _rows(own) for index, own in enumerate(found)}
        return Output(self._reader.read(len(batch.tokens)), preds)

    def _losses(self, data: dict[str, Any]) -> dict[str, Tensor]:
        """Return mmdet3d's losses by name, lists summed; other figures it reports are left out."""
        if self.recipe.monocular:
            raise ConfigError(
                f"{self.recipe.model['type']} trains on 2D boxes and projected centres, which "
                "bevcask's labels do not have. Train it with mmdet3d; it can be a teacher here."
            )
        losses = self.network.loss(data["inputs"], data["data_samples"])
        return {
            name.replace(".", "_"): sum(t.mean() for t in (value if _many(value) else [value]))
            for name, value in losses.items()
            if "loss" in name
        }

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Return what the training forward computed; in evaluation mode, run it for this batch."""
        if self.training:
            return output.preds
        data = self.network.data_preprocessor(to_mmdet3d(batch, self.recipe), False)
        return self._losses(data)

    def decode(self, output: Output) -> list[Detections]:
        """Return the boxes of an evaluation forward."""
        assert "0" in output.preds, "mmdet3d decodes boxes in evaluation mode only"
        return [
            Detections(rows[:, :9], rows[:, 9], rows[:, 10].long())
            for rows in output.preds.values()
        ]


def _many(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _rows(found: Detections) -> Tensor:
    columns = [found.boxes_N9, found.scores_N[:, None], found.classes_N[:, None].float()]
    return torch.cat(columns, dim=1)


@functools.lru_cache(maxsize=16)
def _recipe(config: str) -> Recipe:
    return recipes.read(Mmdet3dConfig.model_validate_json(config))


def _build(recipe: Recipe) -> Any:
    """Build the model section.

    Raises:
        ConfigError: mmdet3d refuses it.
    """
    from mmdet3d.registry import MODELS
    from mmengine.config import ConfigDict

    try:
        return MODELS.build(ConfigDict(copy.deepcopy(recipe.model)))  # building changes it
    except Exception as error:  # parts are classes of anybody
        raise ConfigError(
            f"mmdet3d cannot build model {recipe.model['type']}: {type(error).__name__}: {error}"
        ) from error


@functools.lru_cache(maxsize=16)
def _describe(config: str) -> Mapping[str, TapInfo]:
    """Find shapes by one forward of an unfilled network on a made-up frame."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        detector = Mmdet3dDetector(Mmdet3dConfig.model_validate_json(config)).eval()
        recipe = detector.recipe
        taps = detector(_made_up(recipe)).taps
    boxes = TapInfo(
        "head.boxes",
        "box_set",
        (MAX_BOXES, 11),
        classes=CLASSES,
        depends_on_images=bool(recipe.cameras),
    )
    return detector._reader.describe(taps) | {"head.boxes": boxes}


def _made_up(recipe: Recipe) -> Batch:
    """Return one frame of scattered points and grey images, cameras in a ring."""
    x_min, y_min, x_max, y_max = recipe.extent or (-50.0, -50.0, 50.0, 50.0)
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor([[x_min, y_min, -3.0, 0.0, 0.0], [x_max, y_max, 1.0, 255.0, 0.5]])
    points_P5 = low + (high - low) * torch.rand((_PROBE_POINTS, 5), generator=generator)
    batch = Batch(tokens=["made up"], bev_aug_B44=torch.eye(4)[None], points=[points_P5])
    if recipe.inputs.image_size_HW is None:
        return batch
    height, width = recipe.inputs.image_size_HW
    batch.images_BVCHW = torch.full((1, 6, 3, height, width), 128, dtype=torch.uint8)
    batch.intrinsics_BV33 = torch.tensor(
        [[[[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]]]]
    ).repeat(1, 6, 1, 1)
    batch.image_aug_BV33 = torch.eye(3).repeat(1, 6, 1, 1)
    batch.camera_to_lidar_BV44 = torch.stack([_looking(view) for view in range(6)])[None]
    return batch


def _looking(view: int) -> Tensor:
    """Return camera to LiDAR of a camera at the origin that looks out level, 60 degrees a view."""
    c, s = math.cos(view * math.pi / 3), math.sin(view * math.pi / 3)
    matrix = torch.eye(4)
    matrix[:3, :3] = torch.tensor([[s, 0.0, c], [-c, 0.0, s], [0.0, -1.0, 0.0]])
    return matrix
