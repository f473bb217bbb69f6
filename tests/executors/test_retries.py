"""When a call is sent again: the rules by table and property, then over real sockets.

The flaky server is a script of what each connection does: it speaks maas by its own hand-written
HTTP, and breaks where the script says.
"""

import contextlib
import json
import socket
import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import maas
from maas import wire
from maas.calls import Call, Result
from maas.errors import (
    CodecError,
    DeadlineExceeded,
    NotReady,
    Overloaded,
    ProtocolError,
    StreamInterrupted,
    TransportError,
)
from maas.executors.retries import Attempts, Budget
from maas.http import MSGPACK, PROBLEM
from maas.limits import Limits

PATIENT = 20.0

REFUSED = TransportError("refused")
CUT = TransportError("cut", sent=True)
CUT_AMID = TransportError("cut", sent=True, answered=True)


def attempts(retries=3, repeatable=True, deadline=None, budget=None):
    return Attempts(retries, repeatable, deadline, budget or Budget())


# The rules.


@pytest.mark.parametrize(
    ("error", "repeatable", "again"),
    [
        (REFUSED, True, True),
        (REFUSED, False, True),
        (CUT, True, True),
        (CUT, False, False),
        (CUT_AMID, True, False),
        (CUT_AMID, False, False),
        (Overloaded("busy"), True, True),
        (Overloaded("busy"), False, True),
        (NotReady("starting"), False, True),
        (ProtocolError("garbage", sent=True, answered=True), True, False),
        (StreamInterrupted("cut", sent=True, answered=True), True, False),
        (DeadlineExceeded("late"), True, False),
        (CodecError("bytes"), True, False),
        (ValueError("the model's"), True, False),
    ],
)
def test_what_may_be_sent_again(error, repeatable, again):
    """Again only if the call was not run, or may be run twice, and never after a reply's byte."""
    assert (attempts(repeatable=repeatable).pause_after(error) is not None) is again


def test_no_retries_is_no_second_attempt():
    """Without `retries` a refused call is not sent again."""
    for error in (REFUSED, Overloaded("busy"), CUT_AMID):
        assert attempts(retries=0).pause_after(error) is None


def test_one_new_connection_is_free():
    """A repeatable call whose connection was cut before the reply gets one more, at once."""
    trial = attempts(retries=0)
    assert trial.pause_after(CUT) == 0.0
    assert trial.pause_after(CUT) is None
    assert attempts(retries=0, repeatable=False).pause_after(CUT) is None


FAILURES = st.sampled_from([REFUSED, Overloaded("busy"), CUT])


@given(st.integers(0, 20), st.lists(FAILURES, max_size=40))
def test_never_more_than_asked_for(retries, errors):
    """There are at most `retries` retries, and the one free connection."""
    trial = attempts(retries=retries)
    made = 0
    for error in errors:
        if trial.pause_after(error) is None:
            break
        made += 1
    assert made <= retries + 1


@given(st.integers(1, 50))
def test_pauses_are_bounded(count):
    """No pause of one's own choice is longer than five seconds, and none is negative."""
    budget = Budget()
    trial = attempts(retries=100, budget=budget)
    trial.made = count
    pause = trial.pause_after(REFUSED)
    assert pause is not None
    assert 0 <= pause <= 5.0


def test_pauses_are_spread_over_their_whole_length():
    """Clients that failed together do not come back together."""
    pauses = []
    for _ in range(200):
        trial = attempts()
        trial.made = 2
        pauses.append(trial.pause_after(REFUSED))
    assert min(pauses) < 0.1 < 0.3 < max(pauses) <= 0.4


@pytest.mark.parametrize("kind", [Overloaded, NotReady])
def test_retry_after_is_honoured(kind):
    """A pause is at least what the server asked for."""
    assert attempts().pause_after(kind("busy", 7.0)) >= 7.0
    assert attempts().pause_after(kind("busy", 0.0)) >= 0.0


@pytest.mark.parametrize("asked", [61.0, 1e9, 1e300, float("inf")])
def test_server_cannot_put_a_caller_to_sleep(asked):
    """A server that wants hours is given up, and the caller hears its wish."""
    assert attempts().pause_after(Overloaded("busy", asked)) is None


def test_no_pause_ends_after_the_deadline():
    """What would begin after the deadline is not waited for."""
    soon = time.monotonic() + 1.0
    assert attempts(deadline=soon).pause_after(Overloaded("busy", 2.0)) is None
    assert attempts(deadline=soon).pause_after(Overloaded("busy", 0.1)) is not None


def test_what_is_given_up_costs_no_token():
    """A retry that is not made is not paid for."""
    budget = Budget()
    for _ in range(50):
        assert attempts(budget=budget).pause_after(Overloaded("busy", 1e9)) is None
        assert attempts(budget=budget, retries=0).pause_after(REFUSED) is None
    assert attempts(budget=budget).pause_after(REFUSED) is not None


