"""``python -m haclient.cli``."""

from haclient.cli import main

main()
