"""What a verb prints at its end can be read: no Python, no noise, units."""

from typing import Any

import pytest
from rich.console import Console

from bevcask.results import one_line, show


def printed(result: dict[str, Any]) -> list[str]:
    console = Console(width=100, markup=False)
    with console.capture() as capture:
        console.print(show(result))
    return [" ".join(line.split()) for line in capture.get().splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("seconds_per_step", 0.36912, "seconds per step 0.369 s"),
        ("stored_gb", 0.050912, "stored 0.0509 GB"),
        ("raw_bytes", 1_234_567, "raw bytes 1.2 MB"),
        ("loader_share", 0.0612, "loader share 6 %"),
        ("gap", 0.000123456, "gap 0.0001235"),
        ("parameters", 906882, "parameters 906,882"),
        ("sealed", True, "sealed yes"),
        ("targets", ["bev.neck", "head.boxes"], "targets bev.neck, head.boxes"),
        ("id", "0123", "id 0123"),
    ],
)
def test_a_plain_value_is_a_line_with_its_unit(key: str, value: Any, line: str) -> None:
    assert printed({key: value}) == [line]


@pytest.mark.parametrize("nothing", [None, {}, [], "", {"head_tensors": None}])
def test_what_is_not_there_is_left_out(nothing: Any) -> None:
    assert printed({"started_from": nothing, "step": 0}) == ["step 0"]
    assert one_line({"teacher": nothing, "step": 0}) == "step 0"


def test_what_is_nested_has_rows() -> None:
    told = {"seconds": 17.3613, "shares": {"device": 0.9538, "loader": 0.0462}, "advice": "none"}
    assert printed({"wall_time": told}) == [
        "wall time",
        "seconds 17.4 s",
        "shares",
        "device 95 %",
        "loader 5 %",
        "advice none",
    ]


@pytest.mark.parametrize("named", [True, False])
def test_mappings_of_one_form_are_a_table(named: bool) -> None:
    rows = {
        "a": {"tap": "bev.neck", "bytes": 2_000_000, "note": None, "best": ["x", "y"]},
        "b": {"tap": "head.boxes", "bytes": 10, "note": None, "best": []},
    }
    lines = printed({"targets": rows if named else list(rows.values())})
    assert lines[0] == "targets"
    assert not any("note" in line or "{" in line for line in lines)
    [neck] = [line for line in lines if "bev.neck" in line]
    assert "2.0 MB │ x, y" in neck
    assert neck.startswith("│ a") == named
