"""`maas describe` and `maas call`: what a model says about itself, and what it answers."""

import argparse
import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import maas
from maas.backends.base import Method
from maas.calls import CALL, Context
from maas.cli import files
from maas.cli.keys import key_in
from maas.cli.messages import Mistake, nearest, say
from maas.executors.base import ModelInfo
from maas.server import examples, json_form

__all__ = ["asked", "call", "connected", "describe"]


_PATIENCE = 60.0
"""Seconds to wait for a server to say what it serves, where no --timeout says otherwise."""


def connected(options: argparse.Namespace) -> Any:
    """The model at the URL that was given, which has said what it is."""
    settings: dict[str, Any] = {}
    if options.auth:
        settings["auth"] = key_in(options.auth)
    if options.ca:
        settings["verify"] = options.ca
    if options.insecure:
        settings["insecure"] = True
    try:
        model = maas.connect(options.url, **settings)
    except (ValueError, TypeError, OSError) as error:
        raise Mistake(str(error)) from error
    patience = _PATIENCE if options.timeout is None else options.timeout
    with contextlib.suppress(AttributeError):  # it may have methods only
        model.executor.method(CALL, Context(deadline=time.monotonic() + patience))
    return model


def asked(model: Any, options: argparse.Namespace) -> tuple[Any, Method]:
    """What is to be called, the model or a method of it, and that method's description."""
    name = options.method or CALL
    methods = model.info.methods
    if name not in methods:
        known = [each for each in methods if each != CALL]
        if name == CALL:
            raise Mistake(f"{model.name!r} is called by a method: --method {' or '.join(known)}")
        hint = nearest(name, known) or f"; it has: {', '.join(known) or 'none'}"
        raise Mistake(f"{model.name!r} has no method {name!r}{hint}")
    if options.timeout is not None:
        model = model.with_options(timeout=options.timeout)
    return (model if name == CALL else getattr(model, name)), methods[name]


def call(options: argparse.Namespace) -> int:
    """Asks, and shows or writes the answer."""
    if options.output:
        files.check_output(options.output)
    with connected(options) as model:
        target, method = asked(model, options)
        args, kwargs = files.read(options.files, method, model.info.kind)
        if not method.streams:
            _give(target(*args, **kwargs), options)
        elif options.output:
            _give(list(target.stream(*args, **kwargs)), options)
        else:
            for item in target.stream(*args, **kwargs):
                files.show(item)
    return 0


def _give(value: Any, options: argparse.Namespace) -> None:
    if options.output:
        files.write(value, options.output)
    else:
        files.show(value)


def describe(options: argparse.Namespace) -> int:
    """Prints what the model is."""
    with connected(options) as model:
        if options.json:
            say(json_form.line(json_form.plain(model.describe())).decode().rstrip("\n"))
        else:
            for text in _described(model.info):
                say(text)
    return 0


_MODES = {True: "train mode", False: "eval mode"}


def _described(info: ModelInfo) -> Iterator[str]:
    facts = [info.kind, info.device, _MODES.get(info.training)]  # type: ignore[arg-type]
    yield f"{info.name} ({', '.join(fact for fact in facts if fact)})"
    yield f"at {info.where}"
    yield ""
    for method in info.methods.values():
        name = info.name if method.name == CALL else f"{info.name}.{method.name}"
        yield method.signature.render(name)
        if method.doc:
            yield f"    {method.doc}"
        if method.streams:
            yield "    Streams its items."
    yield from _layers(info)
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in info.versions.items())
    yield f"runs on {versions}"


def _layers(info: ModelInfo) -> Iterator[str]:
    rows = [
        (
            layer.name or "(itself)",
            layer.type,
            ", ".join(f"{name} {list(shape)}" for name, (_, shape) in layer.parameters.items()),
            f"{layer.size:,}",
        )
        for layer in examples.layers(info)
    ]
    if rows:
        total = sum(layer.size for layer in examples.layers(info))
        yield ""
        yield from _table([("layer", "type", "parameters", f"{total:,}"), *rows])


def _table(rows: list[tuple[str, ...]]) -> Iterable[str]:
    """Columns one under the other; the last one, of numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        yield "  ".join([*cells, row[-1].rjust(widths[-1])])
