"""An explanation as a picture: of an image, a table or a text; in plain characters or in a file.

In characters `#` and `+` count for the output, `=` and `-` against it. In a file red
counts for it and blue against it, and white is nothing.
"""

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

__all__ = ["Drawing", "drawn"]

_STRONG, _FAINT = 0.4, 0.1
"""Of the largest value: from where a character is a strong one, and below which it is blank."""
_BAR = 24
_MOST_BARS = 20
_WIDE = 60
"""Characters that a line of a text in a file may have."""
_COLOURS = "RdBu_r"


@attrs.frozen(kw_only=True)
class Drawing:
    """What is to be drawn, and how; see `Explanation.plot`. `given` is what was explained."""

    attributions: Any
    given: Any
    target: Any
    title: str
    rows: Sequence[int]
    shape: tuple[int, ...] | None
    names: Sequence[str] | None
    tokens: Sequence[str] | None


def drawn(drawing: Drawing, path: str | Path | None) -> str:
    """The picture in characters, and written to a file too where a path is given."""
    values = _values(drawing)
    kind = _KINDS[_kind(values, drawing)]
    if path is not None:
        _write(values, drawing, kind, Path(path))
    text: list[str] = []
    for row in drawing.rows:
        text += [*kind.lines(values[row], drawing), ""]
    return "\n".join(text[:-1])


def _values(drawing: Drawing) -> "np.ndarray[Any, Any]":
    attributions = drawing.attributions
    if not hasattr(attributions, "shape"):
        raise ValueError("only the attributions of a single array can be drawn")
    values = np.asarray(attributions, dtype=np.float64)
    if drawing.shape is not None:
        values = values.reshape(len(values), *drawing.shape)
    wrong = [row for row in drawing.rows if not 0 <= row < len(values)]
    if wrong or not drawing.rows:
        raise ValueError(f"rows={list(drawing.rows)}: there are rows 0 to {len(values) - 1}")
    return values


def _kind(values: "np.ndarray[Any, Any]", drawing: Drawing) -> str:
    if drawing.tokens is not None:
        return "text"
    return "table" if values.ndim == 2 else "image"


# Images: [height, width], or with channels before, which are added up.


