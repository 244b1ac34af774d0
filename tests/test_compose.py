"""A verb takes what it reads, and says so of everything else."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from bevcask.cli import key_help
from bevcask.commands import VERBS
from bevcask.compose import compose, reads, refuse_repeated, section_of, takes_text, words_for
from bevcask.config import Config, DatasetConfig
from bevcask.errors import ConfigError
from bevcask.groups import GROUPS
from bevcask.verbs import (
    DistillConfig,
    EvaluateConfig,
    ExtractConfig,
    InspectConfig,
    PlanConfig,
    ReportConfig,
)


def test_defaults_are_a_valid_run() -> None:
    for name, verb in VERBS.items():
        if name not in ("synthesize", "weights"):  # these need to be told what of
            assert compose(verb.config, []) == verb.config()


def test_dotted_override_reaches_its_leaf() -> None:
    words = ["trainer.max_steps=7", "dataset.scenes=[scene-0916]", "seed=3"]
    config = compose(DistillConfig, words)
    assert config.trainer.max_steps == 7
    assert config.dataset.scenes == ("scene-0916",)
    assert config.seed == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["probe=8"], "probe: teacher-extract does not read this key; it is for plan."),
        (["trainer.lr=3"], "trainer.lr: teacher-extract does not read this key"),
        (["trainer=tiny"], "trainer: teacher-extract does not read this key"),
        (["augment.bev_rotation=0.1"], "augment.bev_rotation: teacher-extract does not read"),
        (["store.budget=3"], "store.budget: teacher-extract does not read this key"),
        (["loader.sampler=cbgs"], "loader.sampler: teacher-extract does not read this key"),
        (["run=x"], "run: teacher-extract does not read this key; it is for inspect, student-dist"),
    ],
)
def test_a_key_of_another_verb_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(ExtractConfig, words)
    assert message in str(caught.value)


def _choices(model: type[Config], where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, choice) of every key that is one of a few."""
    for name, field in model.model_fields.items():
        below = section_of(field.annotation)
        if below is not None:
            yield from _choices(below, f"{where}{name}.")
        for kind in (field.annotation, *get_args(field.annotation)):
            if get_origin(kind) is Literal:
                yield from ((f"{where}{name}", choice) for choice in get_args(kind))


def test_every_choice_can_be_said() -> None:
    choices = list(_choices(DistillConfig))
    assert ("trainer.precision", "32") in choices
    for key, choice in choices:
        said = _composed(f"{key}={choice}")
        if isinstance(said, ConfigError):  # a rule between keys, not of this one
            assert f"{key}: " not in str(said)
            continue
        for name in key.split("."):
            said = getattr(said, name)
        assert said == choice, key


def _composed(word: str) -> Any:
    try:
        return compose(DistillConfig, [word])
    except ConfigError as error:
        return error


def test_all_foreign_keys_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(ExtractConfig, ["probe=8", "trainer.lr=3", "run=x"])
    assert len(str(caught.value).splitlines()) == 3


def test_an_experiment_speaks_to_every_verb(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "groups: {trainer: tiny, dataset: synthetic}\n"
        "store: {views: 2}\naugment: {crop: true, bev_flip_x: true}\n"
    )
    extract = compose(ExtractConfig, [f"experiment={own}"])
    assert extract.store.views == 2
    assert extract.augment.crop
    assert not hasattr(extract.augment, "bev_flip_x")
    assert compose(DistillConfig, [f"experiment={own}"]).augment.bev_flip_x
    assert compose(EvaluateConfig, [f"experiment={own}"]).dataset.version == "v1.0-synthetic"


