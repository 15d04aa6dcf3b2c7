"""``python -m lightning_proppo`` is the command ``lightning-proppo``."""

import sys

from lightning_proppo.cli import main

if __name__ == "__main__":
    sys.exit(main())
