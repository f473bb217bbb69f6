"""Requests to answers: the one front that every server has, without a socket.

A request is admitted by its head alone (who, where to, how large), then its body is
decoded, the model's executor is asked, and the answer is encoded. Nothing here runs a
model, and nothing here knows whether the executor behind it is local or a gateway's.

    POST /{model}            call it            GET /                who is here
    POST /{model}/{method}   call a method      GET /{model}         what it takes
    GET  /healthz            the process lives  GET /readyz          it takes calls
    GET  /metrics            for Prometheus     GET /{model}/readyz  this model does
    GET  /maas/status        the same, as JSON
    /v2/...                  the Open Inference Protocol; inference_protocol/addresses.py

Where a model stands, one of its versions may stand as well: `net@v2`.
"""

from collections.abc import Awaitable, Iterable, Mapping
from pathlib import Path
from typing import Any

from maas.buffers import Body
from maas.calls import Call
from maas.errors import Error, NotFound, NotReady
from maas.executors.base import ModelInfo
from maas.http import Response
from maas.likeness import Reader
from maas.limits import Leases, Limits
from maas.model import Model
from maas.server.admission import MAX_PENDING, Quotas
from maas.server.answering import Answering, presentable
from maas.server.catalogue import Catalogue
from maas.server.collectors import Collector, Collectors
from maas.server.compression import Inflater
from maas.server.descriptions import Descriptions
from maas.server.entrance import Entrance
from maas.server.figures import figures
from maas.server.forms import Form, Packed, Plain, Route, json_response, problem
from maas.server.front import Admission, Head
from maas.server.guard import DEFAULT_GRANTS, Guard
from maas.server.inference_protocol.addresses import is_under
from maas.server.inference_protocol.form import InferenceRoute
from maas.server.inference_protocol.routes import InferenceProtocol
from maas.server.metrics import Metrics, Tally
from maas.server.observation import described, refused
from maas.server.prompt_answers import PromptAnswers
from maas.server.services import Services
from maas.writers import AnswerWriter

__all__ = ["Handler"]


class Handler:
    """Answers for some models.

    Parameters
    ----------
    models : by their address: `net`, or `net@v2`.
    auth, allow : see `Guard`.
    limits : what one message may hold, both ways.
    leases : what is kept for one caller between messages.
    tracebacks : whether callers are told where in the model an error arose.
    hosts : the only hosts a request may name, against DNS rebinding; None for any.
    quotas : what a key may ask that has no quota of its own; see `Quota`.
    max_pending : calls that one model may have in hand, waiting and running.
    jobs : folder of the jobs, None to keep none.
    on_loop : whether models that are measured to be short run on the loop of the connections.
    collect : who keeps what the models are asked, see `Collectors`; they then run in threads.
    """

    def __init__(
        self,
        models: Mapping[str, Model[..., Any]],
        *,
        auth: str | Iterable[str] | Path | None = None,
        allow: Iterable[str] = DEFAULT_GRANTS,
        limits: Limits | None = None,
        leases: Leases | None = None,
        tracebacks: bool = True,
        hosts: frozenset[str] | None = None,
        quotas: Mapping[str, str] | None = None,
        max_pending: int = MAX_PENDING,
        jobs: Path | None = None,
        on_loop: bool = True,
        collect: Collector | Mapping[str, Collector] | None = None,
    ) -> None:
        self.catalogue = Catalogue()
        for address, model in models.items():
            self.catalogue.add(address, model, owned=False)
        self.guard = Guard(auth, allow)
        self.limits = limits or Limits()
        self.reader = Reader(self.limits)
        self.writer = AnswerWriter(self.limits)
        self.hosts = hosts
        self.tracebacks = tracebacks
        self.metrics = Metrics()
        self.entrance = Entrance(self, Quotas(quotas), max_pending)
        self.descriptions = Descriptions(self)
        self.inflater = Inflater(self.limits.body)
        self._collectors = Collectors(collect)
        self._services = Services(
            leases or Leases(), self.catalogue, jobs, self.entrance.charge_rows, self._collectors
        )
        self._answering = Answering(self, self._services)
        self.converse = self._answering.converse
        self._prompt = PromptAnswers(self)
        self._on_loop = on_loop and not self._collectors
        self._inference = InferenceProtocol(self)
        self._draining = False

    @property
    def models(self) -> dict[str, Model[..., Any]]:
        """What each model's name means now."""
        found = {name: self.catalogue.find(name) for name in self.catalogue.names}
        return {name: version.model for name, version in found.items() if version is not None}

    def open(self) -> None:
        """Goes on with the jobs that its folder holds."""
        if self._services.jobs is not None:
            self._services.made("_jobs")

    def close(self) -> None:
        """Lets go of what services hold."""
        self._services.close()
        self._collectors.close()

    def draining(self) -> None:
        """From now on tell who asks that this server is not ready.

        Calls are taken as before: whoever sends them may not have asked yet, and it is the runner
        that stops listening once they had the time to.
        """
        self._draining = True

    # Admission: by the head alone.

    def admit(self, head: Head) -> Admission | Response:
        """Leave to send a body, or the answer to a request that has none or may not have one."""
        if is_under(head.path):
            return self._inference.admit(head)
        try:
            admission = self.entrance.admit(head)
            route: Any = admission.route
            if not route.page:
                return admission
            if route.page == "healthz":
                return self._health()
            if route.page == "readyz" and not route.model:
                return self._ready()
        except Error as error:
            refused(head, error, self.tally, self.metrics)
            return problem(error)
        return admission

    # Answers that need no model.

    def check_ready(self) -> None:
        """Refuses when the server takes no calls."""
        if self._draining:
            raise NotReady("the server is shutting down", retry_after=1.0)

    def _health(self) -> Response:
        return json_response(200, {"status": "alive"})

    def _ready(self) -> Response:
        self.check_ready()
        return json_response(200, {"status": "ready"})

    async def meet(self, name: str) -> ModelInfo:
        """What the model of that name says about itself."""
        version = self.catalogue.find(name)
        if version is None:
            raise NotFound(f"no model {name!r:.80} here")
        version.check_ready()
        return await self.descriptions.learned(version)

    def tally(self, address: str, method: str) -> Tally:
        """What counts these calls; names that are not known here become no labels."""
        version = self.catalogue.find(address)
        if version is None:
            return self.metrics.tally("", "", "")
        known = version.info is not None and method in version.info.methods
        return self.metrics.tally(version.name, version.version, method if known else "")

    async def _page(self, route: Route, form: Form) -> Response:
        began = self.metrics.clock()
        try:
            if route.page == "readyz":
                await self.descriptions.check_ready(route)
                return self._ready()
            if route.page != "describe":
                return await figures(self.metrics, route, self.entrance.names(route.caller))
            response = await self.descriptions.page(route)
        except Exception as error:  # noqa: BLE001 - a fault of this server must not end it
            response = form.failure(presentable(error))
        if route.page == "describe":
            described(route, response.status, self.metrics.clock() - began)
        return response

    # Calls.

    def answer(self, admission: Admission, body: Body) -> Response | Awaitable[Response]:
        """The answer to an admitted request; failures are answers too."""
        route: Any = admission.route
        if isinstance(route, InferenceRoute):
            return self._inference.answer(route, body)
        found = self._prompt.answer(route, body) if route.may_be_prompt and self._on_loop else None
        if not (found is None or isinstance(found, Call)):
            return found
        form = Packed(self, route) if route.packed else Plain(self, route)
        return self._page(route, form) if route.page else self.converse(form, body, found)
