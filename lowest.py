"""Print the lower bound of every dependency as a constraint: what `make test-lowest` installs.

torch stays at the version of constraints.txt: older wheels on PyPI bring gigabytes of CUDA.
"""

import re
import sys
import tomllib
from pathlib import Path

with (Path(__file__).parent / "pyproject.toml").open("rb") as file:
    for requirement in tomllib.load(file)["project"]["dependencies"]:
        name, bound = re.findall(r"^([\w-]+).*?>=([\d.]+)", requirement)[0]
        if name != "torch":
            sys.stdout.write(f"{name}=={bound}\n")
