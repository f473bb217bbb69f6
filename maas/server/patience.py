"""How long, and for how many, a server waits."""

import attrs
from attrs.validators import ge, gt

__all__ = ["Patience"]


@attrs.frozen(kw_only=True)
class Patience:
    """Bounds on what a peer may cost before, between and after its requests.

    Attributes
    ----------
    header : seconds for a request's head, from its first byte, or from the
        connect when none comes; also for the TLS handshake.
    body : seconds of grace for a request's body, on top of what `body_rate` gives.
    body_rate : bytes per second below which a peer sends, or reads, too slowly.
        At 4 KiB/s a 256 MB upload may take 18 hours; a trickle may not.
    idle : seconds a connection is kept between requests.
    write : seconds a peer may not read its reply, beyond what `body_rate` gives.
    linger : seconds to read and drop what a peer still sends after the last reply.
    drain : seconds for requests in flight when the server stops.
    delay : seconds from "not ready" to the end of accepting, for balancers to notice.
    max_connections : open at once; those above are told 429 and closed.
        The file descriptors the process may open bound it too.
    bodies : bytes of request bodies held at once, over all connections.
    """

    header: float = attrs.field(default=10.0, validator=gt(0))
    body: float = attrs.field(default=10.0, validator=gt(0))
    body_rate: int = attrs.field(default=4096, validator=gt(0))
    idle: float = attrs.field(default=75.0, validator=gt(0))
    write: float = attrs.field(default=30.0, validator=gt(0))
    linger: float = attrs.field(default=2.0, validator=gt(0))
    drain: float = attrs.field(default=30.0, validator=ge(0))
    delay: float = attrs.field(default=0.0, validator=ge(0))
    max_connections: int = attrs.field(default=1000, validator=gt(0))
    bodies: int = attrs.field(default=2**31, validator=gt(0))

    @property
    def tick(self) -> float:
        """Seconds between two looks at the clock: a bound is kept to within one."""
        return min(4.0, self.header, self.body, self.idle, self.write, self.linger) / 4
