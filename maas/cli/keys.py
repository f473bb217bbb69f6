"""`maas key`: a random key, and the table of a key file that lets its holder in."""

import argparse
import hashlib
import json
import os
import re
import secrets

from maas.cli.messages import Mistake, complain, nearest, say
from maas.server.guard import GRANTS

__all__ = ["grants", "key", "key_in"]


def key(options: argparse.Namespace) -> int:
    """Writes the table to standard output and the key to standard error."""
    if re.fullmatch("[A-Za-z0-9_-]{1,64}", options.name) is None:
        raise Mistake(f"a name is of letters, digits, _ and -; got {options.name!r}")
    text = secrets.token_urlsafe(32)
    allowed = grants(options.allow) if options.allow else None
    say(f"[{options.name}]")
    say(f'sha256 = "{hashlib.sha256(text.encode()).hexdigest()}"')
    if allowed:
        say(f"allow = {json.dumps(allowed)}")
    if options.models:
        say(f"models = {json.dumps([name.strip() for name in options.models.split(',')])}")
    say()
    complain(f"the key of {options.name}, shown only this once: {text}")
    return 0


def grants(text: str) -> list[str]:
    """The grants in a list with commas."""
    given = [each.strip() for each in text.split(",")]
    for each in given:
        if each not in GRANTS:
            hint = nearest(each, GRANTS)
            raise Mistake(f"no grant {each!r}{hint}; there are: {', '.join(sorted(GRANTS))}")
    return given


def key_in(variable: str) -> str:
    """The key in that environment variable."""
    key = os.environ.get(variable, "")
    if not key:
        # The text itself is not repeated: it may be the key.
        raise Mistake(
            "--auth wants the name of an environment variable that holds the key, and none of "
            "the name given is set; export MAAS_KEY=..., then --auth MAAS_KEY"
        )
    return key
