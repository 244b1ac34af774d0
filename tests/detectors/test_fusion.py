"""What both fusion detectors refuse and share."""

import time

import pytest
import torch

from bevcask.config import build_config
from bevcask.detectors.base import Detector
from bevcask.detectors.fusion import FusionConfig
from bevcask.errors import ConfigError
from bevcask.geometry import Grid
from bevcask.groups import load_group
from contracts.detector import boxes_of_all_classes, labels_of
from detectors.scenes import camera_batch, scan

BOTH = ("bevfusion", "bevsimdet")


@pytest.mark.parametrize("name", [f"{own}_tiny" for own in BOTH])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size_HW": (150, 288)}, "must divide by 32"),
        ({"half_extent": 52.0}, "must divide by 4"),
        ({"lift": {"depth_range": (5.0, 2.0)}}, "lift: .*depth_range"),
        ({"lift": {"channelz": 8}}, r"lift\.channelz: unknown key. Did you mean 'channels'"),
        ({"depth_weight": -1.0}, "depth_weight"),
        ({"head": {"channelz": 8}}, "Did you mean 'channels'"),
    ],
)
def test_configs_that_cannot_work_are_refused(
    name: str, change: dict[str, object], words: str
) -> None:
    section = {**load_group("detector", name), **change}
    with pytest.raises(ConfigError, match=words):
        build_config("detector", section, "student.detector")


@pytest.mark.parametrize("size", ["tiny", "swint"])
def test_teacher_and_student_meet_on_every_map_but_the_lidars(size: str) -> None:
    taps, heads = [], []
    for name in BOTH:
        plugin, config = build_config("detector", load_group("detector", f"{name}_{size}"), "x")
        assert issubclass(plugin, Detector)
        taps.append(plugin.describe_taps(config))
        with torch.device("meta"):
            state = plugin(config).state_dict()  # type: ignore[call-arg]
        heads.append({k: v.shape for k, v in state.items() if k.startswith("head.")})
    teacher, student = taps
    assert set(teacher) - set(student) == {"bev.lidar"}
    assert set(student) - set(teacher) == {"bev.simulated"}
    for name in set(teacher) & set(student):
        assert student[name] == teacher[name], name
    assert student["bev.simulated"].grid == teacher["bev.lidar"].grid
    assert heads[0] == heads[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_a_step_of_the_tiny_one_takes_a_core_less_than_two_seconds(name: str) -> None:
    plugin, config = build_config("detector", load_group("detector", f"{name}_tiny"), "x")
    detector = plugin(config).train()
    batch = camera_batch(2, 0, (160, 288))
    batch.points = [scan(sample).repeat(8, 1) for sample in range(2)]
    batch.labels = labels_of(boxes_of_all_classes(0), boxes_of_all_classes(1))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        output = detector(batch)
        total = torch.stack(list(detector.loss(output, batch).values())).sum()
        total.backward()
        seconds.append(time.process_time() - start)
        assert bool(total.isfinite())
    described = plugin.describe_taps(config)  # type: ignore[attr-defined]
    assert all(tuple(own.shape[1:]) == described[tap].shape for tap, own in output.taps.items())
    assert min(seconds) < 2


def test_swin_trains_in_the_place_of_a_resnet() -> None:
    changed = {"backbone": "swin_t", "depth_weight": 0.0, "image_size_HW": (64, 96)}
    section = {**load_group("detector", "bevsimdet_tiny"), **changed}
    plugin, config = build_config("detector", section, "student.detector")
    torch.manual_seed(0)
    detector = plugin(config).train()
    batch = camera_batch(1, 0, (64, 96))
    batch.labels = labels_of(boxes_of_all_classes(0))
    with torch.autocast("cpu", torch.bfloat16):
        output = detector(batch)
        torch.stack(list(detector.loss(output, batch).values())).sum().backward()
    assert tuple(output.taps["image.fpn0"].shape) == (1, 6, 64, 8, 12)
    learns = [float(own.grad.abs().sum()) > 0 for own in detector.backbone.parameters()]
    assert all(learns)


def test_shared_defaults_are_the_sizes_of_simdistill() -> None:
    config = FusionConfig()
    assert config.grid == Grid.square(54.0, 0.6)
    assert config.grid.shape_YX == (180, 180)
    assert (config.stride, config.image_size_of_cells) == (8, (32, 88))
    assert config.lift.factor == 2
    assert (config.lift.bin_size, config.lift.depth_bins) == (0.5, 118)
