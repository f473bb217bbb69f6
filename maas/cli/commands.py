"""The commands with their options, and what a shell is told of how they ended.

Exit codes: 0 all went well; 1 the model, the server or the way there failed; 2 the command is
wrong, and its message says how; 130 ended by Ctrl-C.

What a command does stands in the module that `_MODULES` names; it is loaded when the
command is given, so that `maas --help` waits for no other.
"""

import argparse
import importlib
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from maas.cli.messages import Mistake, complain, nearest, say

__all__ = ["main"]

_MODULES = {
    "serve": "maas.cli.serving",
    "describe": "maas.cli.asking",
    "call": "maas.cli.asking",
    "bench": "maas.cli.benchmark",
    "key": "maas.cli.keys",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and gives its exit code; `arguments` are those of the shell by default."""
    options = _parsed(sys.argv[1:] if arguments is None else arguments)
    command: Callable[[argparse.Namespace], int] = getattr(
        importlib.import_module(_MODULES[options.command]), options.command
    )
    try:
        return command(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read has heard enough. Python would complain of it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Mistake as mistake:
        complain(f"maas {options.command}: {mistake}")
        return 2
    except Exception as error:  # noqa: BLE001 - a model may raise anything
        return _failed(error, whole=options.traceback)


def _failed(error: Exception, *, whole: bool) -> int:
    if whole:
        complain("".join(traceback.format_exception(error)).rstrip())
    else:
        complain(f"{type(error).__name__}: {error}")
        complain("(--traceback shows where it arose)")
    return 1


# Parsing.


class _Parser(argparse.ArgumentParser):
    """Names the nearest spelling of what it does not know."""

    def __init__(self, **settings: Any) -> None:
        settings |= {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        """Ends the program with code 2."""
        complain(f"{self.prog}: {message}\n(see: {self.prog} --help)")
        raise SystemExit(2)

    def unknown(self, extra: Sequence[str]) -> NoReturn:
        """Ends the program because of arguments that belong nowhere."""
        known = [name for action in self._actions for name in action.option_strings]
        given = extra[0].partition("=")[0]
        self.error(f"{given!r} is not understood here{nearest(given, known)}")


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    command = next((each for each in arguments if not each.startswith("-")), "")
    if command and command not in _MODULES:
        hint = nearest(command, _MODULES) or f"; there are: {', '.join(_MODULES)}"
        parser.error(f"no command {command!r}{hint}")
    if not arguments:
        parser.print_help()
        raise SystemExit(2)
    options, extra = parser.parse_known_args(arguments)
    if extra:
        # Subcommands want their files in one place; `call URL --timeout 5 x.npy` has them in two.
        rest = arguments[list(arguments).index(command) + 1 :]
        options, extra = options.parser.parse_known_intermixed_args(
            rest, argparse.Namespace(command=command)
        )
    if extra:
        options.parser.unknown(extra)
    return options


def _parser() -> _Parser:
    parser = _Parser(
        prog="maas",
        description="Serve models and ask them, here or anywhere.",
        epilog=_MAIN_EXAMPLES,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (purpose, examples, add) in _COMMANDS.items():
        each = commands.add_parser(name, help=purpose, description=purpose, epilog=examples)
        each.add_argument(
            "--traceback", action="store_true", help="show where an error arose, there as well"
        )
        each.set_defaults(parser=each)
        add(each)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        say(importlib.import_module("maas.versions").maas_version())
        parser.exit(0)


# The commands.

_MAIN_EXAMPLES = """\
examples:
  maas serve mypkg.models:net            serve what `net` in mypkg/models.py is
  maas describe http://localhost:8000/net
  maas call http://localhost:8000/net x.npy

`maas COMMAND --help` tells more of each."""

_SERVE_EXAMPLES = """\
examples:
  maas serve mypkg.models:net                      one model, at http://127.0.0.1:8000/net
  maas serve digits=mypkg.models:net mypkg.text:tokens
  maas serve models/digits/                        a folder of maas.save(), or of such folders
  maas serve mypkg.models:net --uds /run/maas.sock for this user's processes alone
  maas serve mypkg.models:net --workers 2 --devices cuda:0,cuda:1
  maas serve mypkg.models:net --host 0.0.0.0 --key-file keys.toml --tls-cert c.pem --tls-key k.pem
  maas serve mypkg.models:net --allow call,describe,train --jobs /var/lib/maas/jobs
  maas serve mypkg.models:net --access-log --log-format json

The page at / shows how the models are doing; /metrics is for Prometheus.

Modules are looked for in this folder first, as with `python -m`. Ctrl-C finishes the calls in
flight and ends the server."""


def _add_serve(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("targets", nargs="+", metavar="[NAME=]TARGET", help="module:attribute, or a model folder")
    add("--host", default="127.0.0.1", help="address to listen on (this machine only by default)")
    add("--port", type=_port, default=8000, help="port to listen on; 0 takes a free one (8000)")
    add("--uds", metavar="PATH", help="listen on a unix socket instead")
    add("--auth", metavar="VARIABLE", help="callers need the key in this environment variable")
    add("--key-file", metavar="PATH", help="callers need a key of this file; see `maas key`")
    add("--tls-cert", metavar="PATH", help="certificate chain, to speak TLS")
    add("--tls-key", metavar="PATH", help="the certificate's key")
    add(
        "--insecure",
        action="store_true",
        help="let others reach this server without key or TLS, as something else protects it",
    )
    add(
        "--allow",
        metavar="GRANTS",
        help="what callers may do, with commas between (call,describe)",
    )
    add("--device", help="torch device to move the models to, as cuda:0")
    add("--workers", type=_up_to(1_000), metavar="N", help="run each model in so many processes")
    add("--devices", metavar="DEVICES", help="torch devices of the workers, with commas between")
    add(
        "--max-batch-size",
        type=_up_to(1_000_000),
        metavar="ROWS",
        help="let calls that wait go through a model together, up to so many rows",
    )
    add("--jobs", metavar="FOLDER", help="keep training jobs there; they want the grant train")
    add("--collect", metavar="FOLDER", help="keep there what the models are asked, to learn from")
    add(
        "--drain-delay",
        type=_delay,
        metavar="SECONDS",
        help="when told to stop, say 'not ready' and take calls for so long before the drain (0)",
    )
    add("--access-log", action="store_true", help="write a line for each request to standard error")
    add(
        "--log-format",
        choices=("text", "json"),
        help="write the log as lines of text, or of JSON (text, with --access-log)",
    )


def _add_place(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("url", help="where the model is: http://, https:// or http+unix://, host and model")
    add("--auth", metavar="VARIABLE", help="show the key in this environment variable")
    add("--ca", metavar="PATH", help="trust this certificate authority instead of the usual ones")
    add("--insecure", action="store_true", help="send the key even over unencrypted http")
    add("--timeout", type=_seconds, metavar="SECONDS", help="wait no longer than this")


_DESCRIBE_EXAMPLES = """\
examples:
  maas describe http://localhost:8000/net
  maas describe https://gpu-1:8000/net --auth MAAS_KEY --json"""


def _add_describe(parser: argparse.ArgumentParser) -> None:
    _add_place(parser)
    parser.add_argument("--json", action="store_true", help="everything, as JSON")


_CALL_EXAMPLES = """\
examples:
  maas call http://localhost:8000/net x.npy
  maas call http://localhost:8000/net x.npy --output y.npy
  echo '{"text": "hello"}' | maas call http://localhost:8000/tokens -
  maas call http://localhost:8000/chat prompt.json --method reply

A .npy file is an argument in order; .npz and .safetensors hold arguments by name; .json and
`-` (standard input) hold a JSON call: an object of arguments by name, or an array of them."""

_FILES = "the arguments: .npy, .npz, .safetensors or .json files, or - for JSON from standard input"


def _add_call(parser: argparse.ArgumentParser) -> None:
    _add_place(parser)
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help=_FILES)
    add("--method", metavar="NAME", help="a method of the model instead of the model itself")
    add("--output", metavar="FILE", help="write the answer to this .npy, .safetensors or .json")


