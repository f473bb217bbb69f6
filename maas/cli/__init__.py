"""The command line: `maas serve`, `describe`, `call`, `bench`, `key`.

Everything here stands on the public names of `maas`; what a command does can be done in a
program by the same names.
"""

from maas.cli.commands import main

__all__ = ["main"]
