"""`Compressed`: what `compress` gives, a Model with the report of its figures."""

from typing import Any, Self

from maas.compress.report import Report
from maas.model import Model

__all__ = ["Compressed"]


class Compressed(Model[..., Any]):
    """A model that `compress` made; a Model like any other.

    Attributes
    ----------
    report : its figures beside the original's.
    """

    __slots__ = ("report",)
    report: Report

    @classmethod
    def of(cls, model: Model[..., Any], report: Report) -> Self:
        """The model, with its report."""
        made = cls.over(model.executor, model.name)
        made.report = report
        return made

    def with_options(self, **changes: Any) -> Self:
        """As `Model.with_options`."""
        made = super().with_options(**changes)
        made.report = self.report
        return made
