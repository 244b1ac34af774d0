import importlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bevcask import __version__
from bevcask.cli import app, key_help
from bevcask.commands import VERBS as VERBS_BY_NAME
from bevcask.evaluation.report import score_report
from bevcask.groups import load_group

VERBS = (
    "plan",
    "teacher-extract",
    "student-distill",
    "evaluate",
    "inspect",
    "verify",
    "synthesize",
    "export",
    "weights",
    "catalog",
)


def call(*words: str) -> tuple[int, str, str]:
    answer = CliRunner().invoke(app, list(words))
    return answer.exit_code, answer.stdout, answer.stderr


def test_help_is_fast_and_lists_every_verb() -> None:
    program = "import sys; from bevcask.cli import app; sys.argv = ['bevcask', '--help']; app()"
    seconds = []
    for _ in range(3):
        before = os.times()
        answer = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        after = os.times()  # processor time: what else the machine does is not the help's
        seconds.append(sum(after[2:4]) - sum(before[2:4]))
    assert min(seconds) < 0.5
    assert all(verb in answer.stdout for verb in VERBS)


def test_the_package_can_be_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bevcask", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("bevcask", run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"bevcask {__version__}\n"


@pytest.mark.parametrize("verb", ["plan", "student-distill", "teacher-extract"])
def test_verb_help_teaches_the_keys(verb: str) -> None:
    program = (
        f"import sys; sys.argv = ['bevcask', {verb!r}, '--help']; from bevcask.cli import main\n"
        "try: main()\nfinally: print('torch' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "dataset.root=" in answer.stdout
    assert "default" in answer.stdout
    assert answer.stdout.strip().endswith("False")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_keys(verb: str) -> None:
    program = (
        f"import sys; sys.argv = ['bevcask', {verb!r}, '--help']\nimport bevcask.cli as c; c.main()"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert "Keys" in answer.stdout
    assert "=" in answer.stdout.partition("Keys")[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("student-distill", "trainer.max_step=3"), "Did you mean 'max_steps'"),
        (("plan", "trainer.max_step=3"), "it is for student-distill"),
        (("plan", "method=distilbev"), "Did you mean 'distillbev'"),
        (("plan", "here"), "plan takes no URL"),
        (
            ("report", "here"),
            "report takes no URL in front, got 'here'. Name each run: report run=here",
        ),
        (("teacher-extract", "teacher=centerpoint_tiny"), "needs a cache URL"),
        (("verify",), "needs a cache URL"),
        (("verify", "a.zarr", "cache=b.zarr"), "cache=a.zarr and cache=b.zarr. Say it once"),
        (("submit", "verify", "a", "seed=1", "seed=2"), "seed: said more than once, seed=1 and"),
        (("submit", "verify", "a", "slurm.gpus=1", "slurm.gpus=2"), "slurm.gpus: said more than"),
        (("synthesize",), "out: needed, and not given: folder to write"),
        (("teacher-extract", "x.zarr", "oops"), "expected key=value, got 'oops'"),
    ],
)
def test_wrong_words_are_one_message_and_exit_2(words: tuple[str, ...], message: str) -> None:
    code, out, err = call(*words)
    assert code == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_unknown_verb_is_exit_2() -> None:
    code, _, err = call("extract")
    assert code == 2
    assert "No such command" in err


