"""What a detector reads of a batch is to the bit what loaders normalised on the host before."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from bevcask.config import AugmentConfig
from bevcask.data.augment import draw
from bevcask.data.images import load_image
from bevcask.data.index.frames import Frames
from bevcask.data.samples import SampleReader, collate
from bevcask.detectors.base import MEAN_RGB, STD_RGB, Batch, Inputs

SIZE_HW = (56, 96)
TURNED = AugmentConfig(resize=(0.0, 0.1), crop=True, image_flip=True, image_rotation=5.0)
AUGMENTS = {
    "clean": None,
    "turned": TURNED,
    "coloured": TURNED.model_copy(update={"photometric": True}),
    "masked": TURNED.model_copy(update={"grid_mask": 0.6}),
    "both": TURNED.model_copy(update={"photometric": True, "grid_mask": 0.6}),
}


def on_the_host(
    frames: Frames, token: str, augment: AugmentConfig | None, view: int
) -> npt.NDArray[np.float32]:
    """The loader's formula of old: planes, times 1 / std, minus mean / std, times the mask."""
    scale_3 = (1 / np.array(STD_RGB)).astype(np.float32)
    offset_3 = (-np.array(MEAN_RGB) / np.array(STD_RGB)).astype(np.float32)
    row, index = frames.row(token), frames.index
    sizes = [(int(h), int(w)) for h, w in index["frame_image_size"][row]]
    drawn = draw(augment, 5, token, view, sizes, SIZE_HW)
    out_VCHW = np.empty((6, 3, *SIZE_HW), np.float32)
    for camera, transform in enumerate(drawn.images):
        path = frames.root / index["frame_image"][row, camera].decode()
        image: npt.NDArray[Any] = load_image(path, sizes[camera], transform)
        if drawn.colours:
            image = drawn.colours[camera].apply(image)
        for channel, plane_HW in enumerate(cv2.split(image)):
            np.multiply(plane_HW, scale_3[channel], out=out_VCHW[camera, channel])
            out_VCHW[camera, channel] += offset_3[channel]
    if drawn.grid_mask is not None:
        out_VCHW *= drawn.grid_mask.at(SIZE_HW).astype(np.float32)
    return out_VCHW


@pytest.mark.parametrize("name", AUGMENTS)
def test_images_are_normalised_as_they_were_on_the_host(tiny_frames: Frames, name: str) -> None:
    reader = SampleReader(tiny_frames, Inputs(image_size_HW=SIZE_HW), AUGMENTS[name], 5)
    batch = collate([reader.read(token, 1) for token in tiny_frames.tokens[:4]])
    assert batch.images_BVCHW is not None
    coloured = name in ("coloured", "both")
    assert batch.images_BVCHW.dtype == (torch.float32 if coloured else torch.uint8)
    before = batch.images_BVCHW.clone()
    found = batch.to("cpu").normalised()
    assert found.is_contiguous()
    for own, token in zip(found, tiny_frames.tokens, strict=False):
        wanted = on_the_host(tiny_frames, token, AUGMENTS[name], 1)
        np.testing.assert_array_equal(own, wanted)
    assert torch.equal(batch.images_BVCHW, before)
    hidden_B = None if batch.shown_BHW is None else (~batch.shown_BHW).flatten(1).any(1)
    if name in ("masked", "both"):
        assert hidden_B is not None
        assert hidden_B.tolist().count(True) in (1, 2, 3)  # of four, some have no mask
    else:
        assert hidden_B is None


def test_a_detector_brings_constants_of_its_own() -> None:
    images = torch.randint(256, (2, 6, 3, 4, 5), dtype=torch.uint8)
    batch = Batch(tokens=["a", "b"], bev_aug_B44=torch.eye(4).repeat(2, 1, 1), images_BVCHW=images)
    mean, std = (103.5, 116.3, 123.7), (1.0, 2.0, 4.0)
    mean_311, std_311 = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (mean, std))
    wanted = (images.double() - mean_311) / std_311
    torch.testing.assert_close(batch.normalised(mean, std), wanted.float(), atol=3e-5, rtol=0)
    batch.shown_BHW = torch.zeros((2, 4, 5), dtype=torch.bool)
    batch.shown_BHW[1] = True
    found = batch.normalised(mean, std)
    assert not found[0].any()
    torch.testing.assert_close(found[1], wanted[1].float(), atol=3e-5, rtol=0)


@pytest.mark.gpu
def test_cuda_normalises_to_the_bit_as_the_host() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 16, 16).repeat(2, 6, 3, 1, 1)
    batch = Batch(tokens=["a", "b"], bev_aug_B44=torch.eye(4).repeat(2, 1, 1), images_BVCHW=images)
    assert torch.equal(batch.to("cuda").normalised().cpu(), batch.normalised())
