"""The command line: `bevcask VERB [URL] [key=value ...] [--json]`.

Results go to stdout, progress and messages to stderr. Exit codes: 0 ok, 1 the thing checked is not
ok, 2 wrong usage or input.
"""

import importlib
import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.logging import RichHandler
from rich.table import Table

from bevcask import __version__
from bevcask.errors import BevcaskError, ConfigError

app = typer.Typer(
    name="bevcask",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Run a heavy 3D-detection teacher [bold]once[/], then distil camera students from its "
    "cache.\n\nA typical day: [cyan]plan[/] (bytes, before any GPU is touched), "
    "[cyan]teacher-extract[/], [cyan]inspect[/], [cyan]student-distill[/], [cyan]evaluate[/]. "
    "`bevcask VERB --help` lists every key of a verb.",
)
Words = Annotated[
    list[str] | None, typer.Argument(metavar="[URL] [KEY=VALUE]...", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable result on stdout")]
_PIPE_WIDTH = 120

_SECTIONS = {
    "plan": ("dataset", "teacher", "student", "method", "store", "augment", "loader"),
    "teacher-extract": ("dataset", "teacher", "method", "store", "augment", "loader"),
    "student-distill": (
        "dataset", "val", "student", "method", "teacher", "online", "loader", "augment", "trainer",
    ),
    "evaluate": ("dataset", "student", "loader"),
    "inspect": ("dataset",),
    "verify": ("dataset", "teacher"),
    "export": ("student", "teacher"),
    "catalog": (),
}  # fmt: skip
_KEYS = {
    "plan": ("cache", "probe", "device", "seed"),
    "teacher-extract": ("cache", "part", "repair", "device", "seed", "dry_run"),
    "student-distill": (
        "cache", "run", "targets", "on_missing", "device", "seed", "resume", "dry_run",
    ),
    "evaluate": ("cache", "run", "device"),
    "inspect": ("cache", "sample", "picture"),
    "verify": (
        "cache", "check", "resample", "equivariance", "repair", "device", "seed",
    ),
    "export": ("run", "out", "half"),
    "catalog": ("name",),
}  # fmt: skip


def key_help(verb: str) -> str:
    """Return the keys a verb reads, from the configuration models, as help text."""
    from bevcask.config import RunConfig
    from bevcask.groups import GROUPS, group_members

    lines: list[str] = []
    for group in GROUPS:
        read = group in _SECTIONS[verb] or (group == "experiment" and "method" in _SECTIONS[verb])
        if read and (members := group_members(group)):
            lines.append(f"[cyan]{group}=[/]NAME  one of {', '.join(members)}")
    for section in _SECTIONS[verb]:
        annotation = RunConfig.model_fields[section].annotation
        model = next(
            (
                a
                for a in (annotation, *getattr(annotation, "__args__", ()))
                if hasattr(a, "model_fields")
            ),
            None,
        )
        for name, field in (model.model_fields if model else {}).items():
            lines.append(_describe(f"{section}.{name}", field))
    lines += [_describe(key, RunConfig.model_fields[key]) for key in _KEYS[verb]]
    return "[bold]Keys[/]\n\n" + "\n\n".join(lines)


def _describe(key: str, field: Any) -> str:
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    shown = "" if default in (None, {}) else f" [dim](default {default})[/]"
    return f"[cyan]{key}=[/]  {field.description or ''}{shown}".replace("[scene", r"\[scene")


def _verb(name: str, stage: str, summary: str, url: str | None = "cache") -> None:
    """Add one verb: words -> RunConfig -> `bevcask.stages.STAGE.run` -> table or JSON."""

    def command(words: Words = None, as_json: AsJson = False) -> None:
        def work() -> tuple[dict[str, Any], Any]:
            from bevcask.config import compose

            config = compose(_positional(words or [], url), DEFAULT_GROUPS.get(name, {}))
            module = importlib.import_module(f"bevcask.stages.{stage}")
            return module.run(config), module

        _finish(work, as_json)

    command.__doc__ = summary
    command.__name__ = stage
    epilog = key_help(name) if {"--help", name} <= set(sys.argv) else None
    app.command(name=name, epilog=epilog, help=summary)(command)


DEFAULT_GROUPS: dict[str, dict[str, str]] = {
    "plan": {"dataset": "nuscenes", "teacher": "centerpoint", "method": "distillbev"},
    "teacher-extract": {"method": "distillbev"},
    "student-distill": {"method": "distillbev", "trainer": "default"},
}


def _positional(words: list[str], url: str | None) -> list[str]:
    """Turn a leading word without `=` into `url=word`."""
    if words and "=" not in words[0]:
        if url is None:
            raise ConfigError(
                f"plan takes no URL in front, got {words[0]!r}. cache={words[0]} asks what would "
                "be added to a cache, and whether its disk has room."
            )
        return [f"{url}={words[0]}", *words[1:]]
    return words


def _finish(work: Callable[[], tuple[dict[str, Any], Any]], as_json: bool) -> None:
    """Run a stage, print its result, turn errors into one message and an exit code."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_time=False, show_path=False)],
    )
    for chatty in ("lightning", "lightning.pytorch", "matplotlib", "distributed"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        result, module = work()
    except BevcaskError as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(2) from None
    except OSError as error:
        if error.filename is None:
            raise
        sys.stderr.write(
            f"error: {error.filename}: {error.strerror}. Choose another place, or make this one "
            "readable and writable.\n"
        )
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here.\n")
        raise typer.Exit(130) from None
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    else:
        render = getattr(module, "render", _render)
        wide = None if sys.stdout.isatty() else _PIPE_WIDTH
        Console(width=wide).print(render(result))
    if result.get("ok") is False:
        raise typer.Exit(1)


def _render(result: Mapping[str, Any]) -> Group:
    """Show a result: plain values as two columns, each mapping of mappings as a table."""
    plain = Table(show_header=False, box=None)
    tables: list[Table] = []
    for key, value in result.items():
        if isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
            tables.append(_nested(key, value))
        else:
            plain.add_row(f"[bold]{key}[/]", _cell(value))
    return Group(plain, *tables)


def _nested(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = Table(title=title.replace("_", " "))
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        table.add_row(name, *(_cell(row.get(column)) for column in columns))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(entry)}" for key, entry in value.items()) or "-"
    return str(value)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        sys.stdout.write(f"bevcask {__version__}\n")
        raise typer.Exit


def synthesize_help() -> str:
    """Return the keys of `synthesize`, from its own model, as help text."""
    from bevcask.synthetic.config import SynthesizeConfig

    fields = SynthesizeConfig.model_fields.items()
    return "[bold]Keys[/]\n\n" + "\n\n".join(_describe(key, field) for key, field in fields)


@app.command(
    help="Write a synthetic nuScenes-format dataset: bevcask synthesize OUT [key=value ...]",
    epilog=synthesize_help() if {"--help", "synthesize"} <= set(sys.argv) else None,
)
def synthesize(words: Words = None, as_json: AsJson = False) -> None:
    """Write a synthetic dataset."""

    def work() -> tuple[dict[str, Any], Any]:
        from omegaconf import OmegaConf

        from bevcask.config import validate

        stage = importlib.import_module("bevcask.stages.synthesize")
        values: Any = OmegaConf.to_container(
            OmegaConf.from_dotlist([w for w in _positional(words or [], "out") if "=" in w])
        )
        out = next((w[4:] for w in _positional(words or [], "out") if w.startswith("out=")), None)
        if out is None:
            raise ConfigError("synthesize needs a folder: bevcask synthesize OUT [key=value ...].")
        return stage.run(validate(stage.SynthesizeConfig, {**values, "out": out}, "")), stage

    _finish(work, as_json)


_verb("plan", "plan", "Say what would be stored: GB and teacher passes, without data or GPU.", None)
_verb(
    "teacher-extract",
    "teacher_extract",
    "Run the teacher once over a selection of frames and write its targets to a Zarr cache. "
    "Safe to interrupt: the same command resumes.",
)
_verb(
    "inspect", "inspect_cache", "Show what a cache holds, who made it, and a picture of a sample."
)
_verb(
    "verify",
    "verify",
    "Check a cache: every stored byte against its digest; with check=meaning what the bytes say, "
    "with resample=N against the teacher. Exit code 1 where something is damaged.",
)
_verb(
    "student-distill",
    "student_distill",
    "Train a detector, imitating cached targets (or none: method=none trains a teacher).",
)
_verb("evaluate", "evaluate", "Official nuScenes mAP and NDS of a detector or of a cache's boxes.")
_verb(
    "export",
    "export",
    "Write a trained student without its adapters, or a teacher's checkpoint, as safetensors.",
    "out",
)
_verb("catalog", "catalog", "List known datasets, checkpoints and caches.", "name")


def main() -> None:
    """Entry point of the `bevcask` command."""
    app()


if __name__ == "__main__":
    main()
