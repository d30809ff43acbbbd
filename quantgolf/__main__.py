"""`python -m quantgolf`: the command line."""

from quantgolf.cli import main

main()
