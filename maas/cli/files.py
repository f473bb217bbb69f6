"""Arguments from files, and answers into files and onto the screen."""

import importlib
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from maas import tensors
from maas.backends.base import Method
from maas.cli.messages import Mistake, nearest, say
from maas.errors import CodecError, LimitExceeded
from maas.limits import Limits
from maas.server import json_form

__all__ = ["check_output", "read", "show", "write"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_JSON = Limits(header=2**28)
"""One's own file may be larger than what a server reads of a stranger's."""


def read(files: Iterable[str], method: Method, kind: str) -> Arguments:
    """The arguments that the files hold, in their order and by their names."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name in files:
        more, named = _read(name, method, kind)
        twice = kwargs.keys() & named.keys()
        if twice:
            raise Mistake(f"{name!r} gives {', '.join(sorted(twice))} again")
        args += more
        kwargs |= named
    return tuple(args), kwargs


def _read(name: str, method: Method, kind: str) -> Arguments:
    if name == "-":
        return _from_json(sys.stdin.buffer.read(), "standard input", method, kind)
    path = Path(name)
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise Mistake(_unknown(name, _READERS))
    if not path.is_file():
        beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise Mistake(f"there is no file {name!r}{nearest(path.name, beside)}")
    try:
        return reader(path, method, kind)
    except (ValueError, OSError) as error:
        raise Mistake(f"{name!r} cannot be read as {path.suffix}: {error}") from error


def _unknown(name: str, known: Iterable[str]) -> str:
    suffix = Path(name).suffix
    hint = nearest(suffix, known) if suffix else ""
    kinds = ", ".join(known)
    return f"{name!r} is of no type that is known here{hint}; known: {kinds}, - for JSON"


def _from_json(data: bytes, name: str, method: Method, kind: str) -> Arguments:
    try:
        return json_form.arguments(data, method, kind, _JSON)
    except CodecError as error:
        raise Mistake(f"{name}: {error}") from error


def _read_npz(path: Path, _method: Method, _kind: str) -> Arguments:
    with np.load(path, allow_pickle=False) as archive:
        named = {name: archive[name] for name in archive.files}
    # What np.savez() was given without a name is called so.
    ordered = [named.pop(f"arr_{index}") for index in range(len(named)) if f"arr_{index}" in named]
    return tuple(ordered), named


_READERS: dict[str, Callable[[Path, Method, str], Arguments]] = {
    ".npy": lambda path, _method, _kind: ((np.load(path, allow_pickle=False),), {}),
    ".npz": _read_npz,
    ".safetensors": lambda path, _method, _kind: ((), dict(_safetensors().load_file(path))),
    ".json": lambda path, method, kind: _from_json(path.read_bytes(), str(path), method, kind),
}


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.numpy")
    except ModuleNotFoundError:
        raise Mistake(
            ".safetensors files need the safetensors package: pip install 'maas-sdk[cli]'"
        ) from None


# Answers.


def check_output(name: str) -> None:
    """Refuses a file of an unknown type, before the model is asked for what goes into it."""
    if Path(name).suffix not in _WRITERS:
        raise Mistake(_unknown(name, _WRITERS).removesuffix(", - for JSON"))
    if not Path(name).absolute().parent.is_dir():
        raise Mistake(f"there is no folder for {name!r}; make it first")


def write(value: Any, name: str) -> None:
    """Writes an answer to a file."""
    _WRITERS[Path(name).suffix](value, Path(name))


def _write_npy(value: Any, path: Path) -> None:
    array = _array(value)
    if array is None:
        raise Mistake(f"the answer is a {type(value).__name__}, no array; write it to a .json file")
    np.save(path, array, allow_pickle=False)


def _write_safetensors(value: Any, path: Path) -> None:
    named = value if isinstance(value, dict) else {"result": value}
    arrays = {str(name): _array(item) for name, item in named.items()}
    wrong = [name for name, array in arrays.items() if array is None]
    if wrong:
        raise Mistake(f"the answer's {wrong[0]} is no array; write it to a .json file")
    _safetensors().save_file(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()}, path
    )


def _write_json(value: Any, path: Path) -> None:
    path.write_bytes(json_form.line(json_form.plain(value)))


_WRITERS: dict[str, Callable[[Any, Path], None]] = {
    ".npy": _write_npy,
    ".safetensors": _write_safetensors,
    ".json": _write_json,
}


def _array(value: Any) -> Any:
    """The value as a NumPy array, or None where it is no array or NumPy has no such dtype."""
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if tensors.facts(value) is None or not hasattr(value, "detach"):
        return None
    try:
        return value.detach().cpu().numpy()
    except TypeError:
        return None


def show(value: Any) -> None:
    """Prints an answer: text as it is, arrays with dtype and shape, all else as JSON."""
    facts = tensors.facts(value)
    if type(value) is str:
        say(value)
    elif facts is not None:
        dtype, shape = facts
        say(f"{dtype}{list(shape)}")
        array = _array(value)
        say(str(value) if array is None else np.array2string(array, precision=6, threshold=200))
    else:
        say(_text(value))


def _text(value: Any) -> str:
    try:
        return json.dumps(json_form.plain(value), ensure_ascii=False)
    except LimitExceeded as error:
        raise LimitExceeded("the answer is too long to print; give --output FILE") from error
