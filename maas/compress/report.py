"""What compression gained and what it cost, as a table, as data and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import attrs

from maas.compress.figures import BATCHES, Figures

__all__ = ["Report", "Row"]


@attrs.frozen
class Row:
    """A model and its figures: the original, the model after a step, or after a recipe."""

    name: str
    figures: Figures
    seconds: float = 0.0
    refused: str = ""


@attrs.frozen
class Report:
    """Rows of figures, the original's first.

    After `compress(*steps)` each row is the model after one more step, so what a step
    contributed is the difference to the row above. After `compress(auto=...)` each
    row is a recipe that was tried, those that were refused with the reason.

    Attributes
    ----------
    rows : the figures.
    notes : what the steps had to say.
    chosen : the row of the model that was returned.
    """

    rows: Sequence[Row]
    notes: Sequence[str] = ()
    chosen: int = -1

    @property
    def original(self) -> Figures:
        """The figures of the model before."""
        return self.rows[0].figures

    @property
    def result(self) -> Figures:
        """The figures of the model that was returned."""
        return self.rows[self.chosen].figures

    @property
    def size(self) -> float:
        """Bytes on disk, as a share of the original's."""
        return _share(self.result.disk, self.original.disk)

    def to_data(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "rows": [
                {"name": row.name, "seconds": row.seconds, "refused": row.refused}
                | attrs.asdict(row.figures)
                | {"size": _share(row.figures.disk, self.original.disk)}
                for row in self.rows
            ],
            "chosen": self.chosen % len(self.rows),
            "notes": list(self.notes),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """From what `to_data` gave, by way of JSON as well, whose keys are text."""
        return cls([_row(row) for row in data["rows"]], list(data["notes"]), int(data["chosen"]))

    def __str__(self) -> str:
        lines = [_HEAD, *map(self._line, self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
        table = [
            "  ".join(
                text.ljust(width) if column == 0 else text.rjust(width)
                for column, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        refused = [f"{row.name} was refused: {row.refused}" for row in self.rows if row.refused]
        return "\n".join([*table, *refused, *self.notes])

    def _line(self, row: Row) -> list[str]:
        found = row.figures
        mark = " *" if len(self.rows) > 2 and row is self.rows[self.chosen] else ""
        if not found.disk:
            return [row.name, *[""] * (len(_HEAD) - 2), f"{row.seconds:.1f}"]
        return [
            row.name + mark,
            f"{found.disk / 1000:,.1f}",
            f"{_share(found.disk, self.original.disk):.3f}",
            f"{found.memory / 1000:,.1f}",
            f"{found.numbers:,}",
            *(_number(found.latency.get(size), ".2f") for size in BATCHES),
            _number(found.error, ".2g"),
            _number(found.largest, ".2g"),
            _number(found.agreement, ".4f"),
            _number(found.score, ".4f"),
            f"{row.seconds:.1f}",
        ]

    def plot(self, path: str | Path) -> None:
        """Writes a picture: size against error, a point a row, and the front of the best.

        The format is the path's suffix, such as `.svg` or `.png`.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        ValueError
            Nothing was compared: there was no check data.
        """
        points = [
            (_share(row.figures.disk, self.original.disk), row.figures.error, row.name)
            for row in self.rows
            if row.figures.error is not None
        ]
        if not points:
            raise ValueError("there are no errors to draw; give check= to compress")
        figure = _figure()
        axes = figure.add_subplot()
        axes.set_xlabel("size on disk, as a share of the original")
        axes.set_ylabel("relative error of the outputs")
        front = _front(points)
        axes.plot([x for x, _, _ in front], [y for _, y, _ in front], color="0.7", zorder=1)
        for number, (x, y, name) in enumerate(points):
            color = "tab:red" if name == self.rows[self.chosen].name else "tab:blue"
            axes.scatter([x], [y], color=color, zorder=2, label=f"{number}  {name}")
            axes.annotate(
                str(number), (x, y), xytext=(0, 6), textcoords="offset points", ha="center"
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.margins(0.1)
        figure.legend(loc="outside right upper", fontsize=8, markerscale=0)
        figure.savefig(path, bbox_inches="tight")


def _row(told: Mapping[str, Any]) -> Row:
    names = [field.name for field in attrs.fields(Figures)]
    found = {name: told[name] for name in names}
    found["latency"] = {int(rows): float(share) for rows, share in found["latency"].items()}
    return Row(told["name"], Figures(**found), float(told["seconds"]), str(told["refused"]))


def _share(part: int, whole: int) -> float:
    """nan where a model elsewhere does not tell its size."""
    return part / whole if whole else float("nan")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


_HEAD = [
    "",
    "kB",
    "size",
    "memory kB",
    "numbers",
    *(f"time@{size}" for size in BATCHES),
    "error",
    "largest",
    "agreement",
    "score",
    "s",
]


def _front(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Those that no other beats both in size and in error, the smallest first."""
    front: list[tuple[float, float, str]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "a picture needs matplotlib, which is not installed: pip install 'maas-sdk[compress]'",
            name="matplotlib",
        ) from None
    return Figure(figsize=(10, 4.5), layout="constrained")
