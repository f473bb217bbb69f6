"""`python -m maas` is the command `maas`."""

import sys

from maas.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
