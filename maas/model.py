"""`Model`, the one class users hold, and `connect`, which says where it runs.

Everything a user does with a model is a method here. A Model knows an executor
and asks it; whether that is a thread away or an ocean, nothing here can tell.
"""

import importlib
import inspect
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar, overload

import attrs

from maas import ambient
from maas.backends.base import backend_for
from maas.batches import Mapped
from maas.batching import Batching
from maas.calls import AMBIENT, CALL, Call, Context
from maas.errors import Unsupported
from maas.executors.base import NAME, Executor, Job, ModelInfo, Stream, executor_for, no_method
from maas.methods import bound, built_in
from maas.options import DEFAULTS, Options, misplaced
from maas.signature import Signature

__all__ = ["Asked", "Model", "connect", "found_by", "model_name"]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


def model_name(target: Any) -> str:
    """A name for a target: its function's or class's, in snake case."""
    given = getattr(target, "__name__", None) or type(target).__name__
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", given).lower()
    return re.sub(r"[^a-z0-9_-]+", "-", snake).strip("-_")[:64] or "model"


class Asked(Generic[P, R]):
    """The five ways to ask: now, later, awaited, many, streamed."""

    __slots__ = ("_executor", "_method", "_name", "_options", "_training")

    def _set(
        self, executor: Executor, name: str, method: str, options: Options, training: bool | None
    ) -> Self:
        self._executor = executor
        self._name = name
        self._method = method
        self._options = options
        self._training = training
        return self

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The answer, now."""
        asyncio = sys.modules.get("asyncio")
        if asyncio is not None and asyncio._get_running_loop() is not None:
            _warn_blocking(self._name)
        return self._executor.run(self._call(args, kwargs)).value  # type: ignore[no-any-return]

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """The answer, later: a `concurrent.futures.Future` that can be awaited as well."""
        return self._executor.submit(self._call(args, kwargs))

    def stream(self, *args: P.args, **kwargs: P.kwargs) -> Stream[Any]:
        """The items of a generator method, for `for` and `async for`."""
        return self._executor.stream(self._call(args, kwargs))

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        context = ambient.captured()
        if self._training is not None or self._options is not DEFAULTS:
            context = self._context(context)
        return Call(self._name, self._method, args, kwargs, context)

    def _context(self, context: Context) -> Context:
        options = self._options
        context = attrs.evolve(
            context,
            training=self._training,
            seed=options.seed,
            deadline=None if options.timeout is None else time.monotonic() + options.timeout,
            key=options.key,
            priority=options.priority,
            retries=options.retries,
        )
        if options.retries and options.key is None:
            self._check_repeatable(context)
        return context

    def _check_repeatable(self, context: Context) -> None:
        if getattr(self._executor, "exactly_once", False):
            return
        found = self._executor.method(self._method, context)
        training = self._executor.describe().training if self._training is None else self._training
        if not found.pure or found.stochastic or training:
            raise Unsupported(
                f"{found.label} may be run only once a call, so it cannot be retried: "
                "declare it @maas.method(pure=True), use eval mode, "
                "or give an idempotency key with with_options(key=...)"
            )

    def with_options(self, **changes: Any) -> Self:
        """The same, asked otherwise: by `timeout`, `retries`, `seed`, `priority` or `key`.

        What they mean is told by `maas.Options`.

        Raises
        ------
        TypeError
            An option that does not exist.
        ValueError
            A value that makes no sense.
        """
        known = [field.name for field in attrs.fields(Options)]
        wrong = sorted(changes.keys() - set(known))
        if wrong:
            raise TypeError(f"no such option: {', '.join(wrong)}; known: {', '.join(known)}")
        options = attrs.evolve(self._options, **changes)
        other = type(self).__new__(type(self))
        return other._set(self._executor, self._name, self._method, options, self._training)

    def map(
        self, xs: Iterable[Any], *, batch_size: int | None = None, in_flight: int = 8
    ) -> "Mapped[Any]":
        """The answers for each of `xs`, in order, produced as they are asked for.

        Parameters
        ----------
        xs : single arguments; taken only as far ahead as `in_flight` allows.
        batch_size : so many arguments are put together to one call and its answer is taken apart.
            Arrays are stacked along a new first axis, other values make a list. The
            batches are composed here, so that they are the same wherever the model runs.
        in_flight : calls on their way at once.
        """
        return Mapped(self.submit, xs, batch_size, in_flight)


class Model(Asked[P, R]):
    """A torch module, a function or an object, ready to be asked, served or sent for.

    Parameters
    ----------
    target : what to run.
    name : what to call it; from the target's own name by default.
    signature : what it takes; from its type hints by default.
    example : one real argument (or a tuple of them) to learn the signature from, by one real call.
    device : torch device to run a module on; it is moved there.
    batching : how calls may share a run; of the model's own call, and of every pure method that
        does not say otherwise by `@maas.method(batching=...)`.

    Raises
    ------
    TypeError
        Nothing here can run the target.
    ValueError
        A method of the target has the name of a method of `Model`, or cannot be batched.
    """

    __slots__ = ("__weakref__",)

    @overload
    def __init__(
        self,
        target: Callable[P, R],
        *,
        name: str | None = None,
        signature: Signature | None = None,
        example: Any = None,
        device: str | None = None,
        batching: Batching | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: "Model[..., Any]",
        target: object,
        *,
        name: str | None = None,
        signature: Signature | None = None,
        example: Any = None,
        device: str | None = None,
        batching: Batching | None = None,
    ) -> None: ...
    def __init__(
        self,
        target: Any,
        *,
        name: str | None = None,
        signature: Signature | None = None,
        example: Any = None,
        device: str | None = None,
        batching: Batching | None = None,
    ) -> None:
        local = importlib.import_module("maas.executors.local")
        chosen = model_name(target) if name is None else name
        if NAME.fullmatch(chosen) is None:
            raise ValueError(
                f"a model's name matches {NAME.pattern}, got {chosen!r}; give name=..."
            )
        backend = backend_for(target, device)
        for method in backend.methods:
            if method != CALL and (
                method.startswith("_") or hasattr(Model, method) or built_in(method)
            ):
                raise ValueError(
                    f"method {method!r} of {chosen!r} has the name of a method of maas.Model; "
                    "give it another one with @maas.method(name=...)"
                )
        executor = local.LocalExecutor(backend, chosen)
        executor.refine(signature, example)
        if batching is not None or any(each.batching for each in backend.methods.values()):
            front = importlib.import_module("maas.executors.batching")
            executor = front.batched(executor, batching, example)
        self._set(executor, chosen, CALL, DEFAULTS, None)

    @classmethod
    def over(cls, executor: Executor, name: str) -> Self:
        """A Model that asks this executor: the door for executors of one's own."""
        return cls.__new__(cls)._set(executor, name, CALL, DEFAULTS, None)

    @property
    def executor(self) -> Executor:
        """What answers this model's calls; for executors that stand in front of another one."""
        return self._executor

    # Mode: of this handle, not of the target.

    @property
    def training(self) -> bool | None:
        """Train mode (True) or eval mode (False) of this handle; None where the notion is void."""
        return self.info.training if self._training is None else self._training

    def train(self, mode: bool = True) -> Self:  # noqa: FBT002 - as torch spells it
        """Puts this handle in train mode; other handles of the same model keep theirs."""
        if self.info.training is None:
            raise Unsupported(
                f"model {self._name!r} has no train and eval mode; it is a {self.info.kind}"
            )
        self._training = bool(mode)
        return self

    def eval(self) -> Self:
        """Puts this handle in eval mode."""
        return self.train(mode=False)

    # What and where.

    @property
    def name(self) -> str:
        """The model's name at the place where it runs, which may tell it at the first use."""
        return self._executor.name

    @property
    def where(self) -> str:
        """The place where it runs."""
        return self._executor.where

    @property
    def info(self) -> ModelInfo:
        """Methods, versions, device and limits; asks a remote model at the first use."""
        return self._executor.describe(self._waiting())

    def _waiting(self) -> Context:
        """For what asks the server and not the model: no context but the deadline."""
        timeout = self._options.timeout
        return AMBIENT if timeout is None else Context(deadline=time.monotonic() + timeout)

    def describe(self) -> dict[str, Any]:
        """All of `info` as plain data, a torch module's layers with their parameters included."""
        return self.info.to_data()

    def ready(self, timeout: float | None = None) -> Self:
        """Waits until the model takes calls.

        Raises
        ------
        DeadlineExceeded
            It did not within `timeout` seconds.
        """
        self._executor.ready(timeout)
        return self

    def close(self) -> None:
        """Lets go of threads and connections."""
        self._executor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self
            )
        methods = self.info.methods
        if name in methods:
            asked: BoundMethod[..., Any] = BoundMethod.__new__(BoundMethod)
            return asked._set(self._executor, self._name, name, self._options, self._training)
        function = built_in(name)
        if function is None:
            raise no_method(self._name, name, methods)
        return bound(function, self)

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *(name for name in self.info.methods if name != CALL)]

    def __repr__(self) -> str:
        return f"<maas.Model {self._name!r} {self.where}>"


