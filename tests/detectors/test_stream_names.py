"""Published StreamPETR and RayDN files load whole by their own names, or are refused by name."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from bevcask.detectors.raydn import RayDN, RayDNConfig
from bevcask.detectors.stream_config import StreamConfig
from bevcask.detectors.stream_family import StreamDetector
from bevcask.detectors.stream_names import published_start
from bevcask.detectors.streampetr import StreamPETR
from bevcask.errors import CheckpointError
from detectors.small_stream import SMALL_PETR, SMALL_RAY, shipped, small

HEAD = "pts_bbox_head."
LAYER = f"{HEAD}transformer.decoder.layers"
Shapes = dict[str, tuple[int, ...]]


def wb(name: str, *weight: int) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def bn(name: str, channels: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{p}": (channels,) for p in parts} | {f"{name}.num_batches_tracked": ()}


def resnet(blocks: tuple[int, ...], bottlenecks: bool) -> Shapes:
    found: Shapes = {"img_backbone.conv1.weight": (64, 3, 7, 7)} | bn("img_backbone.bn1", 64)
    given = 64
    for stage, count in enumerate(blocks, start=1):
        width = 32 * 2**stage
        out = 4 * width if bottlenecks else width
        for index in range(count):
            at = f"img_backbone.layer{stage}.{index}"
            sizes = [(width, given, 1), (width, width, 3), (out, width, 1)]
            if not bottlenecks:
                sizes = [(width, given, 3), (width, width, 3)]
            for number, (made, read, side) in enumerate(sizes, start=1):
                found[f"{at}.conv{number}.weight"] = (made, read, side, side)
                found |= bn(f"{at}.bn{number}", made)
            if index == 0 and (bottlenecks or stage > 1):
                found[f"{at}.downsample.0.weight"] = (out, given, 1, 1)
                found |= bn(f"{at}.downsample.1", out)
            given = out
    return found


def head(queries: int, propagated: int, code: int) -> Shapes:
    found: Shapes = {f"{HEAD}code_weights": (10,), f"{HEAD}match_costs": (10,)}
    found |= {f"{HEAD}pc_range": (6,), f"{HEAD}reference_points.weight": (queries, 3)}
    found |= {f"{HEAD}pseudo_reference_points.weight": (propagated, 3)}
    for copy in range(6):
        at = f"{HEAD}cls_branches.{copy}"
        found |= wb(f"{at}.0", 256, 256) | wb(f"{at}.1", 256) | wb(f"{at}.3", 256, 256)
        found |= wb(f"{at}.4", 256) | wb(f"{at}.6", 10, 256)
        at = f"{HEAD}reg_branches.{copy}"
        found |= wb(f"{at}.0", 256, 256) | wb(f"{at}.2", 256, 256) | wb(f"{at}.4", 10, 256)
    found |= wb(f"{HEAD}query_embedding.0", 256, 384) | wb(f"{HEAD}query_embedding.2", 256, 256)
    found |= wb(f"{HEAD}time_embedding.0", 256, 256) | wb(f"{HEAD}time_embedding.1", 256)
    for name, width in (
        ("ego_pose_pe", 180),
        ("ego_pose_memory", 180),
        ("spatial_alignment", code),
    ):
        found |= wb(f"{HEAD}{name}.reduce.0", 256, width)
        found |= wb(f"{HEAD}{name}.gamma", 256, 256) | wb(f"{HEAD}{name}.beta", 256, 256)
    return found


def attention(at: str) -> Shapes:
    found: Shapes = {f"{at}.in_proj_weight": (768, 256), f"{at}.in_proj_bias": (768,)}
    return found | wb(f"{at}.out_proj", 256, 256)


def layers(width: int) -> Iterator[tuple[str, Shapes]]:
    for layer in range(6):
        at = f"{LAYER}.{layer}"
        found = attention(f"{at}.attentions.0.attn")
        for norm in range(3):
            found |= wb(f"{at}.norms.{norm}", 256)
        found |= wb(f"{at}.ffns.0.layers.0.0", width, 256)
        yield at, found | wb(f"{at}.ffns.0.layers.1", 256, width)


def streampetr_shapes(queries: int = 300, propagated: int = 128) -> Shapes:
    found = resnet((3, 4, 6, 3), bottlenecks=True) | head(queries, propagated, 8)
    for number, width in enumerate((1024, 2048)):
        found |= wb(f"img_neck.lateral_convs.{number}.conv", 256, width, 1, 1)
    found |= wb("img_neck.fpn_convs.0.conv", 256, 256, 3, 3)
    for name, made in (("cls", 10), ("centerness", 1), ("ltrb", 4), ("center2d", 2)):
        found |= wb(f"img_roi_head.{name}", made, 256, 1, 1)
    for name in ("shared_cls", "shared_reg"):
        found |= wb(f"img_roi_head.{name}.0", 256, 256, 3, 3) | wb(f"img_roi_head.{name}.1", 256)
    found |= {f"{HEAD}position_range": (6,), f"{HEAD}coords_d": (64,)}
    found |= wb(f"{HEAD}position_encoder.0", 1024, 192) | wb(f"{HEAD}position_encoder.2", 256, 1024)
    found |= wb(f"{HEAD}memory_embed.0", 256, 256) | wb(f"{HEAD}memory_embed.2", 256, 256)
    for name in ("conv_reduce", "conv_expand"):
        found |= wb(f"{HEAD}featurized_pe.{name}", 256, 256)
    found |= wb(f"{HEAD}transformer.decoder.post_norm", 256)
    for at, own in layers(2048):
        found |= own | attention(f"{at}.attentions.1.attn")
    return found


def raydn_shapes(blocks: tuple[int, ...], bottlenecks: bool) -> Shapes:
    found = resnet(blocks, bottlenecks) | head(300, 128, 14)
    for number, width in enumerate((512, 1024, 2048) if bottlenecks else (128, 256, 512)):
        found |= wb(f"img_neck.lateral_convs.{number}.conv", 256, width, 1, 1)
    for level in range(4):
        found |= wb(f"img_neck.fpn_convs.{level}.conv", 256, 256, 3, 3)
        for tower in ("cls", "reg"):
            for block in range(2):
                at = f"img_roi_head.multi_level_{tower}_convs.{level}.{block}"
                found |= {f"{at}.conv.weight": (256, 256, 3, 3)} | bn(f"{at}.bn", 256)
        for name, made in (("cls", 10), ("reg", 4), ("obj", 1), ("centers2d", 2)):
            found |= wb(f"img_roi_head.multi_level_conv_{name}.{level}", made, 256, 1, 1)
    for at, own in layers(1024):
        read = f"{at}.attentions.1"
        found |= own | wb(f"{read}.weights_fc", 416, 256) | wb(f"{read}.output_proj", 256, 256)
        found |= wb(f"{read}.learnable_fc", 39, 256) | wb(f"{read}.cam_embed.0", 128, 12)
        found |= wb(f"{read}.cam_embed.2", 256, 128) | wb(f"{read}.cam_embed.4", 256)
    return found


PUBLISHED = {
    "streampetr_r50": (streampetr_shapes(), 591, 37_257_929),
    "streampetr_harmo_r50": (streampetr_shapes(), 591, 37_257_929),
    "streampetr_r50_900q": (streampetr_shapes(644, 256), 591, None),
    "raydn_r50": (raydn_shapes((3, 4, 6, 3), True), 743, 43_291_232),
    "raydn_r34": (raydn_shapes((3, 4, 6, 3), False), 641, 40_379_744),
    "raydn_r18": (raydn_shapes((2, 2, 2, 2), False), 545, 30_271_584),
}
_NOT_TRAINED = ("running_mean", "running_var", "num_batches_tracked")


def kind_of(config: StreamConfig) -> type[StreamDetector]:
    return RayDN if isinstance(config, RayDNConfig) else StreamPETR


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_tensor_has_its_place(name: str) -> None:
    """Names and shapes are those of the table of the releases; constants are not read."""
    shapes, entries, parameters = PUBLISHED[name]
    config = shipped(name)
    with torch.device("meta"):
        detector = kind_of(config)(config)
    own = detector.state_dict()
    given = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    given = {key: value for key, value in given.items() if key not in detector.constants()}
    assert len(shapes) == entries
    adopted = detector.adopt(given)
    assert {key: t.shape for key, t in adopted.items()} == {key: own[key].shape for key in own}
    assert {key: tuple(t.shape) for key, t in detector.published().items()} == shapes
    if parameters is not None:
        copies = {key for key in shapes if "_branches." in key and "_branches.0." not in key}
        counted = shapes.keys() - copies
        sizes = (
            torch.Size(shapes[key]).numel() for key in counted if not key.endswith(_NOT_TRAINED)
        )
        assert sum(sizes) == parameters


@pytest.mark.parametrize("name", ["streampetr_r50", "raydn_r50"])
def test_constants_have_the_published_shapes(name: str) -> None:
    config = shipped(name)
    with torch.device("meta"):
        detector = kind_of(config)(config)
    for key, value in detector.constants().items():
        assert PUBLISHED[name][0][key] == tuple(value.shape), key


@pytest.fixture(params=[SMALL_PETR, SMALL_RAY], ids=["streampetr", "raydn"])
def detector(request: pytest.FixtureRequest) -> StreamDetector:
    return small(request.param)


@pytest.fixture
def published(detector: StreamDetector) -> dict[str, Tensor]:
    """A file of the release: copies of the branches, and the constants."""
    return detector.published()


def equal(found: dict[str, Tensor], own: dict[str, Tensor]) -> bool:
    return found.keys() == own.keys() and all(torch.equal(found[name], own[name]) for name in own)


def test_own_files_and_published_ones(
    detector: StreamDetector, published: dict[str, Tensor]
) -> None:
    own = detector.state_dict()
    assert equal(dict(detector.adopt(own)), own)
    assert equal(dict(detector.adopt(published)), own)


def test_a_published_file_of_half_precision(
    detector: StreamDetector, published: dict[str, Tensor]
) -> None:
    """Its constants are rounded too: -51.2 metres are -51.1875."""
    halves = {n: t.half() if t.is_floating_point() else t for n, t in published.items()}
    found = detector.adopt(halves)
    assert all(
        torch.equal(found[n].float(), own.half().float())
        for n, own in detector.state_dict().items()
    )


def test_the_student_of_a_harmodistill_file(
    detector: StreamDetector, published: dict[str, Tensor]
) -> None:
    raw = {f"student.{name}": tensor for name, tensor in published.items()}
    raw |= {f"teacher.{name}": tensor + 1 for name, tensor in published.items()}
    raw |= {name: torch.ones(1) for name in ("teacher_img_neck", "student_img_neck")}
    raw |= {"distill_losses.loss_fpn.align.weight": torch.ones(1)}
    assert equal(dict(detector.adopt(raw)), detector.state_dict())


def test_what_inference_does_not_need_may_be_missing(
    detector: StreamDetector, published: dict[str, Tensor]
) -> None:
    """The head in the images, constants, and step counters of batch norms."""
    lean = {
        name: tensor
        for name, tensor in published.items()
        if not name.startswith("img_roi_head.") and "num_batches" not in name
    }
    lean = {name: tensor for name, tensor in lean.items() if name not in detector.constants()}
    assert len(lean) < len(published) - 10
    assert equal(dict(detector.adopt(lean)), detector.state_dict())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({f"{HEAD}reference_points.weight": None}, "reference_points.weight is missing"),
        ({f"{HEAD}cls_branches.3.6.bias": None}, "cls_branches.3.6.bias is missing"),
        ({f"{HEAD}aux.weight": torch.ones(1)}, f"{HEAD}aux.weight has no place"),
        (
            {f"{HEAD}pseudo_reference_points.weight": torch.ones(256, 3)},
            r"pseudo_reference_points.weight should have shape \(6, 3\), has \(256, 3\)",
        ),
        (
            {f"{HEAD}reg_branches.2.4.bias": torch.ones(10)},
            r"reg_branches.2.4.bias differs from .*reg_branches.0.4.bias",
        ),
        ({f"{HEAD}code_weights": torch.ones(10)}, r"code_weights should be \[2.0, 2.0, 1.0"),
        (
            {f"{HEAD}pc_range": torch.tensor([-54.0, -54, -5, 54, 54, 3])},
            r"pc_range should be \[-51.2",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    change: dict[str, Tensor | None],
    said: str,
    detector: StreamDetector,
    published: dict[str, Tensor],
) -> None:
    changed = {n: t for n, t in {**published, **change}.items() if t is not None}
    with pytest.raises(CheckpointError, match=said):
        detector.adopt(changed)


def test_half_a_head_in_the_images_is_refused(
    detector: StreamDetector, published: dict[str, Tensor]
) -> None:
    name = next(name for name in published if name.startswith("img_roi_head."))
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        detector.adopt({key: own for key, own in published.items() if key != name})


def test_a_nuimages_detector_starts_the_backbone(detector: StreamDetector) -> None:
    own = {n: t for n, t in detector.state_dict().items() if n.startswith("backbone.")}
    file = own | {"roi_head.bbox_head.fc.weight": torch.ones(1)}
    found = published_start(file, detector)
    assert found is not None
    assert found.keys() == {name for name in own if "num_batches" not in name}
    assert published_start({"conv1.weight": torch.ones(1)}, detector) is None
    with pytest.raises(CheckpointError, match=r"backbone\.conv1\.weight is missing"):
        published_start({n: t for n, t in file.items() if "backbone.conv1" not in n}, detector)
