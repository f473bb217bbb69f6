"""What a stranger may spend: charged before anything is allocated.

`Limits` bound one message, in both directions and on both sides: a client is as strict
with a server as a server is with a client. `Leases` bound what a server keeps between messages.
"""

import attrs

__all__ = ["Leases", "Limits"]


def _positive(_: object, attribute: "attrs.Attribute[int]", value: int) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{attribute.name}=... wants a positive int, got {value!r}")


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


@attrs.frozen(kw_only=True)
class Leases:
    """Bounds on what a server keeps for one caller between two messages.

    Attributes
    ----------
    graphs : autograd graphs behind results that were not differentiated yet. The oldest gives way
        to a new one.
    graph_bytes : bytes that these graphs hold together, as far as torch tells.
    graph_seconds : how long one is kept after its last use.
    copies : private copies of models in training.
    copy_bytes : bytes of their weights, buffers and optimizer states together.
    copy_seconds : how long one is kept after its last use.
    jobs : jobs that are kept, whether they go on or have ended.
    job_bytes : bytes of their rows, checkpoints and results together.
    jobs_running : jobs of all callers that run at once; the others wait.
    datasets : datasets that were uploaded.
    dataset_bytes : bytes of them together, what is being uploaded included.
    """

    graphs: int = attrs.field(default=1_024, validator=_positive)
    graph_bytes: int = attrs.field(default=2**30, validator=_positive)
    graph_seconds: int = attrs.field(default=600, validator=_positive)
    copies: int = attrs.field(default=8, validator=_positive)
    copy_bytes: int = attrs.field(default=4 * 2**30, validator=_positive)
    copy_seconds: int = attrs.field(default=3_600, validator=_positive)
    jobs: int = attrs.field(default=64, validator=_positive)
    job_bytes: int = attrs.field(default=8 * 2**30, validator=_positive)
    jobs_running: int = attrs.field(default=2, validator=_positive)
    datasets: int = attrs.field(default=64, validator=_positive)
    dataset_bytes: int = attrs.field(default=8 * 2**30, validator=_positive)
