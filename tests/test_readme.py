"""What the documentation tells people to type is taken."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevcask.cli import key_help
from bevcask.commands import VERBS
from bevcask.compose import reads
from cache.example import build

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Return the verb and the words of every `bevcask` command in the shell blocks of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    variables = dict(re.findall(r'\b([A-Z])="([^"]*)"', text))
    text = re.sub(r"\$([A-Z])\b", lambda match: variables[match[1]], text)
    said = (line.partition("#")[0].split(";") for line in text.splitlines())
    lines = (part.strip() for parts in said for part in parts)
    found = (shlex.split(line) for line in lines if line.startswith("bevcask "))
    return [(words[1], words[2:]) for words in found]


def test_the_pages_show_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_is_read_by_its_verb_and_in_its_help(page: Path) -> None:
    for verb, words in commands(page):
        if verb.startswith("-"):
            continue
        keys = [word.partition("=")[0] for word in words if re.match(r"[a-z_.]+=", word)]
        for key in keys:
            assert reads(VERBS[verb].config, key), f"{verb} {key}"
            known = re.sub(r"\.detector\..*", ".detector", key)
            assert f"[cyan]{known}=[/]" in key_help(verb), f"{verb} {key}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_readme_fits_on_two_screens() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) < 125


def test_the_python_of_the_readme_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    url = build(tmp_path / "cache.zarr")
    names: dict[str, Any] = {}
    exec(block.replace("runs/demo/cache.zarr", url), names)
    assert "6 frames of 3 scenes, sealed" in capsys.readouterr().out
    assert names["neck"].dtype == np.float32
    assert names["neck"].shape == names["cache"].specs["bev.neck"].tap.shape
    assert names["lazy"].dtype == np.float32
