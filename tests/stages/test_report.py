"""report: its words, its page, and what it refuses."""

import json
from pathlib import Path
from typing import Any

from viz.test_runs import run_folder


def test_two_runs_on_a_page(tmp_path: Path, call: Any) -> None:
    config = {"seed": 0, "name": "</script><b>"}
    a = run_folder(tmp_path / "a", config, {4: 0.3})
    b = run_folder(tmp_path / "b", {**config, "seed": 1}, {4: 0.2})
    page = tmp_path / "runs.html"
    code, out, err = call("report", f"run={a}", f"run={b}", f"html={page}")
    assert code == 0, err
    assert "0.3000" in out
    assert "seed" in out
    text = page.read_text()
    assert "{{" not in text
    assert text.count("</script>") == 2
    _, _, rest = text.partition('<script type="application/json" id="data">')
    data = json.loads(rest.partition("</script>")[0])
    assert [run["scores"]["NDS"] for run in data["runs"]] == [0.3, 0.2]


def test_what_cannot_be_compared_is_told(tmp_path: Path, call: Any) -> None:
    code, _, err = call("report")
    assert code == 2
    assert "bevcask report run=A run=B html=FILE.html" in err
    code, _, err = call("report", f"run={tmp_path}")
    assert code == 2
    assert "no config.json there" in err
    a = run_folder(tmp_path / "a", {}, {})
    code, _, err = call("report", f"run={a}", f"html={tmp_path / 'x.png'}")
    assert code == 2
    assert "expected a file that ends with .html" in err
