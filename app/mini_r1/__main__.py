"""`python -m mini_r1`: the command line, with whichever Python it is."""

from mini_r1.cli.app import main

main()
