"""DistillBEV's options: other false positives, queries, and the Transformer line."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.config import AugmentConfig, StoreConfig
from bevcask.detectors.base import Labels
from bevcask.errors import ConfigError, TargetMismatchError
from bevcask.geometry import Grid, bev_matrix
from bevcask.groups import load_group
from bevcask.methods import build_method
from bevcask.methods.base import Method, Target
from bevcask.methods.distillbev import similarity, squared_gap
from bevcask.methods.regions import claims, component_share, moved_mask
from bevcask.targets.align import Align
from bevcask.targets.plan import plan
from bevcask.targets.spec import TapInfo
from contracts.method import TURN, MethodContract, Step
from methods.distillbev_cases import (
    CHANNELS,
    TERMS,
    WIDE,
    OneLevel,
    delta,
    dense,
    heatmap,
    oracle,
    set_kernel,
    values,
)
from methods.oracle_distillbev import centre, read

QUERIES = 7
LAST: Mapping[str, Any] = {
    "name": "last",
    "student": "query.last",
    "teacher": "query.last",
    "states": 2.0,
    "similarity": 3.0,
    "level": "neck",
}


def query_tap(num: int = QUERIES, channels: int = CHANNELS) -> TapInfo:
    return TapInfo("query.last", "query_set", (num, channels))


class TestQueries(OneLevel):
    section: Mapping[str, Any] = {**OneLevel.section, "queries": [LAST]}
    student: Mapping[str, TapInfo] = {**OneLevel.student, "query.last": query_tap()}
    teacher: Mapping[str, TapInfo] = {**OneLevel.teacher, "query.last": query_tap()}

    def perfect(self, step: Step) -> Step:
        return replace(
            step, student={name: step.targets[name].values.clone() for name in step.student}
        )

    perfect_terms = (*OneLevel.perfect_terms, "states", "similarity_last")

    def test_student_out_of_sight(self) -> None:
        """Queries lie nowhere, so only their states are still compared."""
        away = bev_matrix()
        away[0, 3] = 1e4
        found = self.step(matrix=away).run(self.build())
        assert float(found.pop("distillbev/last/states").detach()) > 0
        assert all(float(loss.detach()) == 0 for loss in found.values())


def by(claimant: str, **section: Any) -> OneLevel:
    """Return the one-level case with other false positives."""
    case = OneLevel()
    case.section = {**OneLevel.section, "false_positives_by": claimant, **section}
    case.student = {**OneLevel.student, "head.heatmap": heatmap(WIDE)}
    return case


@pytest.mark.parametrize("claimant", ["student", "student_alone", "union"])
def test_false_positives_against_the_oracle(claimant: str) -> None:
    """A heatmap that says the claim itself gives the oracle the same cells."""
    case = by(claimant)
    method, step = case.build(), case.step(2, 5, seed=1)
    own = step.student["head.heatmap"].detach().clamp(min=0) * 0.2
    step.student["head.heatmap"] = own
    said = torch.rand((2, 10, 16, 16), generator=torch.Generator().manual_seed(0)) * 0.11
    confident = said.amax(1) > 0.1
    assert 0.1 < confident.float().mean() < 0.9
    assert 0.1 < (own.amax(1) > 0.1).float().mean() < 0.9
    step.targets["head.heatmap"] = Target(said, confident)
    alone = own * ~confident[:, None]
    claimed = {"student": own, "student_alone": alone, "union": torch.maximum(own, said)}[claimant]
    as_told = replace(step, targets={**step.targets, "head.heatmap": Target(claimed)})
    expected, found = oracle(method, as_told), values(step.run(method))
    for term in TERMS:
        assert expected[term] > 0
        assert found[term] == pytest.approx(expected[term], rel=2e-5), term


def test_claims_by_hand() -> None:
    teacher = torch.tensor([[[True, True, False, False]]])
    student = torch.tensor([[[True, False, True, False]]])
    for claimant, expected in (
        ("student_alone", [False, False, True, False]),
        ("union", [True, True, True, False]),
    ):
        assert claims(claimant, teacher, student).flatten().tolist() == expected  # type: ignore[arg-type]
    assert torch.equal(claims("teacher", teacher, None), teacher)
    assert torch.equal(claims("student", None, student), student)


def test_claims_ask_for_no_more_than_they_read() -> None:
    for claimant, need, tap in (
        ("teacher", True, False),
        ("student", False, True),
        ("student_alone", True, True),
        ("union", True, True),
    ):
        method = build_method(by(claimant).section)
        assert ("confidence" in {own.role for own in method.needs()}) == need
        assert ("head.heatmap" in method.student_taps()) == tap


def test_masks_move_with_the_frame() -> None:
    """A single cell survives a flip to the bit, and half a cell's shift as one of two."""
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[0, 3, 5] = True
    flip = Align(torch.as_tensor(bev_matrix(flip_x=True))[None])
    assert moved_mask(mask, flip, WIDE, WIDE)[0].nonzero().tolist() == [[3, 10]]
    shift = bev_matrix()
    shift[0, 3] = 0.4
    moved = moved_mask(mask, Align(torch.as_tensor(shift)[None]), WIDE, WIDE)
    assert moved[0].nonzero().tolist() == [[3, 5]]
    mask[:] = True
    assert not moved_mask(mask, Align(torch.as_tensor(shift)[None]), WIDE, WIDE)[0, :, -1].any()


