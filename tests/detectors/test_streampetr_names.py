"""Published StreamPETR and RayDN files load whole, under their names, or are refused by name."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bevcask.detectors.streampetr import RayDN, RayDNConfig, StreamPETR, StreamPETRConfig
from bevcask.detectors.streampetr_names import published_name
from bevcask.errors import CheckpointError
from detectors.bevformer_golden import MISSING
from detectors.small_streampetr import small_raydn, small_streampetr
from detectors.streampetr_golden import MODELS, THERE, Golden

HEAD = "pts_bbox_head."
Small = StreamPETR | RayDN
_2D_OF_STREAMPETR = 2 * (9 * 256 * 256 + 3 * 256) + 17 * 257  # of the head that training has
_2D_OF_RAYDN = 4 * (4 * (9 * 256 * 256 + 2 * 256) + 17 * 257)


def published(detector: Small) -> dict[str, Tensor]:
    """Return what a file of the release holds, the 2D head but for one tensor."""
    given = {published_name(name): own for name, own in detector.state_dict().items()}
    for name in [own for own in given if "_branches.0." in own]:
        for layer in range(1, detector.config.layers):
            given[name.replace("_branches.0.", f"_branches.{layer}.")] = given[name].clone()
    given |= {HEAD + name: own for name, own in detector.constants().items()}
    return given | {"img_roi_head.cls.weight": torch.ones(3)}


@pytest.fixture(params=[small_streampetr, small_raydn])
def detector(request: pytest.FixtureRequest) -> Small:
    made: Small = request.param()
    return made


def equal(found: object, own: dict[str, Tensor]) -> bool:
    assert isinstance(found, dict)
    return found.keys() == own.keys() and all(torch.equal(found[name], own[name]) for name in own)


@pytest.mark.parametrize(
    ("make", "of_2d", "parameters"),
    [
        (lambda: StreamPETR(StreamPETRConfig()), _2D_OF_STREAMPETR, 37_257_929),
        (lambda: RayDN(RayDNConfig()), _2D_OF_RAYDN, 43_291_232),
    ],
)
def test_published_sizes(make: Callable[[], Small], of_2d: int, parameters: int) -> None:
    with torch.device("meta"):
        detector = make()
    own = sum(p.numel() for p in detector.parameters()) + detector.head.starts_P3.numel()
    constants = sum(value.numel() for value in detector.constants().values())
    assert own + constants + of_2d == parameters


@pytest.mark.skipif(not THERE, reason=MISSING)
@pytest.mark.parametrize("model", MODELS)
def test_every_released_name_has_its_place(model: str) -> None:
    golden = Golden(model)
    released = {name for name in golden.published() if not name.startswith("img_roi_head.")}
    # The small golden models have six copies of their branches whatever their layers.
    later = {name for name in released if "_branches." in name and "_branches.0." not in name}
    constants = {HEAD + name for name in golden.detector.constants()}
    places = {published_name(name) for name in golden.detector.state_dict()}
    assert released - later - constants == places


def test_a_file_of_its_own_is_left_alone(detector: Small) -> None:
    own = dict(detector.state_dict())
    assert equal(detector.adopt(own), own)


def test_a_published_file(detector: Small) -> None:
    assert equal(detector.adopt(published(detector)), dict(detector.state_dict()))


def test_constants_and_step_counters_may_be_missing(detector: Small) -> None:
    constants = {HEAD + name for name in detector.constants()}
    given = {
        name: own
        for name, own in published(detector).items()
        if name not in constants and not name.endswith("num_batches_tracked")
    }
    assert len(given) < len(published(detector)) - len(constants)
    assert equal(detector.adopt(given), dict(detector.state_dict()))


def test_the_student_of_a_distillation_file(detector: Small) -> None:
    given = {f"student.{name}": own for name, own in published(detector).items()}
    given |= {f"teacher.{name}": own for name, own in published(detector).items()}
    given |= {
        name: torch.ones(1)
        for name in ("teacher_img_neck", "student_img_neck", "distill_losses.0.weight")
    }
    assert equal(detector.adopt(given), dict(detector.state_dict()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({f"{HEAD}reference_points.weight": None}, "reference_points.weight is missing"),
        ({f"{HEAD}aux.weight": torch.ones(1)}, "pts_bbox_head.aux.weight has no place"),
        (
            {f"{HEAD}reference_points.weight": torch.ones(9, 3)},
            r"reference_points.weight should have shape \(12, 3\), has \(9, 3\)",
        ),
        (
            {f"{HEAD}cls_branches.1.6.bias": torch.ones(10)},
            "cls_branches.1.6.bias differs from that of layer 0",
        ),
        (
            {f"{HEAD}reg_branches.1.9.bias": torch.ones(10)},
            "reg_branches.1.9.bias has no place",
        ),
        (
            {f"{HEAD}pc_range": torch.tensor([-50.0, -50, -5, 50, 50, 3])},
            r"pc_range should be \(-51.2, -51.2, -5, 51.2, 51.2, 3\), is \(-50, -50, -5, 50, 50",
        ),
        ({f"{HEAD}code_weights": torch.ones(8)}, "code_weights should be"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    change: dict[str, Tensor | None], said: str, detector: Small
) -> None:
    changed = {**published(detector), **change}
    with pytest.raises(CheckpointError, match=said):
        detector.adopt({name: own for name, own in changed.items() if own is not None})


def test_depths_of_another_config_are_refused() -> None:
    detector = small_streampetr()
    given = published(detector)
    given[f"{HEAD}coords_d"] = given[f"{HEAD}coords_d"] + 0.01
    with pytest.raises(CheckpointError, match=r"coords_d should be \(1, "):
        detector.adopt(given)


def test_one_detector_does_not_take_the_other(detector: Small) -> None:
    other = small_raydn() if isinstance(detector, StreamPETR) else small_streampetr()
    with pytest.raises(CheckpointError, match=r"; \d+ in all"):
        detector.adopt(published(other))
