"""FD3D: what it asks for in its two forms, what it accepts, and how it says no."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from bevcask.cache.layout import check_spec
from bevcask.config import AugmentConfig, StoreConfig
from bevcask.detectors.blocks.query_decoder import QueryDecoder
from bevcask.errors import ConfigError, TargetMismatchError
from bevcask.methods import build_method
from bevcask.methods.adapters import Restore
from bevcask.methods.fd3d import FD3D
from bevcask.targets.align import Align
from bevcask.targets.plan import plan
from bevcask.targets.spec import TapInfo, TargetSpec
from contracts.method import MethodContract
from methods.fd3d_cases import FROZEN, QUERY_TAPS, TRAINED, TRUTH, bev
from methods.focaldistiller_cases import FINE, values
from methods.test_focaldistiller_fit import PAPER_FINE, paper
from methods.test_laws import with_settings

LEVELS = [f"image.level{i}" for i in range(4)]
QUERIES = ["query.reads", "query.places", "query.scores", "query.values"]


def asked(case: MethodContract, **settings: Any) -> dict[str, str]:
    method = build_method({**case.section, **settings})
    return {need.tap: str(need.region) for need in method.needs() if need.tap not in LEVELS}


@pytest.mark.parametrize(
    ("case", "settings", "bev_region", "others"),
    [
        (TRAINED, {}, "all", []),
        (TRAINED, {"boxes_by": "truth", "masked": 0.0}, "all", []),
        (TRAINED, {"generative_bev": 0.0, "focal": 0.0, "masked": 0.0}, "all", []),
        (FROZEN, {}, "all", [*QUERIES, "head.boxes"]),
        (FROZEN, {"generative_bev": 0.0}, "focal 0.8 m", [*QUERIES, "head.boxes"]),
        (FROZEN, {"focal": 0.0}, "all", ["head.boxes"]),
        (TRUTH, {}, "focal 0.8 m + foreground +0 m", QUERIES),
        (TRUTH, {"masked": 0.0}, "foreground +0 m", QUERIES),
        (TRUTH, {"generate_over": "everywhere"}, "all", QUERIES),
        (TRUTH, {"focal": 0.0, "generative_bev": 0.0, "masked": 0.0}, None, []),
    ],
)  # fmt: skip
def test_what_each_form_asks_for(
    case: MethodContract, settings: dict[str, Any], bev_region: str | None, others: list[str]
) -> None:
    found = asked(case, **settings)
    assert found.pop("bev.encoder", None) == bev_region
    assert list(found) == others


@pytest.mark.parametrize(
    "settings",
    [
        {"generative_bev": 0.0, "focal": 0.0, "masked": 0.0},
        {"generative_image": 0.0, "channelwise": 0.0},
        {"generative_bev": 0.0, "masked": 0.0},
        {"focal": 0.0, "channelwise": 0.0},
    ],
)
@pytest.mark.parametrize("case", [TRAINED, TRUTH], ids=["trained", "truth"])
def test_nothing_is_built_or_read_for_terms_of_weight_zero(
    case: MethodContract, settings: dict[str, Any]
) -> None:
    method, step = with_settings(case, **settings).build(), case.step()
    assert isinstance(method, FD3D)
    step.student = {name: step.student[name] for name in method.student_taps()}
    step.targets = {need.tap: step.targets[need.tap] for need in method.needs()}
    losses = step.run(method)
    torch.stack(list(losses.values())).sum().backward()
    assert all(own.grad is not None for own in method.parameters())
    silent = {name.replace("generative_image", "level0/generative") for name in settings}
    found = set(values(losses))
    assert not found & silent
    assert ("level2/generative" in found) == ("generative_image" not in settings)
    assert ("level2/channelwise" in found) == ("channelwise" not in settings)
    assert ("bev/generative" in found) == ("generative_bev" not in settings)
    assert ("bev/focal" in found) == ("focal" not in settings)
    assert ("bev/masked" in found) == ("masked" not in settings)


def test_generators_are_those_of_mgd() -> None:
    """3x3, ReLU, 3x3 to the teacher's channels; the BEV one is a restore net first."""
    method = TRAINED.build()
    assert isinstance(method, FD3D)
    first, relu, last = method.generate["level0"]  # type: ignore[misc]
    assert (first.in_channels, first.out_channels, first.kernel_size) == (2, 3, (3, 3))
    assert isinstance(relu, nn.ReLU)
    assert (last.in_channels, last.out_channels, last.kernel_size) == (3, 3, (3, 3))
    restore, relu, last = method.generate["bev"]  # type: ignore[misc]
    assert isinstance(restore, Restore)
    assert isinstance(relu, nn.ReLU)
    assert (last.in_channels, last.out_channels) == (4, 4)
    assert restore is not method.restore