_BENCH_EXAMPLES = """\
examples:
  maas bench http://localhost:8000/net
  maas bench http://localhost:8000/net x.npy --concurrency 8 --seconds 10
  maas bench http://localhost:8000/net --sweep 64            1, 2, 4, ... 64 at once, and a picture
  maas bench http://localhost:8000/net --timeout 0.1         what is later than that is an error
  maas bench http://localhost:8000/net --json > before.json

Each of so many threads asks again as soon as it is answered. Goodput is the calls a second that
were answered without an error; a percentile, such as p99, is the time that 99 of 100 answers did
not exceed. Look at p99 where goodput no longer grows: from there on more calls at once only wait.

Without a file an example is made from the signature; zeros, for arrays. The first call, which
opens the connection, is not counted. Client and server on one machine share its cores."""


def _add_bench(parser: argparse.ArgumentParser) -> None:
    _add_place(parser)
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help=_FILES)
    add("--method", metavar="NAME", help="a method of the model instead of the model itself")
    add("--concurrency", type=_up_to(1_000), default=1, metavar="N", help="calls at once (1)")
    add(
        "--sweep",
        type=_up_to(1_000),
        metavar="N",
        help="measure 1, 2, 4, ... N calls at once instead",
    )
    add("--seconds", type=_seconds, default=5.0, metavar="S", help="how long, each (5)")
    add("--json", action="store_true", help="the figures as JSON")


_KEY_EXAMPLES = """\
examples:
  maas key alice >> keys.toml
  maas key bob --allow call --models net,chat.reply >> keys.toml
  maas serve mypkg.models:net --key-file keys.toml

The table goes to standard output; the key itself to standard error, once, for whoever will use
it. Only its digest is in the file. Deleting the table withdraws the key, without a restart."""


def _add_key(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", nargs="?", default="key", help="whose key it is (key)")
    add("--allow", metavar="GRANTS", help="what the key allows, if not what the server does")
    add("--models", metavar="NAMES", help="models or model.method it is for, if not for all")


_COMMANDS = {
    "serve": ("Serve models over HTTP.", _SERVE_EXAMPLES, _add_serve),
    "describe": ("Tell what a model takes and gives.", _DESCRIBE_EXAMPLES, _add_describe),
    "call": ("Ask a model, and print the answer.", _CALL_EXAMPLES, _add_call),
    "bench": ("Measure how many calls a model answers, and how fast.", _BENCH_EXAMPLES, _add_bench),
    "key": ("Make a key for a caller.", _KEY_EXAMPLES, _add_key),
}


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, got {text!r}")
    return int(text)


def _up_to(most: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"wants a number from 1 to {most}, got {text!r}")
        return int(text)

    return count


def _seconds(text: str) -> float:
    seconds = _number(text)
    if not 0 < seconds <= 1e6:
        raise argparse.ArgumentTypeError(f"wants a number of seconds above 0, got {text!r}")
    return seconds


def _delay(text: str) -> float:
    seconds = _number(text)
    if not 0 <= seconds <= 1e6:
        raise argparse.ArgumentTypeError(f"wants a number of seconds, 0 for none, got {text!r}")
    return seconds


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
