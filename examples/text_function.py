"""A model need not be a network: any function with type hints is one.

This one finds what a text is about, by the words that it uses more than others do.
Its texts are the descriptions of the data sets that come with scikit-learn.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from sklearn import datasets

import maas

SETS: dict[str, Callable[[], Any]] = {
    "digits": datasets.load_digits,
    "wine": datasets.load_wine,
    "iris": datasets.load_iris,
    "diabetes": datasets.load_diabetes,
    "breast cancer": datasets.load_breast_cancer,
}
TEXTS = {name: load().DESCR for name, load in SETS.items()}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]{4,}", text.lower())


IN_TEXTS = Counter(word for text in TEXTS.values() for word in set(words(text)))


@maas.Model
def keywords(text: str, *, most: int = 4) -> list[tuple[str, float]]:
    """The words of the text that weigh most, by tf-idf, each with its weight."""
    weights = {
        word: count * math.log(len(TEXTS) / IN_TEXTS.get(word, 1))
        for word, count in Counter(words(text)).items()
    }
    ranked = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
    return [(word, round(weight, 2)) for word, weight in ranked[:most]]


def main() -> None:
    with (
        maas.serve(keywords, port=0, block=False) as server,
        # `like` gives editors the types, and is compared with what the server says of itself.
        maas.connect(f"{server.url}/keywords", like=keywords) as there,
    ):
        for name, found in zip(TEXTS, there.map(TEXTS.values()), strict=True):
            assert found == keywords(TEXTS[name])
            print(f"{name:14}", ", ".join(f"{word} {weight:.1f}" for word, weight in found))

        # Arguments are checked before the model runs, with the same error here and there.
        for model in (keywords, there):
            try:
                model(5)  # type: ignore[arg-type]
            except TypeError as error:
                print(f"{model.where}: {error}")


if __name__ == "__main__":
    main()