def test_the_trained_head_is_that_of_the_leftover_code() -> None:
    config = build_method({"type": "fd3d"}).settings  # type: ignore[union-attr]
    assert isinstance(config, FD3D.Config)
    assert (config.queries, config.layers, config.heads, config.points) == (900, 6, 8, 4)
    method = TRAINED.build()
    assert isinstance(method, FD3D)
    assert method.head is not None
    decoder = method.head.decoder
    assert isinstance(decoder, QueryDecoder)
    assert decoder.low_3.tolist() == pytest.approx([-6.4, -6.4, -5.0])
    assert decoder.high_3.tolist() == pytest.approx([6.4, 6.4, 3.0])
    dropped = [own.p for own in decoder.modules() if isinstance(own, nn.Dropout)]
    assert dropped
    assert set(dropped) == {0.0}
    assert FROZEN.build().head is None  # type: ignore[union-attr]


def test_plan_at_published_size() -> None:
    """Spec 2.3: a frozen head's readings take some 6 MB, against 10 (int8) of the dense map."""
    rows = 6 * 900
    queries = {
        "query.reads": TapInfo("query.reads", "query_set", (rows, 256)),
        "query.places": TapInfo("query.places", "query_places", (rows, 8 * 4 * 3)),
        "query.scores": TapInfo("query.scores", "query_set", (rows, 10), nonnegative=True),
        "query.values": TapInfo("query.values", "query_set", (6 * 256, 257)),
        "head.boxes": TapInfo("head.boxes", "box_set", (300, 11)),
    }
    taps = {**paper(PAPER_FINE), **queries}
    needs = build_method({"type": "fd3d", "head": "frozen", "boxes_by": "truth"}).needs()
    chosen = plan(needs, taps, 1, StoreConfig(), None)
    size = {name: own / 1e6 for name, own in chosen.bytes_per_frame.items()}
    assert size["query.reads"] == pytest.approx(2.76, abs=0.01)
    assert size["query.places"] == pytest.approx(2.07, abs=0.01)
    assert size["query.scores"] == pytest.approx(0.11, abs=0.01)
    assert size["query.values"] == pytest.approx(0.79, abs=0.01)
    for spec in chosen.specs:
        check_spec(spec)
    flipped = plan(needs, taps, 1, StoreConfig(), AugmentConfig(bev_flip_x=True)).specs
    kinds = {spec.name: spec.alignment for spec in flipped}
    assert (kinds["query.places"], kinds["query.reads"]) == ("aligned", "approximate")


def shaped(name: str, *shape: int) -> dict[str, TapInfo]:
    return {name: replace(QUERY_TAPS[name], shape=shape)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (shaped("query.reads", 10, 5), r"'query.reads' \(layers x queries, 4\), got \(8, 5\) and"),
        (shaped("query.values", 9, 5), r"'query.values' must be \(layers x 4, 4 \+ 1\)"),
        (shaped("query.values", 8, 4), r"'query.values' must be \(layers x 4, 4 \+ 1\)"),
        (shaped("query.scores", 9, 10), "must be as many, and divide by 2 layers; got 10, 10, 9"),
        (shaped("query.values", 12, 5), "divide by 3 layers; got 10, 10, 10"),
        (shaped("query.places", 10, 15), "places: 15 columns do not divide by 2 heads of triples"),
        ({"bev.encoder": bev(5, FINE)}, "heads: 5 channels of 'bev.encoder' do not part in 2"),
    ],
)
def test_stored_queries_that_do_not_fit(changes: dict[str, TapInfo], said: str) -> None:
    taps = {**FROZEN.teacher, **changes}
    specs = {name: TargetSpec(tap, "float32") for name, tap in taps.items()}
    with pytest.raises(TargetMismatchError, match=said):
        build_method(FROZEN.section).build(FROZEN.student, specs)


def test_a_teacher_without_query_taps_is_told_of_the_other_head() -> None:
    specs = {name: TargetSpec(tap, "float32") for name, tap in TRAINED.teacher.items()}
    with pytest.raises(TargetMismatchError, match=r"method\.head=trained asks the teacher for no"):
        build_method(FROZEN.section).build(FROZEN.student, specs)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "compat"}, "never released"),
        ({"blank": [0.7, 0.6]}, "blank must be 0 <= low <= high < 1"),
        ({"generative_image": 0, "generative_bev": 0, "focal": 0}, "method=focaldistiller"),
        ({"head": "borrowed"}, "trained, frozen"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_method({"type": "fd3d", **settings})


def test_boxes_need_calibrated_images() -> None:
    step = TRAINED.step()
    step.align = Align.identity(2)
    with pytest.raises(TargetMismatchError, match="calibration of its cameras"):
        step.run(TRAINED.build())