def test_components_by_hand() -> None:
    """Cells join along edges: an L of three, a lone cell at its corner, a sample of none."""
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    for row, column in ((0, 0), (1, 0), (1, 1), (2, 2)):
        mask[0, row, column] = True
    expected = torch.zeros(2, 4, 4)
    expected[0, [0, 1, 1], [0, 0, 1]] = 1 / 3
    expected[0, 2, 2] = 1
    assert torch.equal(component_share(mask), expected)


@pytest.mark.parametrize(("scale", "parts"), [("count", 1), ("component", 2)])
def test_each_component_weighs_as_much_as_all_cells_did(scale: str, parts: int) -> None:
    """Constant maps, S = 2 and T = 0, two claimed rows: attention and kappa are 1."""
    case = by("teacher", false_positive_scale=scale)
    method = case.build()
    set_kernel(method, delta())
    confident = torch.zeros(1, 16, 16, dtype=torch.bool)
    confident[0, 2, :10] = confident[0, 9, :3] = True
    targets = {
        "bev.neck": Target(torch.zeros(1, CHANNELS, 16, 16)),
        "head.heatmap": Target(torch.zeros(1, 10, 16, 16), confident),
    }
    nothing = [torch.zeros(0, 9)]
    labels = Labels(nothing, [torch.zeros(0, dtype=torch.int64)], nothing)
    student = {"bev.neck": torch.full((1, CHANNELS, 16, 16), 2.0)}
    terms = values(method(student, targets, labels, Align.identity(1), 0.0))
    assert terms["false_positive"] == pytest.approx(parts * 6e-2 * 4 * CHANNELS)


def test_a_student_without_a_heatmap_is_refused() -> None:
    case = by("union")
    with pytest.raises(TargetMismatchError, match=r"the student has no tap 'head\.heatmap'"):
        build_method(case.section).build(OneLevel.student, case.specs())


def test_states_by_hand() -> None:
    """Gaps 1 and 2 in a sample of two queries; the second sample's second query does not count."""
    near = torch.zeros(2, 2, 3)
    near[0, 0, 0], near[0, 1, 2], near[1, 1, 1] = 1.0, 2.0, 9.0
    teacher = Target(torch.zeros(2, 2, 3), None, torch.tensor([2, 1]))
    assert float(squared_gap(near, teacher)) == 2.5
    assert float(squared_gap(near, Target(teacher.values))) == pytest.approx((1 + 4 + 81) / 2)


def test_only_the_sum_of_queries_is_needed() -> None:
    """sum_q <F, q> = <F, sum_q q>, as the dot product is linear; both against the loop."""
    generator = torch.Generator().manual_seed(2)
    map_BCYX = torch.randn((2, 32, 6, 5), generator=generator)
    queries_BQC = torch.randn((2, 90, 32), generator=generator)
    one_by_one = sum(
        torch.einsum("bcyx,bc->byx", map_BCYX.double(), queries_BQC[:, q].double())
        for q in range(90)
    )
    assert isinstance(one_by_one, Tensor)
    scale = float(one_by_one.abs().max())
    for target in (Target(queries_BQC), Target(queries_BQC.sum(1, keepdim=True))):
        gap = (similarity(map_BCYX, target) - one_by_one).abs().max()
        assert float(gap) <= 1e-5 * scale
    padded = Target(torch.cat([queries_BQC, queries_BQC], 1), None, torch.tensor([90, 90]))
    torch.testing.assert_close(
        similarity(map_BCYX, padded), similarity(map_BCYX, Target(queries_BQC))
    )


