"""The probe: errors grow as bits go, bytes are those an extraction writes, the advice follows."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bevcask.cache import open_cache
from bevcask.compose import compose, words_for
from bevcask.errors import ConfigError
from bevcask.stages import plan, teacher_extract
from bevcask.training.probe import Row, best, mark_dominated
from bevcask.verbs import ExtractConfig, PlanConfig
from bevcask.viz.planned import gigabytes
from training.test_cached_equals_online import FLIPS, SMALL


def row(name: str, size: float, gradient: float, loss: float = 0.0) -> Row:
    return Row(
        name,
        f"store.codec={name}",
        bytes_by_target={"bev.neck": size},
        gradient=gradient,
        loss=loss,
    )


def test_best_under_a_budget_changes_the_gradient_least() -> None:
    rows = [row("a", 4e6, 0.0), row("b", 2e6, 1e-3), row("c", 1e6, 5e-2)]
    assert best(rows, 1000, 2.5) == rows[1]
    assert best(rows, 1000, 1.5) == rows[2]
    assert best(rows, 1000, 0.5) is None


def test_best_without_a_budget_is_the_smallest_faithful_one() -> None:
    rows = [row("a", 4, 0.0), row("b", 2, 9e-3), row("c", 1, 1.1e-2), row("d", 1, 0.0, loss=2e-3)]
    assert best(rows, 1, None) == rows[1]
    assert best(rows[2:], 1, None) is None


def test_dominated_rows_are_larger_and_worse() -> None:
    rows = mark_dominated([row("a", 1, 0.1), row("b", 4, 0.0), row("c", 3, 0.2), row("d", 1, 0.1)])
    assert [r.name for r in rows] == ["b", "c", "a", "d"]
    assert [r.dominated for r in rows] == [False, True, False, False]


def words(world: Path, *more: str) -> list[str]:
    return [*SMALL, f"dataset.root={world}", "dataset.limit=3", *more]


def planned(given: list[str]) -> dict[str, Any]:
    return plan.run(compose(PlanConfig, words_for(PlanConfig, given)))


def test_fewer_bits_are_smaller_and_further_off(tiny_world: Path) -> None:
    result = planned(words(tiny_world, "probe=2", *FLIPS))
    rows = {r["name"]: r for r in result["probe"]}
    order = ["float32", "float16", "auto, 8 bits", "auto, 6 bits", "auto, 4 bits"]
    for key in ("loss", "gradient"):
        assert rows["float32"][key] == 0
        assert rows["auto, 8 bits"][key] < rows["auto, 4 bits"][key]
    assert 0 < rows["float16"]["gradient"] < rows["auto, 8 bits"]["gradient"]
    assert rows["auto, 8 bits"]["gradient"] < rows["auto, 6 bits"]["gradient"]
    sizes = [rows[name]["bytes_per_frame"] for name in order]
    assert sizes == sorted(sizes, reverse=True)
    cosines = [rows[name]["cosine"] for name in order]
    assert cosines == sorted(cosines, reverse=True)
    assert result["probed_frames"] == 2
    assert result["best"] in {r["words"] for r in result["probe"]}
    assert "codecs on 2 frames" in _text(result)


def test_bytes_are_those_of_an_extraction(tiny_world: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "cache.zarr")
    given = words(tiny_world, f"cache={url}", "store.bits=4")
    teacher_extract.run(compose(ExtractConfig, words_for(ExtractConfig, given)))
    cache = open_cache(url)
    stored = sum(cache.stored_bytes(name) for name in cache.specs) / len(cache.frames.tokens)
    result = planned(words(tiny_world, "probe=3"))
    probed = {r["words"]: r["bytes_per_frame"] for r in result["probe"]}
    assert probed["store.codec=auto store.bits=4"] == pytest.approx(stored, rel=0.05)
    assert probed["store.codec=auto store.bits=6"] > 1.05 * stored


def test_a_budget_nothing_fits_is_said(tiny_world: Path) -> None:
    result = planned(words(tiny_world, "probe=1", "store.budget=1e-9"))
    assert result["best"] is None
    assert "nothing meets store.budget=1e-09 GB; the smallest codec takes" in _text(result)


def test_without_a_method_there_is_nothing_to_measure(tiny_world: Path) -> None:
    with pytest.raises(ConfigError, match="method=none has none"):
        planned([*words(tiny_world, "probe=1"), "method=none"])


def test_a_size_near_the_budget_is_shown_as_finely_as_it_is_judged() -> None:
    assert gigabytes(0.0203) == "0.0203"
    assert gigabytes(1234.5) == "1234.50"
    assert best([row("a", 20.3e6, 0.0)], 1, 0.02) is None


def _text(result: dict[str, object]) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(plan.render(result))
    return capture.get()
