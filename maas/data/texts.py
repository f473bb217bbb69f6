"""Text as ids of its words or letters: `TextVectorizer`."""

import collections
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import attrs
import numpy as np

from maas.data.rows import column, is_array
from maas.data.tables import Passes, Table
from maas.data.transformers import Transformer
from maas.errors import CodecError, DataError

__all__ = ["TextVectorizer"]

PADDING, UNKNOWN, FIRST = 0, 1, 2

_WORD = re.compile(r"(?u)\b\w\w+\b")
_SPACES = re.compile(r"\s\s+")

# A table, and no pattern in the data: a stranger's pattern can take for ever.
_ANALYZERS: dict[str, Callable[[str], Sequence[str]]] = {
    "word": _WORD.findall,
    "char": lambda text: _SPACES.sub(" ", text),
}


@attrs.define(slots=False, eq=False, kw_only=True)
class TextVectorizer(Transformer):
    """Each text as a row of ids, as long as the others: 0 fills up, 1 is what was not learned.

    The words are those of scikit-learn's `CountVectorizer`, in its order: word `i` has the id
    `i + 2`.

    Parameters
    ----------
    analyzer : `"word"`, for words of two letters and more, or `"char"`.
    lowercase : make small letters of capital ones first.
    min_df : a word must be in so many texts to be learned.
    max_features : learn only so many words, the most frequent ones.
    length : ids in a row; longer texts are cut. As many as the longest text has, by default.
    """

    analyzer: str = attrs.field(default="word", validator=attrs.validators.in_(tuple(_ANALYZERS)))
    lowercase: bool = True
    min_df: int = 1
    max_features: int | None = None
    length: int | None = None

    LEARNED: ClassVar[tuple[str, ...]] = ("vocabulary_", "length_")

    def __attrs_post_init__(self) -> None:
        for name in ("min_df", "max_features", "length"):
            given = getattr(self, name)
            if given is not None and (type(given) is not int or given < 1):
                raise ValueError(f"{name} is counted from 1, got {given!r:.40}")

    def fit(self, X: Any, y: Any = None) -> Any:  # noqa: N803 - as every step has it
        """Learns from a column of texts, or from a list of them."""
        return super().fit(_one_column(X), y)

    def transform(self, X: Any) -> np.ndarray[Any, Any]:  # noqa: N803 - as above
        """Ids, int64 of shape (rows, length)."""
        return super().transform(_one_column(X))

    def _learn(self, passes: Passes) -> None:
        times: collections.Counter[str] = collections.Counter()
        texts: collections.Counter[str] = collections.Counter()
        longest = 1
        for table in passes():
            for words in self._words(table):
                times.update(words)
                texts.update({*words})
                longest = max(longest, len(words))
        kept = [word for word, count in texts.items() if count >= self.min_df]
        if self.max_features is not None:
            kept = sorted(kept, key=lambda word: (-times[word], word))[: self.max_features]
        if not kept:
            raise DataError("no word was learned; the texts are empty, or min_df is too large")
        self._set_vocabulary(sorted(kept), self.length or longest)

    def _set_vocabulary(self, words: list[str], length: int) -> None:
        self.vocabulary_ = words
        self.length_ = length
        self._ids = {word: place for place, word in enumerate(words, FIRST)}

    def _words(self, table: Table) -> Iterable[Sequence[str]]:
        if len(table.columns) != 1:
            raise DataError(f"texts are one column, and {len(table.columns)} came")
        split = _ANALYZERS[self.analyzer]
        for row, text in enumerate(table.columns[0].tolist()):
            if not isinstance(text, str):
                raise DataError(
                    f"{table.told(0)}, row {row}: {text!r:.60} is no text; a SimpleImputer with "
                    "strategy='constant' puts text where it is missing"
                )
            yield split(text.lower() if self.lowercase else text)

    def _apply(self, table: Table) -> np.ndarray[Any, Any]:
        made = np.full((table.rows, self.length_), PADDING, np.int64)
        for row, words in enumerate(self._words(table)):
            ids = [self._ids.get(word, UNKNOWN) for word in words[: self.length_]]
            made[row, : len(ids)] = ids
        return made

    def _check_learned(self) -> None:
        words, length = self.vocabulary_, self.length_
        if type(words) is not list or not all(type(word) is str for word in words):
            raise CodecError("TextVectorizer: vocabulary_ is no list of words")
        if type(length) is not int or not 1 <= length <= _LONGEST:
            raise CodecError(f"TextVectorizer: length_ is from 1 to {_LONGEST}")
        self._set_vocabulary(words, length)


_LONGEST = 2**20
"""Ids in a row, of what comes from a folder: each row takes as many, whatever its text."""


def _one_column(texts: Any) -> Any:
    if isinstance(texts, list) and texts and isinstance(texts[0], str):
        texts = column(texts, "the texts")
    return texts[:, None] if is_array(texts) and texts.ndim == 1 else texts
