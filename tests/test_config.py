from pathlib import Path

import pytest

from bevcask.compose import compose
from bevcask.config import build_config
from bevcask.errors import ConfigError
from bevcask.groups import group_members, load_group
from bevcask.verbs import DistillConfig


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.max_step=3", "trainer.max_step: unknown key. Did you mean 'max_steps'?"),
        ("dataste.limit=3", "dataste: unknown key. Did you mean 'dataset'?"),
        ("trainer.lr=fast", "trainer.lr:"),
        ("trainer.lr=.nan", "trainer.lr: expected a number, above 0, and finite, got nan."),
        ("trainer.schedule=cosin", "trainer.schedule: expected one of constant, cosine, step"),
        ("teacher=centrepoint", "teacher=centrepoint: no such teacher. Did you mean 'centerpoint'"),
        ("store.codec=uint3", "store.codec: expected one of auto, uint8,"),
        ("verbose", "expected key=value, got 'verbose'"),
        ("dataset=missing.yaml", "dataset=missing.yaml: no such file"),
    ],
)
def test_wrong_word_has_its_message(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(DistillConfig, [word])
    assert message in str(caught.value)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(DistillConfig, ["trainer.max_step=3", "loader.batch_size=0", "seed=-1"])
    assert len(str(caught.value).splitlines()) == 3


def test_yaml_file_as_group_member(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("root: /somewhere\nlimit: 4\n")
    config = compose(DistillConfig, [f"dataset={own}", "dataset.limit=5"])
    assert config.dataset.root == "/somewhere"
    assert config.dataset.limit == 5


@pytest.mark.parametrize("text", [b"a: [1", b"a: ${nowhere.b}", b"\xff\xfe"])
def test_a_yaml_that_cannot_be_read_is_named(text: bytes, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_bytes(text)
    with pytest.raises(ConfigError, match=r"experiment=.*own\.yaml: (not readable|cannot be read)"):
        compose(DistillConfig, [f"experiment={own}"])


def test_a_rule_between_keys_does_not_repeat_the_section() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(DistillConfig, ["trainer.schedule=step", "trainer.milestones=[3,2]"])
    message = str(caught.value)
    assert message.startswith("trainer: schedule step with milestones [3, 2]")
    assert "max_steps" not in message


def test_include_starts_from_another_file(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("detector:\n  include: detector/centerpoint_tiny\n")
    assert load_group("student", str(own))["detector"]["type"] == "centerpoint"


def test_every_shipped_group_member_loads() -> None:
    for group in ("dataset", "teacher", "student", "method", "store", "trainer", "experiment"):
        for name in group_members(group):
            compose(DistillConfig, [f"{group}={name}"])


def test_plugin_section_is_validated_by_the_plugin() -> None:
    with pytest.raises(ConfigError, match="unknown detector 'centrepoint'"):
        build_config("detector", {"type": "centrepoint"}, "student.detector")
    with pytest.raises(ConfigError, match=r"student\.detector\.nek: unknown key"):
        build_config("detector", {"type": "centerpoint", "nek": 3}, "student.detector")
    with pytest.raises(ConfigError, match="Pick one with student=NAME"):
        build_config("detector", {}, "student.detector")
