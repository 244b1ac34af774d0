"""Reports in a real Chromium: silent, self-contained, usable by keyboard, legible at two widths."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chromium import OVERLAPS, REACHABLE, TABS, WIDTHS, browser

__all__ = ["browser"]
pytestmark = pytest.mark.browser
Call = Callable[..., tuple[int, str, str]]
PIXELS = "() => document.getElementById('bev').toDataURL()"


def report(call: Call, folder: Path, *data: str) -> Path:
    """Extract with a trained tiny teacher, and write a report."""
    url, page = folder / "c.zarr", folder / "r.html"
    code, _, err = call(
        "teacher-extract", url, "teacher=centerpoint_tiny", "method=distillbev",
        "teacher.checkpoint=catalog:centerpoint_tiny_synthetic", "loader.num_workers=0", *data,
    )  # fmt: skip
    assert code == 0, err
    code, _, err = call("inspect", url, f"html={page}")
    assert code == 0, err
    return page


@pytest.fixture(scope="module")
def synthetic(tiny_world: Path, call: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = ("dataset=synthetic", f"dataset.root={tiny_world}", "dataset.split=all")
    return report(call, tmp_path_factory.mktemp("synthetic"), *data)


@pytest.fixture(scope="module")
def real(nuscenes_root: Path, call: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = ("dataset=mini", f"dataset.root={nuscenes_root}", "dataset.split=all")
    return report(call, tmp_path_factory.mktemp("real"), *data)


@pytest.fixture(scope="module")
def student(synthetic: Path, tiny_world: Path, call: Call) -> Path:
    """The page of a student, which has not learned anything new, beside its teacher."""
    url, run, page = (synthetic.with_name(name) for name in ("c.zarr", "run", "student.html"))
    code, _, err = call(
        "student-distill", url, "student=bevdepth_tiny", "method=distillbev_tiny", f"run={run}",
        "student.checkpoint=catalog:bevdepth_tiny_start", "trainer=tiny", "trainer.max_steps=1",
        "loader.batch_size=1", "loader.num_workers=0", "dataset=synthetic", "dataset.split=all",
        f"dataset.root={tiny_world}",
    )  # fmt: skip
    assert code == 0, err
    code, _, err = call("inspect", url, f"html={page}", f"run={run}")
    assert code == 0, err
    return page


@pytest.fixture(params=["synthetic", "student", pytest.param("real", marks=pytest.mark.nuscenes)])
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def opened(browser: Any, path: Path) -> Iterator[Any]:
    """The page as a user opens it; whatever it complains of or asks for fails the test."""
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked: said.append(asked.url))
    page.goto(path.as_uri())
    settle(page)
    yield page
    page.close()
    asked = {own.partition("#")[0] for own in said if not own.startswith("data:")}
    assert asked == {path.as_uri()}


def until(page: Any, expression: str) -> None:
    """Wait; the page's own rules forbid the eval that `wait_for_function` polls with."""
    for _ in range(100):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never true: {expression}")


def settle(page: Any) -> None:
    until(page, "document.body.dataset.shown")
    until(page, "[...document.querySelectorAll('#cameras canvas')].length === 6")


def layers(page: Any) -> list[str]:
    boxes = page.query_selector_all("#layers input")
    return [f"[id='{own.get_attribute('id')}']" for own in boxes]


def test_every_layer_toggles(opened: Any) -> None:
    names = layers(opened)
    assert len(names) >= 10
    for name in names:
        opened.uncheck(name)
    bare = opened.evaluate(PIXELS)
    for name in names:
        opened.check(name)
        assert opened.evaluate(PIXELS) != bare, name
        opened.uncheck(name)
        assert opened.evaluate(PIXELS) == bare, name


def test_boxes_toggle_in_the_images(opened: Any) -> None:
    look = "() => [...document.querySelectorAll('#cameras canvas')].map((own) => own.toDataURL())"
    opened.wait_for_timeout(300)
    before = opened.evaluate(look)
    opened.uncheck("#layer-truth")
    opened.uncheck("#layer-teacher")
    after = opened.evaluate(look)
    assert sum(a != b for a, b in zip(before, after, strict=True)) >= 3


def test_a_camera_is_enlarged(opened: Any) -> None:
    opened.focus("#cameras button")
    opened.keyboard.press("Enter")
    picture = opened.locator("#large canvas")
    assert picture.bounding_box()["width"] > 1000
    look = "document.querySelector('#large canvas').toDataURL()"
    before, first = opened.evaluate(look), opened.evaluate("document.body.dataset.shown")
    opened.keyboard.press("n")
    until(opened, f"document.body.dataset.shown !== '{first}'")
    until(opened, "Object.values(state.frame.pictures).every((own) => own[1].complete)")
    opened.wait_for_timeout(100)
    assert opened.evaluate(look) != before
    opened.keyboard.press("Escape")
    assert not picture.is_visible()
    assert opened.locator("#cameras canvas").first.bounding_box()["width"] > 300