class BoundMethod(Asked[P, R]):
    """One method of a model, asked in the same five ways."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<maas method {self._name}.{self._method} {self._executor.where}>"


_warned = False


def _warn_blocking(name: str) -> None:
    global _warned  # noqa: PLW0603 - once a process is the promise
    if not _warned:
        _warned = True
        warnings.warn(
            f"this call blocks the running event loop until {name} answers; "
            "write: await model.submit(...)",
            RuntimeWarning,
            stacklevel=3,
        )


# Where.


class Place(Protocol):
    """What `connect` goes to without an address: a `maas.Server` is one."""

    def __maas_executor__(self) -> tuple[Executor, str]:
        """The executor that asks there, and the model's name; options of the place are keywords."""


@overload
def connect(
    where: str,
    *,
    like: Callable[P, R],
    auth: str | None = None,
    env: str | None = None,
    **options: Any,
) -> Model[P, R]: ...
@overload
def connect(
    where: str,
    *,
    like: None = None,
    auth: str | None = None,
    env: str | None = None,
    **options: Any,
) -> Model[..., Any]: ...
@overload
def connect(where: Model[P, R], *, env: str | None = None, **options: Any) -> Model[P, R]: ...
@overload
def connect(where: Place, *, env: str | None = None, **options: Any) -> Model[..., Any]: ...
@overload
def connect(where: Callable[P, R], *, env: str | None = None, **options: Any) -> Model[P, R]: ...
@overload
def connect(where: Any, *, env: str | None = None, **options: Any) -> Model[..., Any]: ...
def connect(
    where: Any, *, like: Any = None, env: str | None = None, **options: Any
) -> Model[..., Any]:
    """The model that runs at `where`; no I/O happens before its first use.

    Parameters
    ----------
    where : a target or a Model (here), a `maas.Server` (here, through the whole wire),
        `"local:module:attribute"` (here, by import path), `"workers:module:attribute"` or
        `"workers:folder"` (in worker processes), or a URL: `http://`, `https://`, `http+unix://`.
    like : a function, or a Model of one, with the model's types, for editors and type checkers.
        At the first use the two signatures are compared, and a difference is a `SignatureError`.
    env : name of an environment variable that, if set, wins over `where`.
    options : of the place. For URLs: `auth` (the key), `verify` (a CA file, an `ssl.SSLContext`),
        `insecure`, `proxy`, `limits`, `connect_timeout`. For workers: `count`, `devices`,
        `example`, `name`, `limits`. Here: `name`, `signature`, `example`, `device`, `batching`,
        as `Model` has them.

    Raises
    ------
    TypeError
        An option that makes no sense for this place.
    ValueError
        A URL of a scheme that nobody knows.
    """
    if env is not None and os.environ.get(env):
        # The options were written for the other place only if they still make sense here.
        where = os.environ[env]
    if isinstance(where, str):
        model = _connect_address(where, options)
    elif hasattr(where, "__maas_executor__"):
        model = Model.over(*where.__maas_executor__(**options))
    elif isinstance(where, Model):
        _refuse_options(options, "a Model")
        model = where
    else:
        _check_here(options, where)
        model = Model(where, **options)
    if like is not None:
        model._executor.expect(*_likeness(like))
    return model


