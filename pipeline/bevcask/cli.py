"""The command line: `bevcask VERB [URL] [key=value ...] [--json]`.

Results go to stdout, progress and messages to stderr. Exit codes: 0 ok, 1 the thing checked is not
ok, 2 wrong usage or input, 75 try again (a scheduler's SIGTERM or SIGUSR1), 130 Ctrl-C.
"""

import importlib
import inspect
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from bevcask import __version__
from bevcask.commands import VERBS
from bevcask.compose import compose, reads, refuse_repeated, section_of
from bevcask.errors import BevcaskError, ConfigError, Stopped
from bevcask.groups import GROUPS, group_members
from bevcask.results import show
from bevcask.signals import AGAIN, GOES_ON, ending, exit_code
from bevcask.verbs import PlanConfig, SubmitConfig

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
_WORDS = {"ignore_unknown_options": True}  # said in our words, with the key that was meant
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")


def key_help(verb: str) -> str:
    """Return the keys a verb reads, from its configuration model, as help text."""
    model, picked = VERBS[verb].config, VERBS[verb].groups
    needed = any(field.is_required() for field in model.model_fields.values())
    lines = [
        f"[cyan]{group}=[/]NAME  one of {', '.join(members)}{_default(picked.get(group))}"
        for group in GROUPS
        if reads(model, group) and (members := group_members(group))
    ]
    default = None if needed else compose(model, [], picked)
    return "[bold]Keys[/]\n\n" + "\n\n".join([*lines, *_described(model, default)])


def _described(model: Any, default: Any = None, where: str = "") -> Iterator[str]:
    """Yield a line a key, sections first; defaults are those of a configuration if given."""
    plain = []
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        value = getattr(default, name, value)
        if section is None:
            said = escape(field.description or "")
            plain.append(f"[cyan]{where}{name}=[/]  {said}{_default(value)}")
        else:
            yield from _described(section, value, f"{where}{name}.")
    yield from plain


def _default(value: object) -> str:
    """Return a default in words; nothing for none, and for a plug-in's section."""
    if value is None or isinstance(value, Mapping):
        return ""
    return f" [dim](default {escape(str(value))})[/]"


def _verb(name: str) -> None:
    """Add one verb: words -> its configuration -> `bevcask.stages.STAGE.run` -> table or JSON."""
    verb = VERBS[name]

    def command(words: Words = None, as_json: AsJson = False) -> None:
        def work() -> tuple[dict[str, Any], Any]:
            config = compose(verb.config, _positional(words or [], name), verb.groups)
            _require_checkpoints(config)
            _connect(config)
            module = importlib.import_module(f"bevcask.stages.{verb.stage}")
            return module.run(config), module

        _finish(work, as_json, GOES_ON if verb.resumes else AGAIN)

    command.__doc__ = verb.summary
    command.__name__ = verb.stage
    epilog = key_help(name) if {"--help", name} <= set(sys.argv) else None
    app.command(name=name, epilog=epilog, help=verb.summary, context_settings=_WORDS)(command)


def _require_checkpoints(config: Any) -> None:
    """Refuse weights that are named and not there, before a dataset is read for minutes."""
    from bevcask.catalog import require_checkpoint

    if isinstance(config, PlanConfig) and not (config.probe or config.time):
        return
    teachers = {"teacher": getattr(config, "teacher", None)}
    teachers |= {f"teachers.{label}": own for label, own in getattr(config, "teachers", {}).items()}
    for section, teacher in teachers.items():
        if teacher is not None and teacher.type == "native" and teacher.checkpoint != "random":
            require_checkpoint(f"{section}.checkpoint", teacher.checkpoint)
    for key in ("init", "checkpoint", "head"):
        names = getattr(getattr(config, "student", None), key, None)
        for name in names.split(",") if names else ():
            require_checkpoint(f"student.{key}", name)


def _connect(config: Any) -> None:
    """Hand `store.options` to the drivers of the caches, before one is opened."""
    options = getattr(getattr(config, "store", None), "options", None)
    if not options:
        return
    from bevcask.cache.remote import use_options
    from bevcask.cache.union import split_urls
    from bevcask.catalog import resolve

    if config.cache is None:
        raise ConfigError("store.options: they are for the driver of cache=URL, and none is named.")
    for url in split_urls(config.cache):
        use_options(resolve("cache", url), options)


