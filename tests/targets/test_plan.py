"""The plan: every unmet need at once, exact bytes, nominal sizes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bevcask.config import AugmentConfig, DatasetConfig, StoreConfig
from bevcask.errors import ConfigError, PlanError
from bevcask.geometry import CLASSES, Grid
from bevcask.methods import build_method
from bevcask.targets.kinds import kind_of
from bevcask.targets.map_kinds import DenseBEV
from bevcask.targets.plan import nominal_frames, plan
from bevcask.targets.spec import Need, Region, TapInfo, TargetSpec

GRID = Grid.square(51.2, 0.8)
TAPS = {
    tap.name: tap
    for tap in (
        TapInfo("bev.block1", "dense_bev", (128, 128, 128), GRID, nonnegative=True),
        TapInfo("bev.block2", "dense_bev", (256, 64, 64), GRID.coarsen(2), nonnegative=True),
        TapInfo("bev.neck", "dense_bev", (384, 128, 128), GRID, nonnegative=True),
        TapInfo("bev.signed", "dense_bev", (2, 128, 128), GRID),
        TapInfo("head.heatmap", "heatmap", (10, 128, 128), GRID, True, CLASSES),
        TapInfo("head.boxes", "box_set", (500, 11), classes=CLASSES),
        TapInfo("image.fpn0", "image_feature", (6, 4, 8, 22), depends_on_images=True),
    )
}
AUTO = StoreConfig()
NECK = Need("neck", "bev.neck", "dense_bev", normaliser="all")


def distillbev_needs() -> list[Need]:
    return build_method({"type": "distillbev"}).needs()


def test_paper_size_distillbev_to_the_byte() -> None:
    result = plan(distillbev_needs(), TAPS, 28130, AUTO, None)
    size = result.bytes_per_frame
    assert size == {
        "bev.block1": 128 * 128 * 128 + 128 * 4,
        "bev.block2": 256 * 64 * 64 + 256 * 4,
        "bev.neck": 384 * 128 * 128 + 384 * 4,
        "head.heatmap": 10 * 128 * 128 + 10 * 4 + 128 * 128 // 8,
        "head.boxes": 500 * 11 * 4 + 8,
    }
    assert result.total_bytes == sum(size.values()) * 28130
    assert result.bytes_by_target["bev.neck"] == size["bev.neck"] * 28130


def test_float16_is_the_published_footprint() -> None:
    """DistillBEV maps at float16: 18.87 MB a frame, 530.9 GB over nuScenes train."""
    needs = [need for need in distillbev_needs() if need.kind == "dense_bev"]
    result = plan(needs, TAPS, 28130, StoreConfig(codec="float16"), None)
    dense = sum(size for name, size in result.bytes_by_target.items() if name != "head.boxes")
    assert dense / 28130 == pytest.approx(18.87e6, rel=1e-3)
    assert dense == pytest.approx(530.9e9, rel=1e-3)
    [boxes] = [spec for spec in result.specs if spec.name == "head.boxes"]
    assert boxes.codec == "float32"


def test_boxes_come_along_once() -> None:
    assert [spec.name for spec in plan([], TAPS, 1, AUTO, None).specs] == ["head.boxes"]
    need = Need("boxes", "head.boxes", "box_set")
    assert [spec.name for spec in plan([need], TAPS, 1, AUTO, None).specs] == ["head.boxes"]
    headless = {"bev.neck": TAPS["bev.neck"]}
    assert [spec.name for spec in plan([NECK], headless, 1, AUTO, None).specs] == ["bev.neck"]


def test_every_problem_in_one_message() -> None:
    needs = [
        Need("a", "bev.nekc", "dense_bev"),
        Need("b", "head.heatmap", "dense_bev"),
        Need("c", "bev.neck", "dense_bev", Region("confident", 0.1), normaliser="all"),
        Need("d", "head.boxes", "box_set", Region("confident", 0.1)),
    ]
    with pytest.raises(PlanError) as caught:
        plan(needs, TAPS, 1, AUTO, None)
    message = str(caught.value)
    assert "need 'a': the teacher has no tap 'bev.nekc'" in message
    assert message.count("It has: bev.block1, bev.block2, bev.neck, bev.signed, head.boxes") == 1
    assert "'head.heatmap' is a heatmap, expected a dense_bev" in message
    assert "bev.block1, bev.block2, bev.neck, bev.signed" in message
    assert "need 'c': its sums run over all cells" in message
    assert "a box_set cannot be stored on region 'confident'" in message
    assert message.count("\n- ") == 4


def test_what_holds_of_several_image_features_is_said_once() -> None:
    taps = {f"level{n}": replace(TAPS["image.fpn0"], name=f"level{n}") for n in range(3)}
    needs = [Need(f"own{n}", f"level{n}", "image_feature") for n in range(3)]
    with pytest.raises(PlanError, match="changes with the pixels") as caught:
        plan(needs, taps, 1, AUTO, AugmentConfig(image_flip=True))
    told = "need 'own0' (level0), need 'own1' (level1), need 'own2' (level2): an image feature"
    assert str(caught.value).count("\n- ") == 1
    assert told in str(caught.value)


def test_image_features_under_image_augmentation() -> None:
    need = Need("fpn", "image.fpn0", "image_feature")
    flip = AugmentConfig(image_flip=True)
    with pytest.raises(PlanError, match=r"'fpn'.*changes with the pixels"):
        plan([need], TAPS, 1, AUTO, flip)
    allowed = plan([need], TAPS, 1, AUTO, flip.model_copy(update={"approximate": True}))
    assert allowed.specs[0].alignment == "approximate"
    assert (
        plan([need], TAPS, 1, AUTO, AugmentConfig(bev_rotation=0.3)).specs[0].alignment == "exact"
    )


def test_alignment_follows_the_augmentation() -> None:
    for augment, expected in (
        (None, "exact"),
        (AugmentConfig(bev_flip_x=True, image_flip=True), "exact"),
        (AugmentConfig(bev_rotation=0.3), "aligned"),
    ):
        result = plan([NECK], TAPS, 1, AUTO, augment)
        assert {spec.name: spec.alignment for spec in result.specs} == {
            "bev.neck": expected,
            "head.boxes": "exact",
        }


def test_codec_choice_is_checked() -> None:
    signed = Need("s", "bev.signed", "dense_bev")
    assert plan([signed], TAPS, 1, AUTO, None).specs[0].codec == "int8"
    with pytest.raises(PlanError, match=r"bev.signed: has negative values.*int8"):
        plan([signed], TAPS, 1, StoreConfig(codec="uint8"), None)
    boxes = plan([], TAPS, 1, StoreConfig(codec="int8"), None)
    assert boxes.specs[0].codec == "float32"


def test_single_targets_have_codecs_of_their_own() -> None:
    signed = Need("s", "bev.signed", "dense_bev")
    store = StoreConfig(codec="float16", codecs=("bev.signed:int6",))
    specs = {spec.name: spec.codec for spec in plan([signed, NECK], TAPS, 1, store, None).specs}
    assert specs["bev.signed"] == "int6"
    assert specs["bev.neck"] == "float16"
    with pytest.raises(PlanError, match=r"store\.codecs names 'bev\.sined'.*mean 'bev\.signed'"):
        plan([signed], TAPS, 1, StoreConfig(codecs=("bev.sined:int6",)), None)
    with pytest.raises(PlanError, match="cannot be stored as int3"):
        plan([signed], TAPS, 1, StoreConfig(codecs=("bev.signed:int3",)), None)


def test_a_kind_may_know_few_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DenseBEV, "codecs", ("float16", "float32"))
    with pytest.raises(PlanError, match=r"dense_bev cannot be stored as int8.*auto, float16"):
        plan([NECK], TAPS, 1, StoreConfig(codec="int8"), None)


def test_needs_of_one_tap_share_a_target() -> None:
    confident = Need("mask", "head.heatmap", "heatmap", Region("confident", 0.1))
    whole = Need("scores", "head.heatmap", "heatmap")
    for needs, region, codec in (
        ([confident], confident.region, "uint8"),
        ([confident, confident], confident.region, "uint8"),
        ([whole], Region(), "float16"),
        ([confident, whole], Region(), "float32"),
        ([confident, replace(confident, region=Region("confident", 0.2))], Region(), "float32"),
    ):
        result = plan(needs, TAPS, 1, AUTO, None)
        spec = result.specs[0]
        assert (spec.region, spec.codec) == (region, codec)
        assert result.roles["head.heatmap"] == tuple(need.role for need in needs)


def test_images_are_stored_at_the_size_that_is_read() -> None:
    (spec,) = plan([fpn(4, 11)], TAPS, 1, AUTO, None, "it").specs[:1]
    assert (spec.tap.shape, spec.said_HW) == ((6, 4, 4, 11), (8, 22))
    assert kind_of(spec.tap).bytes_per_frame(spec) == 6 * 4 * 4 * 11 * 2
    for as_said in (fpn(8, 22), fpn(16, 44)):  # what is smaller is no smaller for being enlarged
        (spec,) = plan([as_said], TAPS, 1, AUTO, None).specs[:1]
        assert (spec.tap.shape, spec.said_HW) == ((6, 4, 8, 22), None)


def fpn(rows: int, columns: int) -> Need:
    return Need("level", "image.fpn0", "image_feature", size_HW=(rows, columns))


def test_sizes_that_cannot_be_stored() -> None:
    flat = Need("neck", "bev.neck", "dense_bev", size_HW=(64, 64))
    with pytest.raises(PlanError) as caught:
        plan([flat, fpn(4, 11), replace(fpn(8, 22), role="other")], TAPS, 1, AUTO, None)
    assert "need 'neck': only an image feature has a size to be brought to" in str(caught.value)
    assert "need 'level', need 'other': 'image.fpn0' is asked for at several sizes" in str(
        caught.value
    )


def test_wrong_description_is_found_before_any_data() -> None:
    taps = {"bev.neck": replace(TAPS["bev.neck"], shape=(384, 64, 64))}
    with pytest.raises(PlanError, match="does not fit its grid"):
        plan([NECK], taps, 1, AUTO, None)
    taps = {"bev.neck": replace(TAPS["bev.neck"], grid=None)}
    with pytest.raises(PlanError, match="needs a grid"):
        plan([NECK], taps, 1, AUTO, AugmentConfig(bev_flip_x=True))


def test_plan_is_plain_json() -> None:
    result = plan(distillbev_needs(), TAPS, 7, AUTO, None)
    data = json.loads(json.dumps(result.to_dict()))
    assert data == result.to_dict()
    assert data["frames"] == 7
    assert data["total_bytes"] == sum(row["bytes"] for row in data["targets"])
    row = next(row for row in data["targets"] if row["name"] == "head.heatmap")
    assert row["region"] == "confident > 0.1"
    assert row["roles"] == ["confidence"]
    for spec in result.specs:
        assert TargetSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_memory_is_of_the_clean_frames_and_images_of_every_view() -> None:
    """A scene is shown once, as it is; a window as often as there are views."""
    image, boxes = TAPS["image.fpn0"], replace(TAPS["head.boxes"], depends_on_images=True)
    query = TapInfo("query.last", "query_set", (4, 8), depends_on_images=True)
    needs = [Need(t.kind, t.name, t.kind) for t in (image, query)]
    viewed = [f"image.fpn0.view{n}" for n in (1, 2)]
    moves = [f"image_transform.view{n}" for n in (1, 2)]
    found = {}
    for context in ("scene", "window of 3"):
        taps = {t.name: replace(t, context=context) for t in (query, boxes)} | {image.name: image}
        result = plan(needs, taps, 10, StoreConfig(views=2), None)
        found[context] = [spec.key for spec in result.specs], result.teacher_passes(window=4)
    assert found["scene"] == ([*viewed, "query.last", *moves, "head.boxes"], 10 * 3)
    states = [f"query.last.view{n}" for n in (1, 2)]
    assert found["window of 3"] == ([*viewed, *states, *moves, "head.boxes"], 10 * 3 * 4)


def test_nominal_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no data/nuscenes here

    def nominal(**changes: object) -> int | None:
        return nominal_frames(DatasetConfig.model_validate(changes))

    mini = {"version": "v1.0-mini"}
    assert nominal() == 28130
    assert nominal(split="val") == 6019
    assert nominal(split="mini_train", **mini) == 323
    assert nominal(split="mini_val", **mini) == 81
    assert nominal(limit=24) == 24
    for changes, word in (
        ({"split": "toy"}, "split 'toy' of dataset.version=v1.0-trainval"),
        ({"scenes": ["a"]}, "named scenes"),
        (mini, r"split 'train' of dataset.version=v1.0-mini.*mini_train of v1.0-mini"),
        ({"version": "v1.0-trainvall"}, r"dataset.version=v1.0-trainvall"),
        ({"root": str(tmp_path / "typo")}, r"typo: no such folder. Correct it; or leave it out"),
    ):
        with pytest.raises(ConfigError, match=word):
            nominal(**changes)
    assert nominal(root=str(tmp_path), split="toy") is None
