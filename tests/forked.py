"""Processes of their own that start in no time: forked where the imports are done already."""

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

from bevcask.processes import FORK_SERVER
from command_words import last_of_each_key


def start(work: Callable[..., Any], *words: object) -> BaseProcess:
    """Begin `work(*words)` in a child of the fork server that loaders use, preloaded as theirs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([FORK_SERVER, "bevcask.data.join"])
    process = context.Process(target=work, args=[str(word) for word in words])
    process.start()
    return process


def command(*words: str) -> None:
    """Do what the command line does."""
    from bevcask.cli import main

    sys.argv = ["bevcask", *last_of_each_key(*words)]
    main()


def kill(process: BaseProcess) -> None:
    """Kill -9 and wait."""
    process.kill()
    process.join()


def finish(process: BaseProcess) -> None:
    """Wait for the end, which must be a good one."""
    process.join()
    assert process.exitcode == 0