def _likeness(like: Any) -> tuple[Signature, str]:
    if isinstance(like, Model):
        return like.executor.method(CALL).signature, like.name
    return Signature.from_callable(like), like.__name__


_HERE = {"name", "signature", "example", "device", "batching"}


def _check_here(options: dict[str, Any], where: Any) -> None:
    wrong = options.keys() - _HERE
    if wrong:
        raise misplaced(wrong, _HERE, f"a model in this process ({where!r:.60})")


def _refuse_options(options: dict[str, Any], what: str) -> None:
    if options:
        raise misplaced(options, (), what)


def _connect_address(where: str, options: dict[str, Any]) -> Model[..., Any]:
    scheme, colon, rest = where.partition(":")
    if not colon:
        raise ValueError(
            f"{where!r} is no address; write http://host:port/model, http+unix://..., "
            "or local:module:attribute"
        )
    if scheme == "local":
        target = _imported(rest)
        _check_here(options, where)
        model = target if isinstance(target, Model) else Model(target, **options)
        return found_by(model, rest)
    try:
        make = executor_for(scheme)
    except ValueError as error:
        raise ValueError(f"{error}{_meant(where)}") from None
    _check_taken(options, make, scheme)
    executor = make(where, **options)
    return Model.over(executor, executor.name)


def _meant(where: str) -> str:
    """What an address with no scheme was to be, if it looks like one of ours."""
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", where):
        return f"; did you mean 'http://{where}'?"
    if re.fullmatch(r"[\w.]+:[A-Za-z_][\w.]*", where):
        return f"; did you mean 'local:{where}'?"
    return ""


def _check_taken(options: dict[str, Any], make: Callable[..., Any], scheme: str) -> None:
    taken = list(inspect.signature(make).parameters.values())[1:]  # the first one is the address
    known = [each.name for each in taken]
    wrong = options.keys() - known
    if wrong and not any(each.kind is each.VAR_KEYWORD for each in taken):
        raise misplaced(wrong, known, f"{scheme}:")


def found_by(model: Model[..., Any], path: str) -> Model[..., Any]:
    """The model, told how another process finds it."""
    executor: Any = getattr(model.executor, "inner", model.executor)
    if getattr(executor, "path", path) is None:
        executor.path = path
    return model


def _imported(path: str) -> Any:
    """What `module:attribute` names; a function that says it returns a model is called for it."""
    module, colon, attribute = path.partition(":")
    if not colon or not attribute:
        raise ValueError(f"local:{path} names no target; write local:module:attribute")
    target: Any = importlib.import_module(module)
    for part in attribute.split("."):
        target = getattr(target, part)
    return target() if _is_factory(target) else target


def _is_factory(target: Any) -> bool:
    if not inspect.isfunction(target) or inspect.signature(target).parameters:
        return False
    made = inspect.signature(target, eval_str=True).return_annotation
    module = getattr(sys.modules.get("torch.nn"), "Module", Model)
    return isinstance(made, type) and issubclass(made, Model | module)