@given(st.lists(st.booleans(), max_size=300))
def test_retries_are_a_tenth_of_the_calls(calls):
    """Whatever the order, at most ten retries more are made than a tenth of the calls."""
    budget = Budget()
    earned = spent = 0
    for call in calls:
        if call:
            budget.earn()
            earned += 1
        else:
            spent += budget.spend()
        assert spent <= 10 + earned / 10 + 1e-6


def test_budget_is_shared_by_threads():
    """Threads that spend together spend no more than there is."""
    budget = Budget()
    spent = []
    threads = [
        threading.Thread(target=lambda: spent.extend(budget.spend() for _ in range(50)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(spent) == 10


# Over real sockets.

LIMITS = Limits()


class Flaky:
    """A server whose connections do, one after the other, what the script says.

    Descriptions are always answered, unless the script says otherwise.
    """

    def __init__(self, model, *script):
        self._model = maas.Model(model, name="m")
        self._script = list(script)
        self.heads: list[bytes] = []
        self.calls: list[Call] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/m"
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in (self._thread, *self._threads):
            thread.join(PATIENT)
        self._listener.close()

    def _serve(self):
        while not self._ended.is_set():
            try:
                sock, _ = self._listener.accept()
            except TimeoutError:
                continue
            thread = threading.Thread(target=self._converse, args=(sock,))
            thread.start()
            self._threads.append(thread)

    def _converse(self, sock):
        with sock, contextlib.suppress(OSError):
            sock.settimeout(0.05)
            while self._exchange(sock):
                pass

    def _exchange(self, sock):
        """One request and what the script answers; False when the connection ends."""
        head, body = self._request(sock)
        if not head:
            return False
        self.heads.append(head)
        if head.startswith(b"GET") and self._script[:1] != ["cut description"]:
            sock.sendall(self._reply(self._description()))
            return True
        if head.startswith(b"POST"):
            call = wire.decode(body, LIMITS, model="m", method="__call__")
            assert isinstance(call, Call)
            self.calls.append(call)
        step = self._script.pop(0) if self._script else "answer"
        if step == "answer":
            value = self._model(*self.calls[-1].args)
            sock.sendall(self._reply(b"".join(wire.encode(Result(value), LIMITS))))
            return True
        if isinstance(step, bytes):
            sock.sendall(step)
        return False

    def _request(self, sock):
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more(sock, data)
            if not data:
                return b"", b""
        head, _, body = data.partition(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        while len(body) < length:
            body += self._more(sock, data)
        return head, body

    def _more(self, sock, data):
        while not self._ended.is_set():
            try:
                return sock.recv(65536)
            except TimeoutError:
                continue
        return b""

    def _description(self):
        info = self._model.info.to_data()
        data = {"protocol": [1, 1], "model": "m", "models": {"m": info}}
        return b"".join(wire.encode(wire.Description(data), LIMITS))

    @staticmethod
    def _reply(body):
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {MSGPACK}\r\ncontent-length: {len(body)}\r\n\r\n"
        return head.encode() + body


def come_back(status, after=None):
    """A reply that says "not now", as a proxy or a server in front of maas says it."""
    body = json.dumps({"detail": "not now"}).encode()
    wish = "" if after is None else f"retry-after: {after}\r\n"
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {PROBLEM}\r\n{wish}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def impure(x: int) -> int:
    return x + 1


class Pure:
    @maas.method(pure=True)
    def __call__(self, x: int) -> int:
        return x + 1


WAYS = {"call": lambda model: model(1), "submit": lambda model: model.submit(1).result(PATIENT)}


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def ask(request):
    return request.param


HALF = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/vnd.msgpack\r\ncontent-length: 1000\r\n\r\nmaas"
)
AGAIN = {
    "cut": "cut",
    "twice cut": ["cut", "cut"],
    "429": come_back(429),
    "429 with retry-after": come_back(429, 0),
    "503": come_back(503),
    "503 with a word for retry-after": come_back(503, "Wed, 21 Oct 2015 07:28:00 GMT"),
    "503 then cut then 429": [come_back(503), "cut", come_back(429)],
}


@pytest.mark.parametrize("script", AGAIN.values(), ids=AGAIN)
def test_pure_call_is_sent_again(ask, script):
    """A pure call gets its answer through cuts before the reply, and through "not now"."""
    steps = script if isinstance(script, list) else [script]
    with Flaky(Pure(), *steps) as server, maas.connect(server.url) as model:
        assert ask(model.with_options(retries=3)) == 2
        assert len(server.calls) == len(steps) + 1


def test_key_makes_any_call_repeatable(ask):
    """A call with an idempotency key is sent again under the same key."""
    with Flaky(impure, "cut", come_back(503)) as server, maas.connect(server.url) as model:
        assert ask(model.with_options(retries=2, key="k")) == 2
        assert [call.context.key for call in server.calls] == ["k"] * 3


def test_call_with_effects_is_sent_once(ask):
    """A call that may have effects is not sent again once a byte of it has left."""
    with Flaky(impure, "cut") as server, maas.connect(server.url) as model:
        with pytest.raises(TransportError) as caught:
            ask(model)
        assert caught.value.sent
        assert not caught.value.answered
        assert len(server.calls) == 1


def test_retries_of_a_call_with_effects_are_an_error(ask):
    """`retries` on a call that is neither pure nor has a key is refused before it is sent."""
    with Flaky(impure) as server, maas.connect(server.url) as model:
        with pytest.raises(maas.Unsupported, match="pure"):
            ask(model.with_options(retries=1))
        assert server.calls == []


@pytest.mark.parametrize("start", [HALF, HALF[:5], HALF[:40]], ids=["body", "5 bytes", "head"])
def test_nothing_is_sent_again_after_a_byte_of_the_reply(ask, start):
    """Once the reply has begun, not even a pure call with a key is sent again."""
    with Flaky(Pure(), start) as server, maas.connect(server.url) as model:
        with pytest.raises(TransportError) as caught:
            ask(model.with_options(retries=5, key="k"))
        assert caught.value.answered
        assert len(server.calls) == 1


def test_no_retries_says_what_happened(ask):
    """Without retries the caller hears "not now" and when to come back."""
    with Flaky(Pure(), come_back(429, 30)) as server, maas.connect(server.url) as model:
        with pytest.raises(maas.Overloaded, match="not now") as caught:
            ask(model)
        assert caught.value.retry_after == 30.0


def test_server_that_wants_a_day_is_given_up(ask):
    """A retry-after of a day is an error now, not a sleep of a day."""
    with Flaky(Pure(), come_back(503, 86_400)) as server, maas.connect(server.url) as model:
        with pytest.raises(maas.NotReady) as caught:
            ask(model.with_options(retries=3))
        assert caught.value.retry_after == 86_400.0


def test_deadline_is_the_sum_of_all_attempts(ask):
    """Attempts share one deadline: each is told what is left, and none begins after it."""
    with Flaky(Pure(), come_back(503, 0), "cut") as server, maas.connect(server.url) as model:
        assert ask(model.with_options(retries=3, timeout=PATIENT)) == 2
        left = [call.context.deadline for call in server.calls]
        assert all(deadline is not None for deadline in left)
        # Absolute again at the receiver, so they agree to within the time on the way.
        assert max(left) - min(left) < PATIENT
    with Flaky(Pure(), come_back(503, 2)) as server, maas.connect(server.url) as model:
        with pytest.raises((maas.NotReady, maas.DeadlineExceeded)):
            ask(model.with_options(retries=3, timeout=1.0))
        assert len(server.calls) == 1


def unused_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def test_nobody_listens(ask):
    """Where nobody listens, the error comes after the retries, and says that nothing was sent."""
    with maas.connect(f"http://127.0.0.1:{unused_port()}/m") as model:
        for options in ({}, {"retries": 2, "key": "k"}):
            with pytest.raises(TransportError, match="cannot connect") as caught:
                ask(model.with_options(**options))
            assert not caught.value.sent


def test_server_that_starts_late_is_met_by_retries(ask):
    """A call that came before its server gets its answer, its first question included."""
    port = unused_port()
    running = []

    def start():
        running.append(maas.serve({"m": Pure()}, port=port, block=False))

    with maas.connect(f"http://127.0.0.1:{port}/m") as model:
        with pytest.raises(TransportError):
            ask(model)
        timer = threading.Timer(0.05, start)
        timer.start()
        try:
            assert ask(model.with_options(retries=10, timeout=PATIENT)) == 2
        finally:
            timer.join()
            running[0].close()


def test_cut_first_question_is_asked_again(ask):
    """What the server is may always be asked again: it changes nothing."""
    with Flaky(impure, "cut description") as server, maas.connect(server.url) as model:
        assert ask(model) == 2
        assert len(server.calls) == 1
        assert [head[:4] for head in server.heads] == [b"GET ", b"GET ", b"POST"]


def test_server_that_never_describes_itself_cannot_hold_a_call(ask):
    """The deadline holds for the first question too."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/m"
        with maas.connect(url) as model:
            for options in ({}, {"retries": 2}, {"retries": 2, "key": "k"}):
                with pytest.raises(maas.DeadlineExceeded):
                    ask(model.with_options(timeout=0.1, **options))


def test_train_mode_is_sent_once():
    """A module in train mode changes as it runs, so a cut call is not repeated."""
    net = torch.nn.BatchNorm1d(2).eval()
    with Flaky(net, "cut") as server, maas.connect(server.url) as model:
        with torch.no_grad(), pytest.raises(TransportError):
            model.train()(torch.ones(3, 2))
        assert len(server.calls) == 1
    with Flaky(net, "cut") as server, maas.connect(server.url) as model:
        with torch.no_grad():
            model(torch.ones(3, 2))
        assert len(server.calls) == 2


def test_retries_do_not_bring_a_slow_server_down():
    """Over many calls to a server that refuses all, retries stay a tenth of the calls."""
    with Flaky(Pure(), *[come_back(503, 0)] * 200) as server, maas.connect(server.url) as model:
        patient = model.with_options(retries=1)
        for _ in range(60):
            with pytest.raises(maas.NotReady):
                patient(1)
        assert len(server.calls) <= 60 + 10 + 60 // 10