def test_colours_have_a_bar(opened: Any) -> None:
    corner = """() => {
      const bev = document.getElementById("bev");
      const own = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
      own.drawImage(bev, 13 - bev.width, 21 - bev.height);
      return [...own.getImageData(0, 0, 1, 1).data];
    }"""
    light = opened.evaluate(corner)
    assert min(light[:2]) > 230
    for name in layers(opened):
        opened.uncheck(name)
    assert max(opened.evaluate(corner)[:3]) < 40


def test_no_table_is_cut_and_no_button_wraps(opened: Any) -> None:
    cut = "[...document.querySelectorAll('.scroll{}')].filter((own) => "
    cut += "own.scrollHeight > own.clientHeight + 1).map((own) => own.ariaLabel)"
    assert opened.evaluate(cut.format(":not(.tall)")) == []
    lines = (
        "new Set([...document.querySelectorAll('.controls button')].map((own) => own.clientHeight))"
    )
    for width in (*WIDTHS, 1000, 1180):
        opened.set_viewport_size({"width": width, "height": 844})
        assert opened.evaluate(f"[...{lines}]") == [34], width
    opened.click("#boxes-details summary")
    opened.emulate_media(media="print")
    assert opened.evaluate(cut.format("")) == []


def test_classes_that_are_absent_have_no_scores(opened: Any, path: Path) -> None:
    rows = "[...document.querySelectorAll('#scores tbody tr')].map((own) => "
    rows += "[...own.children].map((cell) => cell.textContent))"
    shown = {name: (set(numbers), boxes) for name, *numbers, boxes in opened.evaluate(rows)}
    absent = {name for name, (_, boxes) in shown.items() if boxes == "0"}
    assert bool(absent) == path.parent.name.startswith("real")
    assert all(shown[name][0] == {"–"} for name in absent)
    note = opened.text_content("#scores-note")
    assert all(name in note for name in absent)


def test_the_keyboard_reaches_everything(opened: Any) -> None:
    wanted = set(opened.evaluate(REACHABLE))
    reached = set()
    for _ in range(TABS):
        opened.keyboard.press("Tab")
        stop = opened.evaluate("document.activeElement.dataset.stop ?? null")
        reached |= set() if stop is None else {int(stop)}
    assert reached == wanted
    opened.focus("#bev")
    opened.keyboard.press("ArrowUp")
    first = opened.text_content("#reading")
    assert "y 1.0 m" in first or "y 0." in first
    opened.keyboard.press("ArrowRight")
    assert opened.text_content("#reading") != first
    assert "energy ≈" in first


def test_frames_are_walked_and_kept_in_the_address(opened: Any) -> None:
    first = opened.evaluate("document.body.dataset.shown")
    opened.keyboard.press("n")
    until(opened, f"document.body.dataset.shown !== '{first}'")
    second = opened.evaluate("document.body.dataset.shown")
    assert opened.url.endswith(f"#frame={second}")
    opened.reload()
    settle(opened)
    assert opened.evaluate("document.body.dataset.shown") == second
    opened.keyboard.press("p")
    until(opened, f"document.body.dataset.shown === '{first}'")
    opened.select_option("#order", "worst")
    rows = opened.evaluate("DATA.frames.map((own) => own.misses + own.alarms)")
    until(opened, f"state.number === {rows.index(max(rows))}")


def test_the_pointer_reads_metres_cells_and_values(opened: Any) -> None:
    opened.locator("#bev").scroll_into_view_if_needed()
    box = opened.locator("#bev").bounding_box()
    opened.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.25)
    text = opened.text_content("#reading")
    assert "x 25." in text
    assert "row " in text
    assert "energy ≈" in text


def test_the_student_is_drawn(opened: Any, path: Path) -> None:
    number = 6 if path.name == "student.html" else 0
    assert opened.evaluate("document.querySelectorAll('#student canvas').length") == number
    if number:
        blank = "own.toDataURL() === Object.assign(document.createElement('canvas'), "
        blank += "{width: own.width, height: own.height}).toDataURL()"
        drawn = f"[...document.querySelectorAll('#student canvas')].map((own) => {blank})"
        assert opened.evaluate(drawn) == [False] * number


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_neither_overlaps_nor_runs_out(opened: Any, width: int, scheme: str) -> None:
    opened.set_viewport_size({"width": width, "height": 844})
    opened.emulate_media(color_scheme=scheme)
    opened.click("#boxes-details summary")
    opened.wait_for_timeout(200)
    number, overlaps = opened.evaluate(OVERLAPS)
    assert number > 100
    assert overlaps == []
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    captions = [own.text_content() for own in opened.query_selector_all("figure > figcaption")]
    captions = [own for own in captions if own]  # a page without a student hides its figure
    assert len(captions) == len(opened.query_selector_all("figure:not([hidden])"))
    assert all("Look for" in own for own in captions)
    before = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    opened.click("#theme")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") != before
