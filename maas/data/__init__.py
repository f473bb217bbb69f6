"""Data to train on: read from where it is, in batches that have a position.

data = maas.data.Data.of((x, y))        arrays, lists, files, torch datasets, loaders
for inputs, targets in data.batches(32, order=(seed, epoch), start=0): ...
"""

from maas.data.data import Data
from maas.data.orders import permutation

__all__ = ["Data", "permutation"]
