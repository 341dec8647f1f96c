"""``python -m server`` is the command line ``listings``."""

from server.cli import main

main()