def test_a_target_of_one_row_that_holds_the_sum_serves() -> None:
    alone = {**LAST, "states": 0.0}
    losses = []
    step = TestQueries().step(seed=5)
    said = step.targets["query.last"].values
    for target in (said, said.sum(1, keepdim=True)):
        case = TestQueries()
        case.section = {**OneLevel.section, "queries": [alone]}
        case.teacher = {**OneLevel.teacher, "query.last": query_tap(target.shape[1])}
        step.targets["query.last"] = Target(target)
        losses.append(values(step.run(case.build())))
    assert losses[0]["similarity_last"] > 0
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_similarity_by_hand() -> None:
    """S = (1, 1), sum of queries (2, 0); T = (3, 0), sum (1, 5): gap 2 - 3, everywhere."""
    case = TestQueries()
    case.student = {**case.student, "bev.neck": dense("bev.neck", 2, WIDE)}
    case.teacher = {**case.teacher, "bev.neck": dense("bev.neck", 2, WIDE)}
    for side in (case.student, case.teacher):
        side["query.last"] = query_tap(2, 2)  # type: ignore[index]
    method, step = case.build(), case.step(1, 0, matrix=TURN)
    step.student["bev.neck"] = torch.ones(1, 2, 16, 16)
    step.student["query.last"] = torch.tensor([[[1.5, 1.0], [0.5, -1.0]]])
    step.targets["bev.neck"] = Target(
        torch.tensor([3.0, 0.0])[None, :, None, None].expand(1, 2, 16, 16)
    )
    step.targets["query.last"] = Target(torch.tensor([[[1.0, 2.0], [0.0, 3.0]]]))
    found = values(step.run(method))
    assert found["similarity_last"] == pytest.approx(3.0)
    assert found["states"] == pytest.approx(2 * (0.25 + 1 + 0.25 + 16))


def test_query_terms_against_loops() -> None:
    """Under a turn, with rows behind the count: cell by cell, query by query."""
    case, plain = TestQueries(), (WIDE.x_min, WIDE.y_min, WIDE.cell, WIDE.num_x, WIDE.num_y)
    method, step = case.build(), case.step(2, 3, seed=6, matrix=TURN)
    counts = [QUERIES, 4]
    step.targets["query.last"].count_B = torch.tensor(counts)
    near, own = (step.student[tap].detach().double() for tap in ("bev.neck", "query.last"))
    far, said = (step.targets[tap].values.double() for tap in ("bev.neck", "query.last"))
    matrix = step.align.matrices_B44[0]
    states = similar = 0.0
    for b, count in enumerate(counts):
        for q, c in itertools.product(range(count), range(CHANNELS)):
            states += float(own[b, q, c] - said[b, q, c]) ** 2 / 2
        gaps = []
        for row, column in itertools.product(range(16), range(16)):
            x, y, _, _ = matrix @ [*centre(plain, row, column), 0.0, 1.0]
            read_C = [read(channel.numpy(), plain, x, y) for channel in near[b]]
            if read_C[0] is None:
                continue
            here = sum(
                s * float(own[b, q, c]) for q in range(QUERIES) for c, s in enumerate(read_C)
            )
            there = sum(float(far[b, :, row, column] @ said[b, q]) for q in range(count))
            gaps.append((here - there) ** 2)
        assert 100 < len(gaps) < 256
        similar += sum(gaps) / len(gaps) / 2
    found = values(step.run(method))
    assert found["states"] == pytest.approx(2.0 * states, rel=1e-5)
    assert found["similarity_last"] == pytest.approx(3.0 * similar, rel=1e-5)


@pytest.mark.parametrize("term", ["last/states", "neck/similarity_last"])
def test_gradients_of_query_terms_by_finite_differences(term: str) -> None:
    method, step = TestQueries().build().double(), TestQueries().step(1, 3, seed=6, matrix=TURN)
    for target in step.targets.values():
        target.values = target.values.double()
    taps = ("bev.neck", "query.last")
    starts = [step.student[tap].detach().double().requires_grad_() for tap in taps]

    def loss(*maps: Tensor) -> Tensor:
        student = dict(zip(taps, maps, strict=True))
        return replace(step, student=student).run(method)[f"distillbev/{term}"]

    assert torch.autograd.gradcheck(loss, tuple(starts), fast_mode=True, atol=1e-6)
    slopes = torch.autograd.grad(loss(*starts), starts, allow_unused=True)
    reached = {tap for tap, slope in zip(taps, slopes, strict=True) if slope is not None}
    assert reached == ({"query.last"} if term.endswith("states") else set(taps))