def _positional(words: list[str], verb: str) -> list[str]:
    """Turn a leading word that is no `key=value` into `url=word`, as the verb calls it."""
    dashed = next((word for word in words if word.startswith("-")), None)
    if dashed:
        key = dashed.lstrip("-")
        said = key if "=" in key else f"{key}=VALUE"
        raise ConfigError(
            f"{dashed}: no such option. Keys have no dashes: {said}. `bevcask {verb} --help` "
            "lists them."
        )
    if words and not _KEY.match(words[0]):
        url = VERBS[verb].url
        if url is None:
            said = f"{verb} takes no URL in front, got {words[0]!r}."
            if verb == "report":
                raise ConfigError(f"{said} Name each run: report run={words[0]} run=OTHER.")
            raise ConfigError(
                f"{said} cache={words[0]} asks what would be added to a cache, and whether its "
                "disk has room."
            )
        words = [f"{url}={words[0]}", *words[1:]]
    refuse_repeated(VERBS[verb].config, words)
    return words


def _finish(
    work: Callable[[], tuple[dict[str, Any], Any]], as_json: bool, then: str = AGAIN
) -> None:
    """Run a stage, print its result, turn errors into one message and an exit code.

    `then` says what the same command does where this one was interrupted.
    """
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_time=False, show_path=False)],
    )
    for chatty in ("lightning", "lightning.pytorch", "matplotlib", "distributed"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        with ending(then=then):
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
    except Stopped as stopped:
        sys.stderr.write(f"{stopped}\n")
        raise typer.Exit(exit_code(stopped.signal)) from None
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted; {then}\n")
        raise typer.Exit(130) from None
    if not result:  # of a rank of a training that is not the first
        return
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    else:
        render = getattr(module, "render", show)
        wide = None if sys.stdout.isatty() else _PIPE_WIDTH
        # what a user named is text: `w[/b].zarr` is no markup
        shown = render(result)
        if isinstance(shown, str):  # for a shell, not for people: never wrapped
            sys.stdout.write(shown)
        else:
            Console(width=wide, markup=False, emoji=False).print(shown)
    if result.get("ok") is False:
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        sys.stdout.write(f"bevcask {__version__}\n")
        raise typer.Exit


for _name in VERBS:
    _verb(_name)


@app.command(name="recorder")
def recorder() -> None:
    """Print one file that records a teacher of another environment: > bevcask_recorder.py."""
    from bevcask.spool import recorder as module

    sys.stdout.write(inspect.getsource(module))


@app.command(
    name="submit",
    epilog="[bold]Keys[/]\n\n" + "\n\n".join(_described(SubmitConfig)),
    context_settings=_WORDS,
)
def submit(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="VERB [URL] [KEY=VALUE]...", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the script and submit nothing")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a verb as a SLURM job array: its words, and slurm.KEY=VALUE."""

    def work() -> tuple[dict[str, Any], Any]:
        own = [word for word in words or [] if word.startswith(("slurm.", "slurm="))]
        name, *rest = [word for word in words or [] if word not in own] or [""]
        if name not in VERBS:
            raise ConfigError(f"submit VERB ...: got {name!r}, known: {', '.join(VERBS)}.")
        verb = VERBS[name]
        compose(verb.config, _positional(rest, name), verb.groups)  # said here, not by a node
        refuse_repeated(SubmitConfig, own)
        module = importlib.import_module("bevcask.stages.submit")
        return module.run(name, rest, compose(SubmitConfig, own).slurm, dry_run), module

    _finish(work, as_json)


def main() -> None:
    """Entry point of the `bevcask` command."""
    try:
        with ending(last=True):
            app()
    except Stopped as stopped:  # before or behind a verb's own work
        sys.stderr.write(f"{stopped}\n")
        sys.exit(exit_code(stopped.signal))


if __name__ == "__main__":
    main()
