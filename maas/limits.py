"""What a stranger may spend: charged before anything is allocated.

One record for both directions and both sides: a client is as strict with a
server as a server is with a client.
"""

import attrs

__all__ = ["Limits"]


def _positive(_: object, attribute: "attrs.Attribute[int]", value: int) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"Limits({attribute.name}=...) wants a positive int, got {value!r}")


@attrs.frozen(kw_only=True)
class Limits:
    """Bounds on one message.

    Attributes
    ----------
    body : bytes of the whole message, tensors included.
    header : bytes of the part that is not tensor data.
    nodes : values in the header, containers included.
    depth : containers inside each other.
    tensors : tensors in one message.
    memory : bytes that the decoded header may take, as `wire` charges them.
        A cap on bytes alone is none: 20 MB of empty maps decode to 1,383 MB.
    """

    body: int = attrs.field(default=256 * 2**20, validator=_positive)
    header: int = attrs.field(default=2**20, validator=_positive)
    nodes: int = attrs.field(default=65_536, validator=_positive)
    depth: int = attrs.field(default=128, validator=_positive)
    tensors: int = attrs.field(default=1_024, validator=_positive)
    memory: int = attrs.field(default=32 * 2**20, validator=_positive)
