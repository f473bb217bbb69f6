"""draft"""

from collections.abc import Mapping

from maas.executors.base import ModelInfo

__all__ = ["SECURITY", "index"]
SECURITY = ()


def index(infos: Mapping[str, ModelInfo], base: str, locked: bool) -> bytes:
    return b""
