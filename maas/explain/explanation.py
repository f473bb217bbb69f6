"""An explanation: how much each part of an input counted for the answer."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

__all__ = ["Explanation", "Question"]


@attrs.frozen(kw_only=True, eq=False)
class Question:
    """What is to be explained, and how; plain values, so that it can be put to a server.

    Attributes
    ----------
    args, kwargs : the model's arguments. The floating-point arrays among `args` are explained, or
        the whole numbers where there are none.
    target : which output; None where a row of the output is one number.
    method : name of the algorithm.
    at : a layer of the module, as `named_modules` calls it.
    baseline : the input that counts for nothing; 0 by default.
    options : of the algorithm.
    seed : of what the algorithm draws.
    shuffled : a seed by which the weights are shuffled first; see `maas.explain.check`.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = attrs.field(factory=dict)
    target: Any = None
    method: str = "integrated_gradients"
    at: str | None = None
    baseline: Any = None
    options: dict[str, Any] = attrs.field(factory=dict)
    seed: int = 0
    shuffled: int | None = None

    def to_data(self) -> dict[str, Any]:
        """As a dictionary of plain values."""
        return attrs.asdict(self, recurse=False)


@attrs.frozen(kw_only=True, eq=False)
class Explanation:
    """What `model.explain` gives.

    Attributes
    ----------
    attributions : in place of each explained array of the arguments one of the same shape, None in
        place of the other arrays. The argument itself if the model has one, else a tuple. With
        `at=` the layer's output takes the place of the arguments.
    gap : how far the attributions of a row are from adding up to what they are to explain, the
        largest over the rows, in units of the output; None for a method that does not claim it.
    assumption : what must hold for the numbers to mean what they seem to, in a sentence.
    local : they are per unit of the input, as gradients are, and not shares of the output.
    rows : rows that went through the model for this.
    where : the place that ran the model.
    through : "module" or "calls", as it was asked.
    question : what was asked.
    model : the Model that was asked.
    """

    attributions: Any
    gap: float | None
    assumption: str
    local: bool
    rows: int
    where: str
    through: str
    question: Question = attrs.field(repr=False)
    model: Any = attrs.field(repr=False)

    @property
    def method(self) -> str:
        """Name of the algorithm."""
        return self.question.method

    def plot(
        self,
        path: str | Path | None = None,
        *,
        rows: Sequence[int] = (0,),
        shape: tuple[int, ...] | None = None,
        names: Sequence[str] | None = None,
        tokens: Sequence[str] | None = None,
    ) -> str:
        """The attributions as a picture in plain characters, and as a file where a path is given.

        In characters `#` and `+` count for the output, `=` and `-` against it; in a file red
        does, and blue. A row of one dimension is drawn as a table, one of two or three as an image.

        Parameters
        ----------
        path : a file for matplotlib to write; its ending says of what kind, such as `.png`.
        rows : which rows.
        shape : of a row that is an image but came flat, such as `(8, 8)`.
        names : of the columns of a table.
        tokens : of a text, one for each attribution along the first dimension of a row.

        Raises
        ------
        ValueError
            They do not fit the attributions.
        ImportError
            A file is wanted, and matplotlib is not installed.
        """
        pictures = importlib.import_module("maas.explain.pictures")
        drawing = pictures.Drawing(
            attributions=self.attributions,
            given=self.question.args[0],
            target=self.question.target,
            title=self.method.replace("_", " "),
            rows=rows,
            shape=shape,
            names=names,
            tokens=tokens,
        )
        text: str = pictures.drawn(drawing, path)
        return text
