"""Data to train on: read from where it is, in batches that have a position.

data = maas.data.Data.of((x, y))        arrays, lists, files, torch datasets, loaders
for inputs, targets in data.batches(32, order=(seed, epoch), start=0): ...
"""

from maas.data.checks import Finding, Report, check
from maas.data.composition import ColumnTransformer, Pipeline, of_data
from maas.data.data import Data
from maas.data.encoders import LabelEncoder, OneHotEncoder, OrdinalEncoder
from maas.data.imputers import SimpleImputer
from maas.data.orders import permutation
from maas.data.prepared import prepared
from maas.data.scalers import MinMaxScaler, StandardScaler
from maas.data.texts import TextVectorizer
from maas.data.uploads import Dataset, upload, uploaded

__all__ = [
    "ColumnTransformer",
    "Data",
    "Dataset",
    "Finding",
    "LabelEncoder",
    "MinMaxScaler",
    "OneHotEncoder",
    "OrdinalEncoder",
    "Pipeline",
    "Report",
    "SimpleImputer",
    "StandardScaler",
    "TextVectorizer",
    "check",
    "of_data",
    "permutation",
    "prepared",
    "upload",
    "uploaded",
]
