"""A process of a sweep; see `quantgolf.sweep.worker`."""

from quantgolf.sweep.worker import main

main()
