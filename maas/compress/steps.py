"""The table of steps, and a step as plain data: a server is sent its name, and no code.

A step of one's own is named by an entry point in the group `maas.compressions`: an attrs class
whose fields are plain values, or a function that has none. Where it is installed it is one of the
table: `maas.compress.<name>` here, and at a server that has it as well.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from maas import entry_points
from maas.compress.choices import choice
from maas.compress.compile import Compile
from maas.compress.distill import Distill
from maas.compress.factor import Factor
from maas.compress.gate import Agreement, Gate, RelativeError, ScoreDrop
from maas.compress.prune import Prune
from maas.compress.quantize import Quantize
from maas.compress.trial import Check, Step
from maas.data.datasets import NAME
from maas.errors import Unsupported
from maas.jobs.rows import given, packed
from maas.spelling import offered

__all__ = [
    "OURS",
    "Parts",
    "gate_from",
    "gate_told",
    "is_dataset",
    "known",
    "step_from",
    "step_told",
    "stranger",
]

OURS: Mapping[str, Any] = {
    each.__name__: each for each in (Quantize, Prune, Factor, Distill, Compile)
}
_GATES: Mapping[str, Any] = {each.__name__: each for each in (Agreement, RelativeError, ScoreDrop)}
_GROUP = "maas.compressions"


def stranger(name: str) -> Any:
    """What the entry point of that name adds; None where there is none."""
    return entry_points.load(_GROUP, name)


def known() -> list[str]:
    """The names of the table: ours, and those that entry points add."""
    return [*OURS, *sorted(entry_points.names(_GROUP) - OURS.keys())]


def _named(name: str) -> Any:
    """The step of that name, ours before others'."""
    return OURS[name] if name in OURS else stranger(name)


def _name_of(step: Step) -> str | None:
    """What the table calls a step's class, or the step itself."""
    return next((name for name in known() if _named(name) in (type(step), step)), None)


class Parts:
    """The rows that belong to a question, apart from what is plain: each has a key.

    What stands at a server already, a dataset, is named and not brought along.
    """

    def __init__(self, rows: Mapping[str, Any] | None = None) -> None:
        self.rows = dict(rows or {})

    def put(self, value: Any) -> str:
        """Keeps rows, as `Check.of` takes them, or a dataset, and gives their key."""
        key = f"part {len(self.rows)}"
        self.rows[key] = packed(value) if is_dataset(value) else _apart_from(Check.of(value))
        return key

    def data(self, key: Any) -> Any:
        """Those rows, as they were put; raises `ValueError` for a key that there is not."""
        return given(self.rows[choice(key, self.rows, "a part of the rows")])


def is_dataset(value: Any) -> bool:
    """Whether these rows are at a server: a `maas.data.Dataset`, or its name."""
    name = value if isinstance(value, str) else getattr(value, "name", None)
    return isinstance(name, str) and NAME.fullmatch(name) is not None


def _apart_from(check: Check) -> dict[str, Any]:
    inputs = check.args if len(check.args) > 1 else check.args[0]
    return {"inputs": inputs, "targets": check.targets}


# Steps.


def step_told(step: Step, parts: Parts) -> dict[str, Any]:
    """The step as plain data; rows that it brings along are put among the parts.

    Raises
    ------
    Unsupported
        It is none of the table, or holds what does not cross.
    """
    name = _name_of(step)
    if name is None:
        raise Unsupported(
            f"a server is sent the names of steps and no code, and {step!r:.60} is none of these: "
            f"{', '.join(known())}. A step of your own is installed there and here, with an "
            f"entry point in the group {_GROUP!r}"
        )
    kind: Any = _named(name)
    fields = attrs.fields(kind) if isinstance(kind, type) else ()
    told = {
        field.alias: _told(f"{name}'s {field.alias}", getattr(step, field.name), parts)
        for field in fields
    }
    return {"step": name, **told}


def _told(what: str, value: Any, parts: Parts) -> Any:
    if what == "Distill's data":
        return parts.put(value)
    if isinstance(value, list | tuple):
        return [_plain(what, each) for each in value]
    return _plain(what, value)


def _plain(what: str, value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise Unsupported(
        f"{what} is a {type(value).__name__}, which a server is not sent: plain values alone cross"
    )


def step_from(data: Any, parts: Parts) -> Step:
    """The step that `step_told` gave as data, which came from a stranger.

    Raises
    ------
    ValueError, TypeError
        It is none of the table, or has options that make no sense.
    """
    name, options = _apart(data, "step")
    made = _named(choice(name, known(), "a step's name"))
    if not isinstance(made, type):
        if options:
            raise TypeError(f"step {name!r} has no options; got {', '.join(options)}")
        return made  # type: ignore[no-any-return]
    if name == "Distill":
        options["data"] = parts.data(options.get("data"))
    return _made(made, name, options)  # type: ignore[no-any-return]


# Gates.


def gate_told(gate: Gate) -> dict[str, Any]:
    """The gate as plain data; raises `Unsupported` for one of somebody's own."""
    name = type(gate).__name__
    if _GATES.get(name) is not type(gate):
        raise Unsupported(
            f"a server is sent no code, and the gate {gate!r:.60} is none of {', '.join(_GATES)}"
        )
    return {"gate": name, **attrs.asdict(gate)}  # type: ignore[arg-type]


def gate_from(data: Any) -> Gate:
    """The gate that `gate_told` gave as data; raises as `step_from` does."""
    name, options = _apart(data, "gate")
    return _made(_GATES[choice(name, _GATES, "a gate's name")], name, options)  # type: ignore[no-any-return]


def _apart(data: Any, what: str) -> tuple[Any, dict[str, Any]]:
    if type(data) is not dict or not all(type(name) is str for name in data):
        raise TypeError(f"a {what} is told as a map with its name and options; got {data!r:.60}")
    for option, value in data.items():
        several: Iterable[Any] = value if type(value) is list else [value]
        for each in several:
            _plain(f"a {what}'s {option}", each)
    return data.get(what), {name: value for name, value in data.items() if name != what}


def _made(kind: Any, name: str, options: dict[str, Any]) -> Any:
    wanted = [field.alias for field in attrs.fields(kind) if field.init]
    for option in options:
        if option not in wanted:
            raise TypeError(f"{name} has no option {option!r:.60}; {offered(option, wanted)}")
    return kind(**options)
