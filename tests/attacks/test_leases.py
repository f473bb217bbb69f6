"""Attack: asking for graphs and private copies of others, or with numbers that name nothing."""

import pytest
import torch
from torch import nn

import maas
from maas.calls import AMBIENT, BACKWARD, RELEASE, Context
from maas.errors import CodecError, Conflict, Error, NotFound
from maas.server.guard import GRANTS

NET = nn.Linear(3, 2)
X = torch.ones(1, 3, requires_grad=True)
ONES = torch.ones(1, 2)


@pytest.fixture
def server():
    return maas.Server({"net": NET}, auth=["alice", "mallory"], allow=GRANTS)


def _graph(server, key="alice"):
    """A model of alice's, a result, and the name of the graph behind it."""
    model = maas.connect(server, auth=key)
    y = model(X)
    return model, y, y.grad_fn.crossing.kept.name


def _ask(model, method, *args, context=AMBIENT):
    return model._executor.ask(method, args, context)


def test_a_graph_of_another_caller(server):
    """A graph's name is worth nothing to another key: the answer is as for one that never was."""
    _, y, name = _graph(server)
    mallory = maas.connect(server, auth="mallory")
    told = []
    for guess in (name, name[::-1]):
        with pytest.raises(maas.Expired) as caught:
            _ask(mallory, BACKWARD, guess, [0], [ONES], [0], False)
        told.append(str(caught.value))
    assert told[0] == told[1]
    _ask(mallory, RELEASE, [name])
    y.sum().backward()


def test_a_graph_that_was_used(server):
    """A second backward run over a graph that was not kept finds it gone."""
    model, y, name = _graph(server)
    y.sum().backward()
    with pytest.raises(maas.Expired, match="freed"):
        _ask(model, BACKWARD, name, [0], [ONES], [0], False)


@pytest.mark.parametrize(
    ("given", "gradients", "wanted"),
    [
        ([1], [ONES], [0]),
        ([-1], [ONES], [0]),
        ([0], [ONES], [7]),
        ([0, 0], [ONES, ONES], [0]),
        ([0], [ONES], [0, 0]),
        ([0], [], [0]),
        ([0], ["text"], [0]),
        (["0"], [ONES], [0]),
        ([True], [ONES], [0]),
        ([0], [ONES], [2**70]),
        ([0], [torch.ones(9, 9)], [0]),
    ],
)
def test_numbers_that_name_nothing(server, given, gradients, wanted):
    """Numbers of no output or input, and gradients of another shape, are refused; it stays."""
    model, y, name = _graph(server)
    with pytest.raises((CodecError, RuntimeError)):
        _ask(model, BACKWARD, name, given, gradients, wanted, True)
    y.sum().backward()


@pytest.mark.parametrize("args", [(), (1, 2, 3, 4, 5), ("x", [], [], [], 1), ("x",) * 9])
@pytest.mark.parametrize("method", [BACKWARD, RELEASE, "_train", "_tape", "_nothing", "_"])
def test_arguments_of_another_form(server, method, args):
    """A reserved method with arguments of another form, or of no known name, is a typed error."""
    with pytest.raises(Error):
        _ask(maas.connect(server, auth="alice"), method, *args)


@pytest.mark.parametrize("method", [BACKWARD, RELEASE, "_train", "_tape"])
def test_without_a_grant(method):
    """Who may only call reaches no reserved method that does anything."""
    model = maas.connect(maas.Server({"net": NET}))
    if method == RELEASE:
        assert _ask(model, RELEASE, ["x"]).value is None
        return
    with pytest.raises(maas.Forbidden, match="grant"):
        _ask(model, method, "x", [0], [ONES], [0], False)


def _copy(server, key="alice"):
    model = maas.connect(server, auth=key)
    return model, _ask(model, "_train", "open", "").value["copy"]


