"""`python -m bevcask`: the command line."""

from bevcask.cli import main

main()
