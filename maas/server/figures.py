"""The addresses of what was counted: `/metrics` for Prometheus, `/maas/status` for the page.

Reading takes milliseconds, so it happens in a thread, beside the loop that answers calls.
"""

import asyncio
from collections.abc import Sequence

from maas.http import Headers, Response
from maas.server import live
from maas.server.exposition import exposed
from maas.server.forms import Route, json_response
from maas.server.metrics import Metrics
from maas.server.status import status

__all__ = ["figures", "words"]

_FRESH: Headers = (("cache-control", "no-store"), ("vary", "accept, authorization"))


async def figures(metrics: Metrics, route: Route, models: Sequence[str]) -> Response:
    """What the caller may know of these models.

    Raises
    ------
    Forbidden
        The caller may describe nothing.
    Unsupported
        Prometheus's library is not installed.
    """
    caller = route.caller
    caller.check_grant("describe", route.page)
    if route.page == "status":
        told = await asyncio.to_thread(status, metrics, models, caller.may_ask)
        return json_response(200, told | {"page": live.shown(told)}, headers=_FRESH)
    # Whoever is held to some models hears of no others, nor of the process.
    shown = None if caller.models is None else caller.may_ask
    kind, text = await asyncio.to_thread(exposed, metrics, shown, route.accept)
    return Response(200, (("content-type", kind), *_FRESH), (text,))


async def words(metrics: Metrics, route: Route, models: Sequence[str]) -> dict[str, str]:
    """What the page says of these models."""
    return live.shown(await asyncio.to_thread(status, metrics, models, route.caller.may_ask))
