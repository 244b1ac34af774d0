"""Published BEVFormer files load whole, under their own names, or are refused by name."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bevcask.detectors.bevformer import BEVFormer
from bevcask.detectors.bevformer_names import adopt_published, published_name
from bevcask.errors import CheckpointError
from detectors.bevformer_golden import OURS
from detectors.golden import FOLDER, MISSING
from detectors.small_bevformer import shipped, small_bevformer

VARIANTS = {
    "base": ("bevformer_base", 1089, 69_034_947, 68_707_193),
    "small": ("bevformer_small", 1001, 59_463_619, 59_135_865),
    "tiny": ("bevformer_tiny_published", 643, 33_521_157, 33_245_627),
    "focal_small": ("bevformer_focal_small", 1013, 58_924_675, 58_809_913),
    "distillbev_r50": ("bevformer_r50", 731, 48_238_085, 48_238_075),
}
CODE_WEIGHTS = 10  # a parameter there, never trained; a buffer here


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_published_tensor_has_its_place(variant: str) -> None:
    if not (FOLDER / "bevformer_names.npz").is_file():
        pytest.skip(MISSING)
    name, entries, parameters, trainable = VARIANTS[variant]
    with torch.device("meta"):
        detector = BEVFormer(shipped(name))
        given = names_of(variant)
    own = detector.state_dict()
    adopted = detector.adopt(given)
    assert len(given) == len(own) == entries
    assert {key: own[key].shape for key in own} == {key: t.shape for key, t in adopted.items()}
    assert sum(p.numel() for p in detector.parameters()) + CODE_WEIGHTS == parameters
    trained = {published_name(n): p for n, p in detector.named_parameters() if p.requires_grad}
    data = np.load(FOLDER / "bevformer_names.npz")
    flags = zip(data[f"{variant}/names"], data[f"{variant}/trainable"], strict=True)
    assert trained.keys() == {str(key) for key, flag in flags if flag}
    assert sum(p.numel() for p in trained.values()) == trainable


def names_of(variant: str) -> dict[str, Tensor]:
    """Return tensors of the published names, shapes and dtypes."""
    data = np.load(FOLDER / "bevformer_names.npz")
    rows = zip(*(data[f"{variant}/{part}"] for part in ("names", "shapes", "dtypes")), strict=True)
    return {
        str(name): torch.empty(
            [int(side) for side in str(shape).split("x") if side],
            dtype=getattr(torch, str(dtype).rpartition(".")[2]),
        )
        for name, shape, dtype in rows
    }


@pytest.fixture
def own() -> dict[str, Tensor]:
    return dict(small_bevformer().state_dict())


@pytest.fixture
def published(own: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {
        published_name(name): tensor.flatten(1) if name.endswith("value.weight") else tensor
        for name, tensor in own.items()
    }
    cameras = "pts_bbox_head.transformer.cams_embeds"
    found[cameras] = found[cameras][[1, 2, 0, 4, 3, 5]]
    return found


def equal(found: dict[str, Tensor], own: dict[str, Tensor]) -> bool:
    return found.keys() == own.keys() and all(torch.equal(found[name], own[name]) for name in own)


def test_a_file_of_its_own_is_left_alone(own: dict[str, Tensor]) -> None:
    assert equal(adopt_published(own, own), own)


def test_cameras_come_in_our_order(published: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    assert equal(adopt_published(published, own), own)
    rows = published["pts_bbox_head.transformer.cams_embeds"]
    assert torch.equal(rows[OURS], own["encoder.camera_embeddings"])


def test_older_files(published: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Without step counters, and with the older name of the offset convolutions."""
    older = {
        name.replace("conv2.conv_offset", "conv2_offset"): tensor
        for name, tensor in published.items()
        if not name.endswith("num_batches_tracked")
    }
    assert len(older) < len(published)
    assert equal(adopt_published(older, own), own)


def test_the_student_of_a_focaldistiller_file(
    published: dict[str, Tensor], own: dict[str, Tensor]
) -> None:
    distiller = {f"student.{name}": tensor for name, tensor in published.items()}
    distiller |= {f"teacher.{name}": tensor + 1 for name, tensor in published.items()}
    distiller |= {"bev_restore_layers.0.weight": torch.ones(1)}
    distiller |= {"teacher_img_neck_fpn_convs_0_conv": torch.ones(1)}
    assert equal(adopt_published(distiller, own), own)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pts_bbox_head.bev_embedding.weight": None}, "bev_embedding.weight is missing"),
        ({"pts_bbox_head.aux.weight": torch.ones(1)}, "pts_bbox_head.aux.weight has no place"),
        (
            {"pts_bbox_head.positional_encoding.row_embed.weight": torch.ones(99, 8)},
            r"row_embed.weight should have shape \(10, 8\), has \(99, 8\)",
        ),
        ({"pts_bbox_head.code_weights": torch.ones(8)}, r"code_weights should have shape \(10,\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    change: dict[str, Tensor | None],
    said: str,
    published: dict[str, Tensor],
    own: dict[str, Tensor],
) -> None:
    changed = {n: t for n, t in {**published, **change}.items() if t is not None}
    with pytest.raises(CheckpointError, match=said):
        adopt_published(changed, own)
