"""Nothing in a file that somebody else wrote runs code without the user's word."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from bevcask.cli import app
from bevcask.consent import is_config_file, require_consent
from bevcask.detectors.weights import save_weights
from bevcask.errors import ConfigError, UnknownNameError
from bevcask.groups import group_members, load_group
from bevcask.registry import load_class

SHIPPED = "centerpoint_pillar02_second_secfpn_head-circlenms_8xb4-cyclic-20e_nus-3d"
EVIL = "evil_part_of_a_test"
HOSTILE: dict[str, dict[str, Any]] = {
    "a program as config": {"type": "mmdet3d", "config": "evil.py"},
    "a program in a folder": {"type": "mmdet3d", "config": "folder/evil"},
    "a YAML that names callables": {"type": "mmdet3d", "config": "evil.yaml"},
    "another callable as model": {
        "type": "mmdet3d",
        "config": SHIPPED,
        "options": {"model": {"_delete_": True, "type": "subprocess.call", "args": ["touch", "x"]}},
    },
    "dotted keys": {
        "type": "mmdet3d",
        "config": SHIPPED,
        "options": {"model.type": "subprocess.call"},
    },
    "a callable deep inside": {
        "type": "mmdet3d",
        "config": SHIPPED,
        "options": {"model": {"pts_backbone": {"norm_cfg": {"type": "os.system"}}}},
    },
    "a path to load": {
        "type": "mmdet3d",
        "config": SHIPPED,
        "options": {"model": {"init_cfg": {"checkpoint": "http://x/y.pth"}}},
    },
    "text in a list": {
        "type": "mmdet3d",
        "config": SHIPPED,
        "options": {"custom_imports": {"imports": ["evil"]}},
    },
    "a plug-in by module": {"type": f"{EVIL}:Class"},
}


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module on the path that leaves a mark when it is imported; the mark."""
    mark = tmp_path / "mark"
    (tmp_path / f"{EVIL}.py").write_text(f"open({str(mark)!r}, 'w').close()\nClass = dict\n")
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, EVIL, raising=False)
    return mark


def call(*words: str) -> tuple[int, str]:
    answer = CliRunner().invoke(app, list(words))
    assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.exception
    return answer.exit_code, answer.stderr


@pytest.mark.parametrize("name", HOSTILE)
def test_a_yaml_runs_no_code(name: str, evil: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(json.dumps({"detector": HOSTILE[name]}))
    for role, verb in (("teacher", "plan"), ("student", "student-distill")):
        code, err = call(verb, f"{role}={own}", "dataset=synthetic")
        assert code == 2
        assert f"{role}.detector." in err
        assert "trust_code=true" in err
    assert not evil.exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_the_note_of_a_checkpoint_runs_no_code(name: str, evil: Path, tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_weights({"a": torch.zeros(1)}, path, {"detector": json.dumps(HOSTILE[name])})
    code, err = call("evaluate", f"student.checkpoint={path}", "dataset=synthetic")
    assert code == 2
    assert "trust_code=true" in err
    assert not evil.exists()


@pytest.mark.parametrize("note", ["{", "[]", '"mmdet3d"', "7"])
def test_a_note_that_is_no_section_is_named(note: str, tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_weights({"a": torch.zeros(1)}, path, {"detector": note})
    code, err = call("evaluate", f"student.checkpoint={path}", "dataset=synthetic")
    assert code == 2
    assert "should hold a detector section" in err


@pytest.mark.parametrize(
    "text",
    [
        "trust_code: true",
        "teacher: {trust_checkpoint: true}",
        "dataset: {trust_pickle: true}",
        "val: {trust_pickle: true}",
    ],
)
def test_a_file_gives_no_consent(text: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(text)
    code, err = call("student-distill", f"experiment={own}")
    assert code == 2
    assert "is the user's word" in err


def test_with_the_word_the_section_is_taken() -> None:
    for section in HOSTILE.values():
        with pytest.raises(ConfigError):
            require_consent({"teacher.detector": section}, trusted=False)
        require_consent({"teacher.detector": section}, trusted=True)


def test_what_is_shipped_needs_no_word() -> None:
    for name in group_members("detector"):
        require_consent({"teacher.detector": load_group("detector", name)}, trusted=False)


@pytest.mark.parametrize(
    ("name", "file"),
    [(SHIPPED, False), ("my_config.py", True), ("./x", True), ("x.yaml", True), ("/a/b", True)],
)
def test_a_shipped_name_is_never_a_file(name: str, file: bool) -> None:
    assert is_config_file(name) == file


def test_a_plug_in_from_outside_is_imported_by_its_full_name() -> None:
    assert load_class("method", "bevcask.methods.none:NoDistillation").__name__ == "NoDistillation"
    for name in ("nowhere.at.all:Class", "bevcask.methods.none:Absent", ":x", "bevcask.errors:"):
        with pytest.raises(UnknownNameError, match="cannot be imported"):
            load_class("method", name)
    with pytest.raises(UnknownNameError, match="is no class"):
        load_class("method", "bevcask.registry:suggest")


def test_a_kind_in_a_cache_imports_nothing(evil: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown kind"):
        load_class("kind", f"{EVIL}:Class")
    assert not evil.exists()


@pytest.mark.parametrize("include", ["../teacher/x", "/etc/passwd", "nowhere/x"])
def test_an_include_names_a_group(include: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"detector: {{include: {include}}}")
    with pytest.raises(ConfigError, match="expected GROUP/NAME"):
        load_group("teacher", str(own))