def _plane(values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    if values.ndim not in (2, 3):
        raise ValueError(
            f"an image has 2 dimensions, or 3 with channels first; got {list(values.shape)}; "
            "shape=(height, width) says otherwise"
        )
    plane: np.ndarray[Any, Any] = values.sum(0) if values.ndim == 3 else values
    return plane


def _image_lines(values: "np.ndarray[Any, Any]", _drawing: Drawing) -> Iterator[str]:
    plane = _plane(values)
    largest = float(np.abs(plane).max()) or 1.0
    for line in plane / largest:
        # Two characters are about as wide as one is high.
        yield "".join(2 * _mark(value) for value in line).rstrip()


def _mark(value: float) -> str:
    if abs(value) < _FAINT:
        return " "
    marks = "+#" if value > 0 else "-="
    return marks[int(abs(value) >= _STRONG)]


def _image_axes(axes: Any, values: "np.ndarray[Any, Any]", _drawing: Drawing) -> None:
    plane = _plane(values)
    largest = float(np.abs(plane).max()) or 1.0
    axes.imshow(plane, cmap=_COLOURS, vmin=-largest, vmax=largest)
    axes.set_axis_off()


# Tables: one number for each column, the largest first.


def _columns(values: "np.ndarray[Any, Any]", drawing: Drawing) -> list[tuple[str, float]]:
    names = drawing.names or [f"x{number}" for number in range(len(values))]
    if len(names) != len(values):
        raise ValueError(f"names= has {len(names)} names for {len(values)} columns")
    columns = zip(names, values.tolist(), strict=True)
    return sorted(columns, key=lambda column: -abs(column[1]))[:_MOST_BARS]


def _table_lines(values: "np.ndarray[Any, Any]", drawing: Drawing) -> Iterator[str]:
    yield from _bars(_columns(values, drawing))


def _bars(columns: Sequence[tuple[str, float]]) -> Iterator[str]:
    width = max(len(name) for name, _ in columns)
    largest = max(abs(value) for _, value in columns) or 1.0
    for name, value in columns:
        bar = round(abs(value) / largest * _BAR) * ("#" if value > 0 else "=")
        yield f"{name:>{width}} {value:>+10.4f}  {bar}".rstrip()


def _table_axes(axes: Any, values: "np.ndarray[Any, Any]", drawing: Drawing) -> None:
    columns = _columns(values, drawing)[::-1]
    colours = ["#b2182b" if value > 0 else "#2166ac" for _, value in columns]
    axes.barh([name for name, _ in columns], [value for _, value in columns], color=colours)
    axes.axvline(0, color="black", linewidth=0.8)


# Texts: one number for each token, in their order; what a token's vector has is added up.


def _words(values: "np.ndarray[Any, Any]", drawing: Drawing) -> list[tuple[str, float]]:
    each = values.reshape(len(values), -1).sum(1)
    tokens = drawing.tokens or []
    if len(tokens) != len(each):
        raise ValueError(f"tokens= has {len(tokens)} tokens for {len(each)} attributions")
    return list(zip(tokens, each.tolist(), strict=True))


def _text_lines(values: "np.ndarray[Any, Any]", drawing: Drawing) -> Iterator[str]:
    yield from _bars(_words(values, drawing))


def _text_axes(axes: Any, values: "np.ndarray[Any, Any]", drawing: Drawing) -> None:
    colours = importlib.import_module("matplotlib").colormaps[_COLOURS]
    words = _words(values, drawing)
    largest = max(abs(value) for _, value in words) or 1.0
    across, down = 0, 0
    for word, value in words:
        if across and across + len(word) > _WIDE:
            across, down = 0, down + 1
        # The middle of the colours is white: 0.5 is nothing, and no darker than black can be read.
        colour = colours(0.5 + 0.35 * value / largest)
        axes.text(
            across, -down, word, family="monospace", bbox={"color": colour, "pad": 2.0, "lw": 0}
        )
        across += len(word) + 1
    axes.set_xlim(0, _WIDE)
    axes.set_ylim(-down - 0.5, 1)
    axes.set_axis_off()


# Files.


class _Kind:
    """How a kind of input is drawn; inches of one row."""

    def __init__(self, lines: Any, axes: Any, size: tuple[float, float], *, aside: bool) -> None:
        self.lines = lines
        self.axes = axes
        self.size = size
        self.aside = aside


_KINDS = {
    "image": _Kind(_image_lines, _image_axes, (2.0, 2.0), aside=True),
    "table": _Kind(_table_lines, _table_axes, (6.0, 3.5), aside=False),
    "text": _Kind(_text_lines, _text_axes, (8.0, 1.2), aside=False),
}


def _write(
    values: "np.ndarray[Any, Any]",
    drawing: Drawing,
    kind: _Kind,
    path: Path,
) -> None:
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError(
            "pictures in files need the package matplotlib: pip install maas-sdk[explain]"
        ) from error
    count = len(drawing.rows)
    inputs = _inputs(drawing.given, values) if kind.aside else None
    wide, high = kind.size
    lines = 1 if inputs is None else 2
    size = (wide * count, high * lines) if kind.aside else (wide, high * count)
    grid = (lines, count) if kind.aside else (count, 1)
    figure = figures.Figure(figsize=(size[0], size[1] + 0.5), layout="constrained")
    axes = figure.subplots(*grid, squeeze=False)
    targets = drawing.target
    for place, row in enumerate(drawing.rows):
        own = axes[-1, place] if kind.aside else axes[place, 0]
        kind.axes(own, values[row], drawing)
        if inputs is not None:
            axes[0, place].imshow(_plane(inputs[row]), cmap="gray_r")
            axes[0, place].set_axis_off()
        told = targets[row] if isinstance(targets, list) else targets
        title = f"row {row}" if told is None else f"row {row}: output {told}"
        (axes[0, place] if kind.aside else own).set_title(title, fontsize=9)
    figure.suptitle(drawing.title)
    figure.savefig(path, dpi=120)


def _inputs(given: Any, values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any] | None":
    """The input itself, where it has the shape of what is drawn."""
    if not hasattr(given, "shape"):
        return None
    array = np.asarray(given.detach() if hasattr(given, "detach") else given)
    return array.reshape(values.shape) if array.size == values.size else None
