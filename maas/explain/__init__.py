"""Which parts of an input an answer rests on: explanation as a method of every Model."""

from maas.explain.explanation import Explanation

__all__ = ["Explanation"]
