"""Where and how a file was made: versions, host, command, git, time. State, never identity."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bevcask import __version__
from bevcask.errors import ConfigError
from bevcask.scheduler import local_rank

if TYPE_CHECKING:
    import torch

_DRIVER = Path("/proc/driver/nvidia/version")
_PACKAGES = ("torch", "numpy", "zarr", "numcodecs", "nuscenes-devkit")


def provenance() -> dict[str, Any]:
    """Return versions, host, command, git revision and UTC time as plain JSON data."""
    return {
        "bevcask": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
        "host": platform.node(),
        "machine": f"{platform.system()} {platform.machine()}",
        "command": command(),
        "git": git_revision(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def command() -> str:
    """Return this process's command line, program folder left out; `-m bevcask` is `bevcask`."""
    program = Path(sys.argv[0])
    name = "bevcask" if program.parts[-2:] == ("bevcask", "__main__.py") else program.name
    return shlex.join([name, *sys.argv[1:]])


def git_revision() -> str | None:
    """Return `git describe` of the source tree; None outside a checkout or without git."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def hardware(device: "torch.device") -> dict[str, Any]:
    """Return what a device is, and what its kernels come from."""
    import torch

    if device.type != "cuda":
        return {"device": device.type}
    driver = _DRIVER.read_text().partition("\n")[0] if _DRIVER.is_file() else None
    return {
        "device": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "driver": driver,
    }


def pick_device(name: str) -> "torch.device":
    """Turn `auto | cpu | cuda | cuda:N` into a device; `auto` and `cuda` are each rank's own.

    Raises:
        ConfigError: not a device, or CUDA asked for where there is none.
    """
    import torch

    if name == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    if name in ("auto", "cuda") and torch.cuda.is_available():
        rank = local_rank(os.environ)
        if rank is None:
            return torch.device("cuda")
        return torch.device("cuda", rank % torch.cuda.device_count())
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name}: expected auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name}: this torch sees no CUDA device. Use device=cpu.")
    return device


def peak_memory() -> int:
    """Return the most bytes that this process had: on its GPU if it used one, else at home."""
    import resource

    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
