"""The page of compared trainings in a real Chromium."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chromium import OVERLAPS, REACHABLE, TABS, WIDTHS, browser
from viz.test_runs import run_folder

pytestmark = pytest.mark.browser
__all__ = ["browser"]


@pytest.fixture
def opened(browser: Any, tmp_path: Path, call: Any) -> Iterator[Any]:
    """The page of three runs; what it complains of or asks for fails the test."""
    runs = [run_folder(tmp_path / name, {"seed": name}, {4: 0.3}) for name in "ab"]
    runs.append(run_folder(tmp_path / "not ended", {"seed": 2}, {}, ended=False))
    path = tmp_path / "runs.html"
    assert call("report", *(f"run={run}" for run in runs), f"html={path}")[0] == 0
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked: said.append(asked.url))
    page.goto(path.as_uri())
    yield page
    page.close()
    assert {own for own in said if not own.startswith("data:")} == {path.as_uri()}


def test_it_shows_scores_differences_and_curves(opened: Any) -> None:
    assert "0.3000" in opened.text_content("#runs")
    assert "not ended" in opened.text_content("#runs")
    assert opened.text_content("#differences tr:nth-child(2) th") == "seed"
    labels = [own.get_attribute("aria-label") for own in opened.query_selector_all("svg.chart")]
    assert "loss: a from 4.00 to 1.00; b from 4.00 to 1.00" in " ".join(labels)
    before = opened.inner_html("#charts")
    opened.uncheck("#logarithmic")
    assert opened.inner_html("#charts") != before


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_legible_and_reached_by_keyboard(opened: Any, width: int, scheme: str) -> None:
    opened.set_viewport_size({"width": width, "height": 844})
    opened.emulate_media(color_scheme=scheme)
    number, overlaps = opened.evaluate(OVERLAPS)
    assert number > 40
    assert overlaps == []
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    wanted, reached = set(opened.evaluate(REACHABLE)), set()
    for _ in range(TABS):
        opened.keyboard.press("Tab")
        stop = opened.evaluate("document.activeElement.dataset.stop ?? null")
        reached |= set() if stop is None else {int(stop)}
    assert reached == wanted
    before = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    opened.click("#theme")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") != before