@pytest.mark.parametrize("text", ["augment: {flop: true}", "augmnt: {crop: true}"])
def test_an_experiment_with_a_key_of_no_verb_is_refused(text: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(ConfigError, match="unknown key"):
        compose(ExtractConfig, [f"experiment={own}"])


def test_words_of_several_verbs_are_kept_for_those_that_read_them() -> None:
    words = ["seed=1", "trainer=tiny", "student=bevdepth_tiny", "store.views=2", "cache=x"]
    assert words_for(ExtractConfig, words) == ["seed=1", "store.views=2", "cache=x"]
    assert words_for(DistillConfig, words) == words


@pytest.mark.parametrize("path", ["1e5", "null", "${oc.env:HOME}", "a=b", "=b", "0012", "[x]"])
def test_text_is_taken_literally(path: str) -> None:
    config = compose(InspectConfig, [f"dataset.root={path}", f"cache={path}", f"sample={path}"])
    assert (config.dataset.root, config.cache, config.sample) == (path, path, path)


@pytest.mark.parametrize("key", ["teacher.detector.config", "dataset.version", "store.reuse"])
def test_keys_that_hold_text_are_known_from_their_type(key: str) -> None:
    assert takes_text(ExtractConfig, key)
    assert not takes_text(ExtractConfig, "loader.batch_size")
    assert not takes_text(ExtractConfig, "store.codec")


def test_a_key_without_a_text_is_none_or_refused() -> None:
    words = ["cache=", "student.init=", "dataset.infos=", "loader.local="]
    config = compose(DistillConfig, words)
    assert config.cache is None
    assert config.student.init is None
    assert config.dataset.infos is None
    assert config.loader.local is None
    with pytest.raises(ConfigError, match=r"^run: expected a path\. Leave .* default, got ''\.$"):
        compose(DistillConfig, ["run="])  # the working folder, as pathlib has it


def test_home_is_not_a_folder_called_tilde() -> None:
    config = compose(
        DistillConfig, ["dataset.root=~/n", "cache=~/a,~/b", "run=~/r", "student.init=~/w"]
    )
    home = str(Path.home())
    assert config.dataset.root == f"{home}/n"
    assert config.cache == f"{home}/a,{home}/b"
    assert (config.run, config.student.init) == (f"{home}/r", f"{home}/w")


def test_a_section_that_an_experiment_switched_off_can_be_given(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("val: null\n")
    config = compose(DistillConfig, [f"experiment={own}", "val.root=w"])
    assert config.val is not None
    assert config.val.root == "w"


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_made_of_the_model(verb: str) -> None:
    help_text = key_help(verb)
    for name in VERBS[verb].config.model_fields:
        assert f"[cyan]{name}=[/]" in help_text or f"[cyan]{name}." in help_text
    for group in GROUPS:
        assert (f"[cyan]{group}=[/]NAME" in help_text) <= reads(VERBS[verb].config, group)


@pytest.mark.parametrize("word", ["seed=[1", "seed={", "trainer.lr==", "a==b"])
def test_a_value_that_is_no_yaml_is_named(word: str) -> None:
    with pytest.raises(ConfigError):
        compose(DistillConfig, [word])


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        compose(DistillConfig, []).seed = 3  # type: ignore[misc]


def test_val_follows_the_dataset_unless_it_says_otherwise() -> None:
    words = ["dataset=mini", "dataset.root=/data/n", "val.split=mini_val"]
    val = compose(DistillConfig, words).val
    assert val is not None
    assert (val.root, val.version, val.split) == ("/data/n", "v1.0-mini", "mini_val")
    own = compose(DistillConfig, [*words, "val.root=/data/v"]).val
    assert own is not None
    assert (own.root, own.version) == ("/data/v", "v1.0-mini")
    published = ["experiment=distillbev_centerpoint_bevdepth4d_r50", "dataset.root=/data/n"]
    found = compose(DistillConfig, published).val
    assert found is not None
    assert (found.root, found.split) == ("/data/n", "val")
    assert compose(DistillConfig, ["dataset=mini"]).val is None
    held = DistillConfig.model_validate(
        {"dataset": DatasetConfig(root="/d"), "val": {"limit": 2}}
    ).val
    assert held is not None
    assert (held.root, held.split, held.limit) == ("/d", "val", 2)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=[1", "seed: '[1' is not readable as YAML: did not find expected ',' or ']'. Text"),
        ("seed=@x", "seed: '@x' is not readable as YAML: found character that cannot start any"),
        ("seed=\udcff", "seed: '\\udcff' is not readable as YAML: "),
        ("seed=${x}", "seed: Interpolation key 'x' not found."),
        ("trainer.lr=???", "trainer.lr: expected a value, got ???."),
        ("teacher.detector=[1,2]", "teacher.detector: a list cannot stand where keys are expected"),
        ("method.levels.0.name=x", "method.levels.0.name: a list cannot stand where keys are"),
        ("store=x", "store=x: no such store. None is shipped; give a path ending in .yaml."),
    ],
)
def test_a_word_that_cannot_be_laid_over_is_named_alone(word: str, message: str) -> None:
    words = ["teacher=centerpoint_tiny", "method=distillbev", word, "loader.batch_size=3"]
    with pytest.raises(ConfigError) as caught:
        compose(DistillConfig, words)
    assert str(caught.value).startswith(message)
    assert "batch_size" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("text", "line"), [("a:\n\tb: 1", 2), ("a: 1\nb: 3\na: 2", 3)])