def test_queries_are_planned_and_called_approximate_under_augmentation() -> None:
    needs = build_method(TestQueries.section).needs()
    for augment, expected in ((None, "exact"), (AugmentConfig(bev_flip_x=True), "approximate")):
        specs = plan(needs, TestQueries.teacher, 1, StoreConfig(), augment).specs
        [spec] = [spec for spec in specs if spec.name == "query.last"]
        assert (spec.codec, spec.alignment) == ("float16", expected)


def test_queries_that_do_not_meet() -> None:
    case = TestQueries()
    student: Mapping[str, TapInfo] = {**case.student, "query.last": query_tap(QUERIES + 1, 4)}
    with pytest.raises(TargetMismatchError) as caught:
        build_method(case.section).build(student, case.specs())
    message = str(caught.value)
    assert "states are compared query by query, but the student has (8, 4)" in message
    assert "(3 channels), the student's have 4, the teacher's 3" in message
    assert message.count("\n- ") == 2
    swapped = {**case.student, "query.last": replace(dense("query.last", 3, WIDE))}
    with pytest.raises(TargetMismatchError, match=r"'query\.last' is a dense_bev, expected a que"):
        build_method(case.section).build(swapped, case.specs())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": "nekc"}, r"level must be one of neck, got nekc"),
        ({"states": 0.0, "similarity": 0.0}, r"give states or similarity a weight"),
        ({"name": "neck"}, r"levels and queries must differ, got neck, neck"),
    ],
)
def test_senseless_queries_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_method({**OneLevel.section, "queries": [{**LAST, **change}]})


class Memory(MethodContract):
    """The shipped Transformer line on a small signed memory."""

    section: Mapping[str, Any] = load_group("method", "distillbev_transformer")
    student: Mapping[str, TapInfo] = {
        "bev.memory": replace(dense("bev.memory", 5, WIDE), nonnegative=False)
    }
    teacher: Mapping[str, TapInfo] = {
        "bev.memory": replace(dense("bev.memory", 4, WIDE), nonnegative=False)
    }


def memory_step(matrix: Any = None) -> tuple[Method, Step]:
    case = Memory()
    step = case.step(2, 6, seed=2, matrix=matrix)
    step.targets["bev.memory"].values -= 0.2
    return case.build(), step


def test_transformer_line_against_the_oracle() -> None:
    method, step = memory_step()
    adapter = method.get_submodule("levels.memory.adapter.layers.0")
    assert isinstance(adapter, torch.nn.Conv2d)
    assert adapter.kernel_size == (1, 1)
    as_neck = replace(
        step,
        student={"bev.neck": adapter(step.student["bev.memory"])},
        targets={
            "bev.neck": step.targets["bev.memory"],
            "head.heatmap": Target(torch.zeros(2, 10, 16, 16)),
        },
    )
    method.levels["neck"] = method.get_submodule("levels.memory")  # type: ignore[union-attr, operator, index]
    expected = oracle(method, as_neck, both_look=False)
    found = values(step.run(method))
    assert set(found) == {"foreground", "background", "spatial"}
    ratio = {"foreground": 5e-3 / 6e-3, "background": 4e-3 / 4e-2, "spatial": 5e-4 / 2.5e-3}
    for term, factor in ratio.items():
        assert found[term] == pytest.approx(factor * expected[term], rel=2e-5), term


def test_transformer_line_refuses_a_moved_map() -> None:
    method, step = memory_step(bev_matrix(flip_y=True))
    with pytest.raises(TargetMismatchError, match=r"\(unmoved=true\) is defined without.*sample 0"):
        step.run(method)


def test_transformer_line_at_paper_size() -> None:
    """One signed target of 200 x 200 cells and 256 channels: int8, 10.24 MB and 256 scales."""
    grid = Grid.square(51.2, 0.512)
    tap = TapInfo("bev.memory", "dense_bev", (256, *grid.shape_YX), grid)
    method = build_method(Memory.section)
    chosen = plan(method.needs(), {tap.name: tap}, 1, StoreConfig(), AugmentConfig())
    [spec] = chosen.specs
    assert (spec.tap.shape, spec.codec, spec.region.name) == ((256, 200, 200), "int8", "all")
    assert spec.alignment == "exact"
    assert chosen.total_bytes == 256 * 200 * 200 + 4 * 256
    method.build({tap.name: tap}, {spec.name: spec})
    assert method.student_taps() == ["bev.memory"]
