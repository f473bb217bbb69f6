"""Data to train on: read from where it is, in batches that have a position, made numbers of.

`Data.of` takes arrays, lists, files, torch datasets and loaders. Steps of preprocessing have
scikit-learn's names and are plain data once they are fitted. `check` looks before one trains, and
`upload` takes data to a server, where jobs find it by its name. `Collect` keeps what a server's
models are asked.
"""

from maas.data.checks import Finding, Report, check
from maas.data.collection import Collect
from maas.data.composition import ColumnTransformer, Pipeline, of_data
from maas.data.data import Data
from maas.data.encoders import LabelEncoder, OneHotEncoder, OrdinalEncoder
from maas.data.imputers import SimpleImputer
from maas.data.orders import permutation
from maas.data.prepared import prepared
from maas.data.scalers import MinMaxScaler, StandardScaler
from maas.data.texts import TextVectorizer
from maas.data.uploads import Dataset, collected, upload, uploaded

__all__ = [
    "Collect",
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
    "collected",
    "of_data",
    "permutation",
    "prepared",
    "upload",
    "uploaded",
]