def test_a_copy_of_another_caller(server):
    """A private copy's name is worth nothing to another key, whatever is asked of it."""
    _, name = _copy(server)
    mallory = maas.connect(server, auth="mallory")
    for operation, rest in (("pull", [True]), ("do", []), ("optimizer", [1])):
        with pytest.raises(maas.Expired, match="not yours"):
            _ask(mallory, "_train", operation, name, 1, [], {}, {}, *rest)
    _ask(mallory, "_train", "close", name)
    assert len(server.handler._services._service("_train").table) == 1


@pytest.mark.parametrize(
    ("error", "question"),
    [
        (CodecError, ("nothing", 1, [], {}, {})),
        (CodecError, ("pull", 1, [], {}, {})),
        (CodecError, ("pull", "1", [], {}, {}, True)),
        (CodecError, ("do", 1, [3], {}, {})),
        (CodecError, ("do", 1, [[]], {}, {})),
        (CodecError, ("do", 1, [["a", "step"]], {}, {})),
        (Conflict, ("do", 1, [[2, "step", 1, []]], {}, {})),
        (CodecError, ("do", 1, [[1, "eval", "1"]], {}, {})),
        (CodecError, ("do", 1, [[1, "step"]], {}, {})),
        (NotFound, ("do", 1, [[1, "step", 5, []]], {}, {})),
        (maas.Unsupported, ("do", 1, [[1, "make", 1, "Rprop", []]], {}, {})),
        (maas.Unsupported, ("do", 1, [[1, "make", 1, "os.system", []]], {}, {})),
        (CodecError, ("do", 1, [[1, "make", 1, "SGD", [{"params": 3}]]], {}, {})),
        (CodecError, ("do", 1, [[1, "make", 1, "SGD", [{}]]], {}, {})),
        (NotFound, ("do", 1, [[1, "make", 1, "SGD", [{"params": ["x"]}]]], {}, {})),
        (ValueError, ("do", 1, [[1, "make", 1, "SGD", []]], {}, {})),
        (CodecError, ("do", 1, [], {"x": ONES}, {})),
        (CodecError, ("do", 1, [], {"bias": "text"}, {})),
        (CodecError, ("do", 1, [], {"bias": torch.ones(3)}, {})),
        (CodecError, ("do", 1, [], {"bias": torch.ones(2, dtype=torch.float64)}, {})),
        (CodecError, ("do", 1, [], {}, {"bias": 1})),
        (CodecError, ("do", 1, [], {}, {"x": True})),
        (NotFound, ("optimizer", 1, [], {}, {}, 4)),
        (AttributeError, ("call", 1, [], {}, {}, "__class__", [], {}, "none")),
        (maas.Expired, ("backward", 1, [], {}, {}, "x", [0], [ONES], [0], False, 0)),
    ],
)
def test_questions_that_make_no_sense(server, error, question):
    """What no client asks is a typed error, and the copy and the model answer as before."""
    model, name = _copy(server)
    operation, *rest = question
    with pytest.raises(error):
        _ask(model, "_train", operation, name, *rest)
    told = _ask(model, "_train", "pull", name, 2, [], {}, {}, True).value
    assert torch.equal(told["weight"], NET.weight)
    assert torch.equal(model(X.detach()), NET(X).detach())


def test_a_question_out_of_its_order(server):
    """An older question is a conflict; the same one again has the same answer."""
    model, name = _copy(server)
    work = [[1, "make", 1, "SGD", [{"params": ["weight"], "lr": 0.5}]]]
    for _ in range(2):
        assert _ask(model, "_train", "do", name, 5, work, {}, {}).value == [None]
    with pytest.raises(Conflict, match="one handle"):
        _ask(model, "_train", "do", name, 4, [], {}, {})


def test_gradients_that_want_gradients(server):
    """A question in grad mode over a kept graph leaves one more graph, within the bounds."""
    server = maas.Server({"net": NET}, allow=GRANTS, leases=maas.Leases(graphs=5))
    model = maas.connect(server)
    name = model(X).grad_fn.crossing.kept
    leaf = ONES.clone().requires_grad_()
    for _ in range(3):
        answer = _ask(
            model, BACKWARD, name.name, [0], [leaf], [0], True, context=Context(grad=True)
        )
        assert answer.graph
    assert len(server.handler._services.graphs.table) <= 5
