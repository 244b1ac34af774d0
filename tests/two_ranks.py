"""Two processes that run command lines together, as torchrun's would; started once."""

import functools
import multiprocessing
import os
import socket
import traceback
from multiprocessing.connection import Connection
from typing import Any

import pytest
from torch.optim import AdamW
from typer.testing import CliRunner

from bevcask.cli import app
from bevcask.training import module
from command_words import last_of_each_key
from ending import at_step

Answer = tuple[int, str, str]


class TwoRanks:
    """Runs a command line on two ranks; torch is imported once."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        for rank in range(2):
            mine, its = context.Pipe()
            process = context.Process(target=_serve, args=(rank, its), daemon=False)
            process.start()
            its.close()
            self._ends.append(mine)
            self._processes.append(process)

    def __call__(self, *words: str, **said: Any) -> list[Answer]:
        """Return exit code, stdout and stderr of each rank.

        Args:
            words: of the command line.
            said: `at_step=(rank, step, number)`: this rank is sent a signal then.
        """
        with socket.socket() as own:
            own.bind(("127.0.0.1", 0))
            port = own.getsockname()[1]
        for end in self._ends:
            end.send((port, [str(word) for word in words], said))
        return [end.recv() for end in self._ends]

    def __enter__(self) -> "TwoRanks":
        return self

    def __exit__(self, *error: object) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(10)
            process.kill()


def calm(patch: pytest.MonkeyPatch) -> None:
    """Make steps follow small gradients like small ones: Adam takes the sign of their rounding."""
    patch.setattr(module, "AdamW", functools.partial(AdamW, eps=1.0))


def _serve(rank: int, end: Connection) -> None:
    while True:
        try:
            port, words, said = end.recv()
        except EOFError:
            return
        variables = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in variables.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        with pytest.MonkeyPatch.context() as patch:
            calm(patch)
            if "at_step" in said and said["at_step"][0] in (rank, "all"):
                at_step(patch, *said["at_step"][1:])
            answer = CliRunner().invoke(app, last_of_each_key(*words))
        err = answer.stderr
        if answer.exception is not None and not isinstance(answer.exception, SystemExit):
            err += "".join(traceback.format_exception(answer.exception))
        end.send((answer.exit_code, answer.stdout, err))
