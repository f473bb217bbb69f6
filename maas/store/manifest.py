"""`model.json`: what a model folder says of itself, for people and for `maas.load`.

It is data to be judged, not a script: no path in it is ever joined, no name
imported. Size and depth are bounded before it is parsed, and a field that
nobody knows is refused, since it may mean what this version cannot do.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Self

import attrs

from maas.errors import CodecError, LimitExceeded
from maas.signature import Signature

__all__ = ["FORMAT", "MAX_BYTES", "VERSION", "Manifest", "Mode", "Weights"]

FORMAT = "maas-model"
VERSION = 1

MAX_BYTES = 2**20
"""A layer takes about 300 bytes, so some 3,000 of them."""

MAX_DEPTH = 128
"""The deepest signature and the deepest nest of layers take 70 each, two for every level."""

MAX_TEXT = 500
"""Characters of what is shown to people."""


def _line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:MAX_TEXT]


@attrs.frozen(kw_only=True)
class Mode:
    """Train mode or eval mode, exactly.

    Attributes
    ----------
    training : of the module.
    otherwise : names of its submodules that are in the other mode.
    handle : of the `Model` that was saved; None where it was the module's.
    """

    training: bool
    otherwise: list[str]
    handle: bool | None


@attrs.frozen(kw_only=True)
class Weights:
    """The tensor file and what safetensors cannot say.

    Attributes
    ----------
    sha256, bytes : of the file.
    tied : names of tensors that are one with another, which is stored.
    frozen : names of parameters that require no gradient.
    packed : tensors of a dtype that safetensors lacks, stored as bytes: name to dtype and shape.
    channels_last : names of tensors in that memory format.
    left_out : names of non-persistent buffers, which a module makes itself.
    """

    sha256: str
    bytes: int
    tied: dict[str, str]
    frozen: list[str]
    packed: dict[str, list[Any]]
    channels_last: list[str]
    left_out: list[str]


@attrs.frozen(kw_only=True)
class Manifest:
    """A model folder's own account.

    Attributes
    ----------
    name, kind : of the model.
    module : class of the module, for the reader.
    versions : of what it was saved with.
    signature : of the model's own call.
    architecture : the module as layers (`backends.torch_architecture`), or None for weights alone.
    reason : why the architecture is None.
    preprocessing : what stands in front of the model (`maas.data`), or None; then it is left out.
    """

    name: str
    kind: str
    module: str = attrs.field(converter=_line)
    versions: dict[str, str]
    signature: Signature
    mode: Mode
    architecture: dict[str, Any] | None
    reason: str = attrs.field(converter=_line)
    weights: Weights
    preprocessing: dict[str, Any] | None = None

    def to_json(self) -> str:
        """The text of `model.json`.

        Raises
        ------
        LimitExceeded
            More than can be loaded.
        """
        fields = attrs.asdict(self, recurse=False)
        plain = {
            "signature": self.signature.to_data(),
            "mode": attrs.asdict(self.mode),
            "weights": attrs.asdict(self.weights),
        }
        data = {"format": FORMAT, "version": VERSION} | fields | plain
        if self.preprocessing is None:
            # A reader who knows nothing of it can read the folder.
            del data["preprocessing"]
        text = _compact(json.dumps(data, indent=1, allow_nan=False, default=_bytes_to_json)) + "\n"
        if len(text) > MAX_BYTES:
            raise LimitExceeded(
                f"the model's description takes {len(text)} bytes; {MAX_BYTES} are allowed. "
                "Save its parts one by one"
            )
        return text

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """The manifest in a stranger's `model.json`.

        Raises
        ------
        CodecError
            It is no manifest, or one of a version that is unknown here.
        LimitExceeded
            It is longer or deeper than a manifest may be.
        """
        data = _parsed(raw)
        if type(data) is not dict or data.get("format") != FORMAT:
            raise CodecError(f'model.json is no manifest of maas: it wants "format": "{FORMAT}"')
        if data.get("version") != VERSION:
            raise CodecError(
                f"model.json is of version {data.get('version')!r:.20} and this maas reads "
                f"{VERSION}: upgrade maas, or save the model again"
            )
        wanted = {"format": str, "version": int} | _FIELDS
        if "preprocessing" in data:
            wanted["preprocessing"] = dict
        data = _fields(data, wanted, "model.json")
        del data["format"], data["version"]
        for field in ("module", "reason"):
            if len(data[field]) > MAX_TEXT or not data[field].isprintable():
                raise CodecError(f"{field} in model.json is not one short printable line")
        _check_strings(data["versions"].values(), "versions")
        data["signature"] = Signature.from_data(data["signature"])
        data["mode"] = Mode(**_fields(data["mode"], _MODE, "mode"))
        data["weights"] = Weights(**_fields(data["weights"], _WEIGHTS, "weights"))
        _check_strings(data["mode"].otherwise, "mode")
        for names in (
            data["weights"].frozen,
            data["weights"].channels_last,
            data["weights"].left_out,
        ):
            _check_strings(names, "weights")
        _check_strings(data["weights"].tied.values(), "weights")
        return cls(**data)


_FIELDS: dict[str, Any] = {
    "name": str,
    "kind": str,
    "module": str,
    "versions": dict,
    "signature": dict,
    "mode": dict,
    "architecture": dict | None,
    "reason": str,
    "weights": dict,
}
_MODE: dict[str, Any] = {"training": bool, "otherwise": list, "handle": bool | None}
_WEIGHTS: dict[str, Any] = {
    "sha256": str,
    "bytes": int,
    "tied": dict,
    "frozen": list,
    "packed": dict,
    "channels_last": list,
    "left_out": list,
}


def _fields(data: dict[str, Any], wanted: Mapping[str, Any], what: str) -> dict[str, Any]:
    if data.keys() != wanted.keys():
        raise CodecError(f"{what} has the fields {sorted(data)!r:.300}; wanted {sorted(wanted)}")
    for name, kind in wanted.items():
        value = data[name]
        # bool is an int in Python.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise CodecError(f"{name} in {what} of a model folder cannot be {value!r:.60}")
    return data


def _check_strings(values: Any, what: str) -> None:
    if any(type(value) is not str for value in values):
        raise CodecError(f"{what} in model.json names something that is no string")


# Text.

_SCALARS = re.compile(r'\[\n[^\[\]{}"]*\]')
# Possessive, and a string without its end goes on to the end: a megabyte of quotes is read once.
_TOKENS = re.compile(r'"(?:[^"\\]++|\\.|\\\Z)*+(?:"|\Z)|[\[\]{}]', re.DOTALL)
_BYTES = "$bytes"


def _compact(text: str) -> str:
    """Lists of numbers on one line; a string cannot hold the newline that is looked for."""
    return _SCALARS.sub(lambda found: json.dumps(json.loads(found[0])), text)


def _bytes_to_json(value: Any) -> dict[str, str]:
    # Literal[b"..."] in a signature is the only thing that JSON lacks.
    if isinstance(value, bytes):
        return {_BYTES: value.hex()}
    raise TypeError(f"{value!r:.60} has no place in a manifest")


def _object(pairs: list[tuple[str, Any]]) -> Any:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise CodecError(f"model.json has a field twice: {[key for key, _value in pairs]!r:.200}")
    if made.keys() == {_BYTES} and type(made[_BYTES]) is str:
        return bytes.fromhex(made[_BYTES])
    return made


def _no_constant(word: str) -> Any:
    raise CodecError(f"model.json holds {word}, which is not JSON")


def _parsed(raw: bytes) -> Any:
    if len(raw) > MAX_BYTES:
        raise LimitExceeded(f"model.json is longer than {MAX_BYTES} bytes")
    try:
        text = raw.decode("utf-8")
        _check_depth(text)
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except CodecError:
        raise
    except (ValueError, RecursionError) as error:
        raise CodecError(f"model.json is not JSON: {error!s:.200}") from error


def _check_depth(text: str) -> None:
    depth = 0
    for found in _TOKENS.finditer(text):
        if found[0] in "[{":
            depth += 1
        elif found[0] in "]}":
            depth -= 1
        if depth > MAX_DEPTH:
            raise LimitExceeded(f"model.json is nested deeper than {MAX_DEPTH} levels")
