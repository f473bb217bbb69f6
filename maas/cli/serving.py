"""`maas serve`: from names of targets to models behind an address."""

import argparse
import errno
import importlib
import inspect
import os
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

import maas
from maas.cli.keys import grants, key_in
from maas.cli.messages import Mistake, nearest
from maas.executors.batching import batched
from maas.executors.local import LocalExecutor
from maas.executors.spawning import worker_name
from maas.model import found_by
from maas.server import logs
from maas.server.app import Server
from maas.server.patience import Patience
from maas.store.folders import MANIFEST

__all__ = ["serve"]


def serve(options: argparse.Namespace) -> int:
    """Serves until it is told to stop."""
    # As `python -m` has it; the console script puts its own folder there instead.
    if os.getcwd() not in sys.path and "" not in sys.path:  # noqa: PTH109 - compared with text
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    settings: dict[str, Any] = {
        "host": options.host,
        "port": options.port,
        "uds": options.uds,
        "tls_cert": _file(options.tls_cert, "--tls-cert"),
        "tls_key": _file(options.tls_key, "--tls-key"),
        "insecure": options.insecure,
        "patience": Patience(delay=options.drain_delay or 0.0),
    }
    guarded = _guarded(options)
    if options.log_format or options.access_log:
        logs.configure(options.log_format or "text", access=options.access_log)
    if options.workers is not None:
        if options.max_batch_size is not None:
            raise Mistake(
                "--max-batch-size is for models that run here; let the target of a worker be a "
                "maas.Model with its own batching="
            )
        models: Any = _worker_targets(options)
        settings |= {"workers": options.workers, "devices": _devices(options)}
    else:
        if options.devices:
            raise Mistake("--devices is for workers; give --workers N as well, or one --device")
        models = _models(options)
    if isinstance(models, Server):
        if guarded:
            raise Mistake(
                "that is a maas.Server, which has its own auth and allow, jobs and collect; set "
                "them there"
            )
    else:
        settings |= guarded
    try:
        maas.serve(models, **settings)
    except ValueError as error:
        raise Mistake(f"{error}\n(here: {_AS_OPTIONS})") from error
    except OSError as error:
        raise _unusable(error, options) from error
    return 0


_AS_OPTIONS = "--auth or --key-file, --tls-cert and --tls-key, --insecure"


