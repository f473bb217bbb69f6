"""What lies under `/v2`.

    GET  /v2                     this server          GET  /v2/models     the models' names
    GET  /v2/health/live         the process lives    GET  /v2/health/ready
    GET  /v2/models/NAME         what it takes        GET  /v2/models/NAME/ready
    POST /v2/models/NAME/infer   call it

NAME is a model's, or `model.method`, as in key files. `/versions/1` may follow it.
"""

import re

import attrs

from maas.calls import CALL
from maas.errors import NotFound
from maas.executors.base import NAME

__all__ = ["VERSION", "Address", "address", "is_under", "protocol_name"]

VERSION = "1"
"""The version of every model, until models have versions of their own."""

_PATH = re.compile(
    rf"/v2(?:/(?:(?P<models>models)|health/(?P<health>live|ready)"
    rf"|models/(?P<model>{NAME.pattern})(?:\.(?P<method>[A-Za-z_][A-Za-z0-9_]{{0,63}}))?"
    rf"(?:/versions/(?P<version>[A-Za-z0-9._-]{{1,64}}))?(?:/(?P<act>ready|infer))?))?/?"
)


@attrs.frozen
class Address:
    """One page: `server`, `live`, `ready`, `models`, `model`, `model-ready` or `infer`."""

    page: str
    model: str = ""
    method: str = CALL

    @property
    def name(self) -> str:
        """The model's name in the protocol's words."""
        return protocol_name(self.model, self.method)


def is_under(path: str) -> bool:
    """Whether the path is this protocol's to answer, be it with an error."""
    return path == "/v2" or path.startswith("/v2/")


def protocol_name(model: str, method: str) -> str:
    """What a method is called where only models have names."""
    return model if method == CALL else f"{model}.{method}"


def address(path: str) -> Address:
    """What the path names; an odd one is not found, never repaired.

    Raises
    ------
    NotFound
        No page is there, or the model has no such version.
    """
    found = _PATH.fullmatch(path)
    if found is None:
        raise NotFound(f"nothing is at {path!r:.80}; models are called at /v2/models/NAME/infer")
    if found["health"]:
        return Address(found["health"])
    if found["models"]:
        return Address("models")
    if found["model"] is None:
        return Address("server")
    if found["version"] not in (None, VERSION):
        raise NotFound(
            f"{found['model']!r} has no version {found['version']!r}; "
            f"leave it out, or say {VERSION!r}"
        )
    page = {None: "model", "ready": "model-ready", "infer": "infer"}[found["act"]]
    return Address(page, found["model"], found["method"] or CALL)