def test_the_line_of_a_yaml_that_is_wrong_is_named(text: str, line: int, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(ConfigError, match=rf"^dataset=.*: not readable as YAML: line {line}, "):
        compose(DistillConfig, [f"dataset={own}"])


@pytest.mark.parametrize(
    ("words", "split"),
    [
        ([], "val"),
        (["dataset=nuscenes"], "val"),
        (["dataset=mini"], "mini_val"),
        (["dataset=synthetic"], "synthetic_val"),
    ],
)
def test_validation_never_falls_on_training_frames(words: list[str], split: str) -> None:
    val = compose(DistillConfig, [*words, "val.limit=2"]).val
    assert val is not None
    assert (val.split, val.limit) == (split, 2)


@pytest.mark.parametrize("split", ["all", "test", "val", "retrain"])
def test_a_split_without_one_held_out_from_it_asks_for_val_split(split: str) -> None:
    words = ["dataset=mini", f"dataset.split={split}", "val.limit=2"]
    with pytest.raises(ConfigError, match=rf"^val.split: needed where dataset.split={split}: "):
        compose(DistillConfig, words)
    said = compose(DistillConfig, [*words, "val.split=mini_val"]).val
    assert said is not None
    assert said.split == "mini_val"


def test_help_states_no_default_that_val_does_not_have() -> None:
    lines = [line for line in key_help("student-distill").splitlines() if "]val." in line]
    assert not [line for line in lines if "default" in line and "trust_pickle" not in line]
    assert any("val.split=[/]  of dataset.split=train: val" in line for line in lines)


def test_a_plug_in_of_another_package_is_a_member_of_its_group() -> None:
    name = "my_package.module:Own"
    words = [f"method={name}", f"teacher={name}", f"student={name}", "method.weight=2"]
    config = compose(DistillConfig, [*words, "trust_code=true"])
    assert config.method == {"type": name, "weight": 2}
    assert config.teacher.type == name
    assert config.student.detector == {"type": name}
    with pytest.raises(ConfigError, match="trust_code=true"):
        compose(DistillConfig, words)


@pytest.mark.parametrize("word", ["method=Own", "method=my_package/module:Own", "method=:Own"])
def test_how_a_plug_in_is_named_is_said_where_a_method_is_not_known(word: str) -> None:
    with pytest.raises(ConfigError, match=r"ending in \.yaml, or my_package\.module:Class\."):
        compose(DistillConfig, [word])
    with pytest.raises(ConfigError, match=r"ending in \.yaml\.$"):
        compose(DistillConfig, ["dataset=my_package.module:Own"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=1", "seed=2"], "seed: said more than once, seed=1 and seed=2. Say it once."),
        (["dataset=mini", "dataset=nuscenes"], "dataset=mini and dataset=nuscenes"),
        (["cache=a.zarr", "seed=1", "cache=b.zarr"], "cache=a.zarr and cache=b.zarr"),
    ],
)
def test_a_key_is_said_once(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        refuse_repeated(PlanConfig, words)


def test_what_is_said_again_alike_and_runs_of_a_report_are_taken() -> None:
    refuse_repeated(PlanConfig, ["seed=1", "seed=1"])
    refuse_repeated(ReportConfig, ["run=a", "run=b"])