def _guarded(options: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if options.auth and options.key_file:
        raise Mistake("--auth and --key-file are two ways to say who may ask; give one")
    if options.auth:
        settings["auth"] = key_in(options.auth)
    if options.key_file:
        settings["auth"] = Path(str(_file(options.key_file, "--key-file")))
    if options.allow:
        settings["allow"] = grants(options.allow)
    if options.jobs:
        settings["jobs"] = options.jobs
    if options.collect:
        try:
            settings["collect"] = maas.data.Collect(options.collect)
        except OSError as error:
            raise _unusable(error, options) from error
    return settings


def _file(path: str | None, option: str) -> str | None:
    if path is not None and not Path(path).is_file():
        raise Mistake(
            f"{option}: there is no file {path!r}{nearest(Path(path).name, _beside(path))}"
        )
    return path


def _beside(path: str) -> list[str]:
    folder = Path(path).parent
    return [each.name for each in folder.iterdir()] if folder.is_dir() else []


def _unusable(error: OSError, options: argparse.Namespace) -> Mistake:
    if error.filename is not None and str(error.filename) != options.uds:  # a folder's
        return Mistake(f"cannot use {str(error.filename)!r}: {error.strerror}")
    place = options.uds or f"port {options.port} of {options.host}"
    if error.errno == errno.EADDRINUSE:
        another = "--uds" if options.uds else "--port (0 takes a free one)"
        return Mistake(
            f"{place} is in use by another program; stop that, or give another {another}"
        )
    if error.errno == errno.EACCES:
        return Mistake(f"{place} is not allowed to this user; ports from 1024 are")
    return Mistake(f"cannot listen on {place}: {error.strerror or error}")


# Targets.


def _devices(options: argparse.Namespace) -> list[str]:
    if options.device is not None and options.devices is not None:
        raise Mistake("--device and --devices are two ways to say where; give one")
    given = options.devices or options.device
    return given.split(",") if given else []


def _worker_targets(options: argparse.Namespace) -> dict[str, str]:
    """The targets by name, unseen: each worker imports its own."""
    found: dict[str, str] = {}
    for target in options.targets:
        name, _equals, place = target.rpartition("=")
        for own, inner in _places(place):
            _add(found, name or own or worker_name(inner), inner)
    return found


def _places(place: str) -> list[tuple[str, str]]:
    path = Path(place)
    if path.is_dir():
        return [(own, str(folder)) for own, folder in _model_folders(path)]
    if ":" not in place:
        raise Mistake(_no_target(place))
    return [("", place)]


def _models(options: argparse.Namespace) -> Any:
    """The models by name, or the server that a single target is."""
    found: dict[str, Any] = {}
    for target in options.targets:
        name, equals, place = target.rpartition("=")
        if equals and not name:
            raise Mistake(f"{target!r} wants a name before the =")
        for own, made in _found(place, options.device):
            if isinstance(made, Server):
                if len(options.targets) > 1 or name:
                    raise Mistake(f"{place} is a maas.Server, and is served alone, without a name")
                return made
            model = _model(made, place, name or own, options)
            _add(found, name or own, model if Path(place).is_dir() else found_by(model, place))
    return found


def _add(found: dict[str, Any], name: str, model: Any) -> None:
    name = name or model.name
    if name in found:
        raise Mistake(f"two models are called {name!r}; name one, as in other={name}")
    found[name] = model


def _model(target: Any, place: str, name: str, options: argparse.Namespace) -> Any:
    rows: int | None = options.max_batch_size
    batching = None if rows is None else maas.Batching(rows)
    if isinstance(target, maas.Model):
        if options.device is not None and not Path(place).is_dir():
            raise Mistake(
                f"{place} is a maas.Model already, which --device cannot move; do it there"
            )
        return target if batching is None else _batched(target, place, batching)
    if inspect.isclass(target):
        raise Mistake(f"{place} is a class; serve an object of it: net = {target.__name__}(...)")
    try:
        return maas.Model(target, name=name or None, device=options.device, batching=batching)
    except (TypeError, ValueError) as error:
        raise Mistake(f"{place} cannot be served: {error}") from error
    except (AssertionError, RuntimeError) as error:
        # Both are torch's ways to say that there is no such device.
        if options.device is None:
            raise
        raise Mistake(f"{place} cannot be moved to --device {options.device}: {error}") from error


def _batched(model: maas.Model[..., Any], place: str, batching: maas.Batching) -> Any:
    if not isinstance(model.executor, LocalExecutor):
        raise Mistake(
            f"{place} is a maas.Model that is batched or runs elsewhere, so --max-batch-size "
            "says nothing to it"
        )
    try:
        return maas.Model.over(batched(model.executor, batching), model.name)
    except ValueError as error:
        raise Mistake(f"{place}: {error}") from error


def _found(place: str, device: str | None) -> list[tuple[str, Any]]:
    """What stands at a place, each with the name that the place gives it, if any."""
    path = Path(place)
    if path.is_dir():
        return _folders(path, device)
    if ":" not in place:
        raise Mistake(_no_target(place))
    return [(worker_name(place), _attribute(*place.split(":", 1)))]


def _no_target(place: str) -> str:
    if place.endswith(".py"):
        module = re.sub(r"^(\.?/)+", "", place.removesuffix(".py")).replace("/", ".")
        return f"{place!r} is a file; write module:attribute, such as {module}:net"
    if "/" in place:
        return f"there is no folder {place!r}{nearest(Path(place).name, _beside(place))}"
    return f"{place!r} is neither module:attribute, such as mypkg.models:net, nor a model folder"


def _folders(path: Path, device: str | None) -> list[tuple[str, Any]]:
    """The model in a folder, or the models in the folders in it."""
    return [(own, maas.load(folder, device=device)) for own, folder in _model_folders(path)]


def _model_folders(path: Path) -> list[tuple[str, Path]]:
    if (path / MANIFEST).is_file():
        return [("", path)]
    inner = sorted(each.parent for each in path.glob(f"*/{MANIFEST}"))
    if not inner:
        raise Mistake(f"{str(path)!r} holds no model that maas.save() made: no {MANIFEST} in it")
    return [(each.name, each) for each in inner]


def _attribute(module: str, attribute: str) -> Any:
    target: Any = _module(module)
    for part in attribute.split("."):
        try:
            target = getattr(target, part)
        except AttributeError:
            known = [name for name in dir(target) if not name.startswith("_")]
            raise Mistake(
                f"{module!r} has no {attribute!r}{nearest(part, known) or _choice(known)}"
            ) from None
    return target


def _choice(known: list[str]) -> str:
    return f"; it has: {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}" if known else ""


def _module(name: str) -> Any:
    if re.fullmatch(r"\w+(\.\w+)*", name) is None:
        raise Mistake(_no_target(name) if name.endswith(".py") else f"{name!r} is no module's name")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        # One that the module itself wants is not our caller's spelling.
        if name != missing and not name.startswith(f"{missing}."):
            raise
        if name.endswith(".py"):
            raise Mistake(_no_target(name)) from None
        raise Mistake(f"there is no module {missing!r}{_near_module(missing)}") from None


def _near_module(name: str) -> str:
    package, _, last = name.rpartition(".")
    path = getattr(sys.modules.get(package), "__path__", None) if package else None
    known = [each.name for each in pkgutil.iter_modules(path)]
    hint = nearest(last, known)
    return hint or f"; modules are looked for in {os.getcwd()!r} first"  # noqa: PTH109