def test_plan_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no data/nuscenes here
    code, out, err = call("plan", "teacher=centerpoint", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["frames"] == 28130
    assert {row["name"] for row in result["targets"]} >= {"bev.neck", "head.boxes"}
    assert result["total_bytes"] == sum(row["bytes"] for row in result["targets"])
    code, _, err = call("plan", "teacher=centerpoint", f"dataset.root={tmp_path / 'typo'}")
    assert code == 2
    assert "typo: no such folder" in err


def test_version() -> None:
    assert call("--version")[1].startswith("bevcask 0.")


@pytest.mark.parametrize("name", ["w[/b].zarr", "[red]run[exp1].zarr", ":smile:.zarr", "[/]"])
def test_what_a_user_named_is_printed_as_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = importlib.import_module("bevcask.stages.catalog")
    monkeypatch.delattr(stage, "render")
    monkeypatch.setattr(stage, "run", lambda _: {"of": name, name: {name: {"x": name}}})
    code, out, err = call("catalog")
    assert code == 0, err
    assert out.count(name) == 4


def test_every_renderer_prints_names_as_they_are() -> None:
    name = "[red]w[/b].zarr"
    verify, catalog = (
        importlib.import_module(f"bevcask.stages.{n}") for n in ("verify", "catalog")
    )
    where = {"shard": 0, "target": name, "token": name, "key": name, "what": name}
    damage = {"ok": False, "cache": name, "files": 1, "bytes": 1, "problems": [where]}
    entry = {"version": name, "licence": name, "root": name, "missing": True}
    for shown, count in (
        (verify.render({**damage, "suspicions": []}), 6),
        (catalog.render({"user_file": name, "name": None, "datasets": {name: entry},
                         "checkpoints": {}, "caches": {}}), 5),
        (score_report({"of": name}), 1),
    ):  # fmt: skip
        console = Console(width=400, markup=False, emoji=False)
        with console.capture() as capture:
            console.print(shown)
        assert capture.get().count(name) == count


@pytest.mark.parametrize("verb", ["inspect", "verify", "teacher-extract"])
def test_store_options_are_for_a_cache_far_away(verb: str) -> None:
    code, _, err = call(verb, "here.zarr", "store.options.anon=true")
    assert code == 2
    assert "here.zarr is on a local disk" in err
    code, _, err = call(verb, "store.options.anon=true")
    assert code == 2
    assert "none is named" in err
    code, _, err = call(verb, "s3://a/b.zarr", "store.options.secret=x")
    assert code == 2
    assert "a secret" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan"], "interrupted; to do it, give the same command again."),
        (["teacher-extract", "cache=x"], "interrupted; the same command goes on from what is"),
    ],
)
def test_what_goes_on_is_said_of_verbs_that_save(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(config: object) -> None:
        raise KeyboardInterrupt

    for stage in ("plan", "teacher_extract"):
        monkeypatch.setattr(f"bevcask.stages.{stage}.run", interrupted)
    code, _, err = call(*words)
    assert code == 130
    assert said in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("plan", "--seed=3"),
            "--seed=3: no such option. Keys have no dashes: seed=3. `bev",
        ),
        (("inspect", "w.zarr", "--sample", "first"), "--sample: no such option. Keys have no dash"),
        (("teacher-extract", "--jsn"), "--jsn: no such option. Keys have no dashes: jsn=VALUE."),
        (
            ("submit", "teacher-extract", "w.zarr", "slurm=3"),
            "slurm: expected keys below it, got",
        ),
    ],
)
def test_a_key_said_in_another_form_is_answered(words: tuple[str, ...], message: str) -> None:
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")


def test_help_gives_the_defaults_of_the_groups_that_a_verb_picks() -> None:
    steps = load_group("trainer", "default")["max_steps"]
    assert f"trainer.max_steps=[/]   [dim](default {steps})" in key_help("student-distill")
    line = next(own for own in key_help("teacher-extract").splitlines() if "method=" in own)
    assert line.endswith("tigdistill [dim](default distillbev)[/]")
    assert "{'type'" not in "".join(map(key_help, VERBS))


@pytest.mark.parametrize(
    ("verb", "word"),
    [
        ("teacher-extract", "teacher.checkpoint={}"),
        ("student-distill", "teachers.lidar.checkpoint={}"),
        ("student-distill", "student.init=catalog:bevdepth_tiny_start,{}"),
        ("student-distill", "student.head={}"),
        ("evaluate", "student.checkpoint={}"),
        ("export", "student.checkpoint={}"),
        ("verify", "teacher.checkpoint={}"),
    ],
)
def test_weights_that_are_not_there_are_named_before_anything_is_read(
    verb: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(f"bevcask.stages.{VERBS_BY_NAME[verb].stage}.run", read)
    code, _, err = call(verb, word.format(tmp_path / "no.safetensors"))
    assert code == 2
    key = word.partition("=")[0]
    assert err == (
        f"error: {key}: {tmp_path}/no.safetensors: no such checkpoint. Give a file, or "
        "catalog:NAME (`bevcask catalog` lists them).\n"
    )


def test_a_plan_can_be_made_before_there_are_weights(tmp_path: Path) -> None:
    missing = f"teacher.checkpoint={tmp_path / 'later.pth'}"
    assert call("plan", missing)[0] == 0
    assert "later.pth: no such checkpoint" in call("plan", missing, "probe=4")[2]
