"""A wrong value is answered in plain words: key, what is expected, what was said."""

import re

import pytest

from bevcask.commands import VERBS
from bevcask.compose import compose
from bevcask.config import build_config, validate
from bevcask.errors import ConfigError
from bevcask.teachers.ensemble import EnsembleConfig
from bevcask.verbs import DistillConfig, ExtractConfig, PlanConfig

PYDANTICS = re.compile(
    r"Input should|unable to|valid dict|instance of|\w+Config\b|constrained|liter"
)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("teacher.radius=3", "teacher.radius: unknown key. Known: checkpoint, trust_checkpoint,"),
        ("teacher.memry=3", "teacher.memry: unknown key. Did you mean 'memory'? Known: check"),
        ("loader=0.5", "loader: expected keys below it, got 0.5. Say loader.batch_size=VALUE. "),
        ("loader.batch_size=x", "loader.batch_size: expected a whole number, at least 1, got 'x'."),
        ("loader.batch_size=", "loader.batch_size: expected a whole number, at least 1, got nothi"),
        (
            "loader.num_workers=-1",
            "loader.num_workers: expected a whole number, at least 0, at most 1024, or auto, got",
        ),
        (
            "store.budget=0",
            "store.budget: expected a number, above 0, or null, got 0.",
        ),
        (
            "loader.num_workers=100000",
            "loader.num_workers: expected a whole number, at least 0, at",
        ),
        ("loader.prefetch=1e9", "loader.prefetch: expected a whole number, at least 1, at most"),
        ("workers=1e6", "workers: expected a whole number, at least 1, at most 1024, or null, got"),
        ("augment.image_size_HW=[0,0]", "augment.image_size_HW: expected a list [whole number, "),
        ("augment.crop=2", "augment.crop: expected true or false, got 2."),
        ("augment.resize=[1]", "augment.resize: expected a list [number, number], got [1]."),
        ("dataset.scenes=a", "dataset.scenes: expected a list as in [a,b], of texts, or null, got"),
        (
            "store.codecs=[a]",
            "store.codecs: expected a list as in [a,b], of texts, each that m",
        ),
        ("student.detector=3", "student.detector: expected keys below it, got 3. Say student.det"),
        ("seed=true", "seed: expected a whole number, at least 0, got True."),
        ("augment.resize=[false,true]", "augment.resize: expected a list [number, number], got [F"),
        ("seed=99999999999999999999", "seed: expected at most 9223372036854775807, got 9999"),
        (f"seed={'x' * 999}", "seed: expected a whole number, at least 0, got 'xxx"),
        ("scheduler=h", "scheduler=h, workers=None: for engine=dask."),
    ],
)
def test_a_wrong_value_has_one_plain_line(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(PlanConfig, [word])
    said = str(caught.value)
    assert said.startswith(message)
    assert len(said.splitlines()) == 1
    assert len(said) < 400
    assert not PYDANTICS.search(said)


def test_a_section_of_one_key_names_it() -> None:
    with pytest.raises(ConfigError, match=r"^expect: expected keys below it, .* Say expect\.map="):
        compose(ExtractConfig, ["expect=0.5"])


def test_teachers_by_label_are_places_too() -> None:
    words = ["teachers=a=centerpoint_tiny", "teachers.a.radius=3"]
    with pytest.raises(ConfigError, match=r"^teachers\.a\.radius: unknown key\. Known: check"):
        compose(DistillConfig, words)
    with pytest.raises(ConfigError, match=r"^teachers\.a\.memory: expected one of window, scene, "):
        compose(DistillConfig, [words[0], "teachers.a.memory=x"])


def test_a_list_of_sections_names_the_one_that_is_wrong() -> None:
    level = {"name": "a", "student": "s", "teacher": "t"}
    with pytest.raises(
        ConfigError, match=r"^method\.levels\.1\.student: needed, and not given: st"
    ):
        build_config(
            "method",
            {"type": "distillbev", "levels": [level, {"name": "b", "teacher": "t"}]},
            "method",
        )
    with pytest.raises(
        ConfigError, match=r"^method\.levels: expected a list of \[\{name: \.\.\., "
    ):
        build_config("method", {"type": "distillbev", "levels": 3}, "method")


def test_a_needed_key_is_said_with_its_meaning() -> None:
    with pytest.raises(ConfigError, match=r"^teacher\.of: needed, and not given: sealed caches"):
        validate(EnsembleConfig, {}, "teacher")


@pytest.mark.parametrize("verb", VERBS)
def test_no_key_answers_in_the_words_of_the_validator(verb: str) -> None:
    model = VERBS[verb].config
    wrong: dict[str, object] = dict.fromkeys(model.model_fields, object())
    with pytest.raises(ConfigError) as caught:
        validate(model, wrong, "")
    said = str(caught.value)
    assert not PYDANTICS.search(said)
    assert [line.partition(":")[0] for line in said.splitlines()] == list(dict.fromkeys(wrong))
