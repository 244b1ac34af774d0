"""Print dependencies with a bound of their own: what two of the Makefile's lanes install.

`lowest`: the lower bound of each, as constraints. `newest`: each without an upper bound, but
nuscenes-devkit, which asks for an old numpy (it is installed without its dependencies, and these
are listed).

torch stays at the version of constraints.txt: other wheels on PyPI bring gigabytes of CUDA.
"""

import re
import sys
import tomllib
from pathlib import Path

DEVKIT = ("pyquaternion", "cachetools", "descartes", "scikit-learn", "parameterized", "pycocotools")

with (Path(__file__).parent / "pyproject.toml").open("rb") as file:
    for requirement in tomllib.load(file)["project"]["dependencies"]:
        name, extras, bound = re.findall(r"^([\w-]+)(\[.*\])?>=([\d.]+)", requirement)[0]
        if name == "torch":
            continue
        if sys.argv[1] == "lowest":
            sys.stdout.write(f"{name}=={bound}\n")
        elif name == "nuscenes-devkit":
            sys.stdout.writelines(f"{own}\n" for own in DEVKIT)
        else:
            sys.stdout.write(f"{name}{extras}>={bound}\n")
