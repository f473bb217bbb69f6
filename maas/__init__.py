"""Model-as-a-Service: use a model without caring where it runs.

`maas.Model(net)` runs here; `maas.connect("https://host/net")` runs there; nothing else changes.
Names are resolved at their first use, so that `import maas` costs nothing.
"""

import importlib

# Not from typing, which took 30 of the 39 ms of `import maas`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from maas import compress as compress
    from maas import data as data
    from maas import explain as explain
    from maas import testing as testing
    from maas.backends.base import method as method
    from maas.batching import Batching as Batching
    from maas.errors import Cancelled as Cancelled
    from maas.errors import CodecError as CodecError
    from maas.errors import Conflict as Conflict
    from maas.errors import DataError as DataError
    from maas.errors import DeadlineExceeded as DeadlineExceeded
    from maas.errors import Error as Error
    from maas.errors import Expired as Expired
    from maas.errors import Forbidden as Forbidden
    from maas.errors import LimitExceeded as LimitExceeded
    from maas.errors import ModelExit as ModelExit
    from maas.errors import MutationWarning as MutationWarning
    from maas.errors import NotFound as NotFound
    from maas.errors import NotReady as NotReady
    from maas.errors import Overloaded as Overloaded
    from maas.errors import SignatureError as SignatureError
    from maas.errors import StreamInterrupted as StreamInterrupted
    from maas.errors import TooLossy as TooLossy
    from maas.errors import TransportError as TransportError
    from maas.errors import Unauthenticated as Unauthenticated
    from maas.errors import Unsupported as Unsupported
    from maas.errors import VersionMismatch as VersionMismatch
    from maas.errors import WorkerLost as WorkerLost
    from maas.executors.base import Executor as Executor
    from maas.executors.base import Job as Job
    from maas.executors.base import Stream as Stream
    from maas.limits import Leases as Leases
    from maas.limits import Limits as Limits
    from maas.model import Model as Model
    from maas.model import connect as connect
    from maas.options import Options as Options
    from maas.schema import TensorSpec as TensorSpec
    from maas.server.app import Server as Server
    from maas.server.app import serve as serve
    from maas.server.patience import Patience as Patience
    from maas.signature import Signature as Signature
    from maas.store import load as load
    from maas.store import save as save
    from maas.tensors import RawTensor as RawTensor
    from maas.train import optim as optim
    from maas.values import register as register

_NAMES = {
    "Model": "maas.model",
    "connect": "maas.model",
    "method": "maas.backends.base",
    "register": "maas.values",
    "Signature": "maas.signature",
    "TensorSpec": "maas.schema",
    "RawTensor": "maas.tensors",
    "Limits": "maas.limits",
    "Leases": "maas.limits",
    "Patience": "maas.server.patience",
    "Options": "maas.options",
    "Batching": "maas.batching",
    "Executor": "maas.executors.base",
    "Job": "maas.executors.base",
    "Stream": "maas.executors.base",
    "Server": "maas.server.app",
    "serve": "maas.server.app",
    "save": "maas.store",
    "load": "maas.store",
}
_ERRORS = (
    "Cancelled",
    "CodecError",
    "Conflict",
    "DataError",
    "DeadlineExceeded",
    "Error",
    "Expired",
    "Forbidden",
    "LimitExceeded",
    "ModelExit",
    "MutationWarning",
    "NotFound",
    "NotReady",
    "Overloaded",
    "SignatureError",
    "StreamInterrupted",
    "TooLossy",
    "TransportError",
    "Unauthenticated",
    "Unsupported",
    "VersionMismatch",
    "WorkerLost",
)
_NAMES |= dict.fromkeys(_ERRORS, "maas.errors")

_MODULES = {
    "compress": "maas.compress",
    "data": "maas.data",
    "explain": "maas.explain",
    "optim": "maas.train.optim",
    "testing": "maas.testing",
}

__all__ = [*_NAMES, *_MODULES]  # noqa: PLE0604 - all are strings


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name == "__version__":
        found: str = importlib.import_module("maas.versions").maas_version()
        return found
    module = _NAMES.get(name)
    if module is None:
        raise AttributeError(f"module 'maas' has no attribute {name!r}", name=name)
    value: object = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
