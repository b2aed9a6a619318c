"""``python -m fedleak`` is ``fedleak``."""

from fedleak.cli import main

main()
