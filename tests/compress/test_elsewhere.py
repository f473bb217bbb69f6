"""`model.compress` of a model at a server: a version there, by a grant, and nothing where it
fails.
"""

import hashlib
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import maas
from maas.compress import Agreement, Budget, Compile, Distill, Prune, Quantize, ScoreDrop
from maas.compress.asking import COMPRESS
from maas.compress.question import Question
from maas.testing.equality import difference

GRANTS = {"call", "describe", "compress", "publish"}


# Here, and so in the processes of jobs.
pytestmark = pytest.mark.usefixtures("single")


@pytest.fixture
def place(net, tmp_path):
    """A server that compresses, and a handle of its model."""
    server = maas.Server({"digits": net}, allow=GRANTS, jobs=tmp_path / "jobs")
    yield SimpleNamespace(server=server, model=maas.connect(server), net=net)
    server.close()


def addresses(server):
    return [version.address for version in server.handler.catalogue.versions]


def figures(report):
    """What two runs must agree on: all but times, and of the size on disk the kilobytes.

    A stored model names the versions of what its process had loaded, which is more here.
    """
    return [
        {
            name: value // 1000 if name == "disk" else value
            for name, value in row.items()
            if name not in ("latency", "seconds", "size")
        }
        for row in report.to_data()["rows"]
    ]


def test_a_model_at_a_server_is_compressed_there(place, model, check):
    """The result is a version with the bits and the report of `compress` here, until it is
    published only under its own address.
    """
    before = {name: value.clone() for name, value in place.net.state_dict().items()}
    recipe = (Prune(0.3), Quantize("int8"))
    keep = [Agreement(0.9), ScoreDrop(0.1)]
    # Work with a name goes on when nobody waits, and the same call finds it.
    with pytest.raises(maas.DeadlineExceeded):
        hasty = place.model.with_options(timeout=0.01)
        hasty.compress(*recipe, check=check, keep=keep, name="small")
    small = place.model.compress(*recipe, check=check, keep=keep, name="small")
    here = model.compress(*recipe, check=check, keep=keep)

    assert torch.equal(small(check[0]), here(check[0]))
    assert figures(small.report) == figures(here.report)
    assert small.report.result.latency.keys() == {1, 64}
    assert small.info.version == "small"
    assert difference(dict(place.net.state_dict()), before) is None
    assert torch.equal(place.model(check[0]), model(check[0]))

    # Once more, when it has ended; other arguments are a conflict.
    again = maas.connect(place.server).compress(*recipe, check=check, keep=keep, name="small")
    assert again.report.to_data() == small.report.to_data()
    with pytest.raises(maas.Conflict):
        place.model.compress(Prune(0.4), check=check, name="small")
    assert torch.equal(small(check[0]), here(check[0]))

    small.publish()
    assert torch.equal(place.model(check[0]), here(check[0]))
    with pytest.raises(ValueError, match="digits means digits@small"):
        place.model.job("small").delete()
    maas.connect(place.server, model="digits@v1").publish()
    place.model.job("small").delete()
    assert addresses(place.server) == ["digits@v1"]


@pytest.mark.long  # one more process; what crosses is in test_a_question_crosses_as_data
def test_a_search_runs_at_the_server(place, check):
    """`auto=` tries its recipes there, one of which is refused, and tells of all."""
    budget = Budget(size=0.3, agreement=0.9, recipes=[(Prune(0.9),), (Quantize("int8"),)])
    small = place.model.compress(auto=budget, check=check)
    names = [row.name for row in small.report.rows]
    assert names == ["original", "Prune(0.9)", "Quantize('int8')"]
    assert small.report.rows[1].refused
    assert small.report.chosen == 2
    assert small.info.version.startswith("compressed-")


def test_what_fails_half_way_leaves_nothing(place, check, tmp_path):
    """A refused step raises its error with the figures; no version and no job stay."""
    with pytest.raises(maas.TooLossy, match=r"Prune\(0.99\) was refused") as caught:
        place.model.compress(Quantize("int8"), Prune(0.99), check=check, keep=Agreement(0.9))
    assert caught.value.figures["agreement"] < 0.9
    assert addresses(place.server) == ["digits@v1"]
    assert place.model.jobs() == []
    assert [*(tmp_path / "jobs").glob("*/*")] == []


def test_nobody_waits_for_a_compression(place, digits, check, tmp_path):
    """Others call the model meanwhile; who gives up without a name ends the work, and nothing
    stays of it.
    """
    place.model.info
    learning = Distill(data=digits[0], epochs=100_000)
    errors = []

    def give_up():
        hasty = place.model.with_options(timeout=2.0)
        try:
            hasty.compress(learning, check=check)
        except maas.DeadlineExceeded as error:
            errors.append(error)

    thread = threading.Thread(target=give_up)
    thread.start()
    calls = 0
    while thread.is_alive():
        place.model(check[0][:4])
        calls += 1
        thread.join(0.01)
    assert len(errors) == 1
    assert calls > 1
    keeper = place.server.handler._services.made("_jobs")._keeper
    # The process is killed and the folder goes; the keeper's thread ends when nothing is left.
    if (looking := keeper._thread) is not None:
        looking.join(60)
        assert not looking.is_alive()
    assert [*(tmp_path / "jobs").glob("*/*")] == []


# What is refused.


def test_it_is_refused_unless_granted(net, check, tmp_path):
    """By default a server compresses for nobody, and the error names the grant."""
    server = maas.Server({"digits": net}, jobs=tmp_path)
    with pytest.raises(maas.Forbidden, match="the grant 'compress'"):
        maas.connect(server).compress(Quantize("int8"), check=check)
    server.close()


def test_a_server_without_a_folder_says_so(net, check):
    """A server that keeps no jobs tells how its owner lets it."""
    model = maas.connect(maas.Server({"digits": net}, allow=GRANTS))
    with pytest.raises(maas.Unsupported, match=r"jobs='folder'"):
        model.compress(Quantize("int8"), check=check)


def test_who_may_compress_may_not_train(place, check):
    """The grant lets a caller ask about its work, and begin no training."""
    with pytest.raises(maas.Forbidden, match="the grant 'train'"):
        place.model.fit.submit(check)
    assert place.model.jobs() == []


def test_rows_are_charged_before_any_work(net, check, tmp_path):
    """What it costs is counted against the key's quota, and refused where that is not enough."""
    digest = hashlib.sha256(b"alice").hexdigest()
    path = tmp_path / "keys.toml"
    path.write_text(
        f'[alice]\nsha256 = "{digest}"\nallow = ["call", "describe", "compress"]\n'
        'quota = { rows = "1000/hour" }\n'
    )
    server = maas.Server({"digits": net}, auth=path, jobs=tmp_path / "jobs")
    model = maas.connect(server, auth="alice", model="digits")
    with pytest.raises(maas.LimitExceeded, match="1193 rows"):
        model.compress(Quantize("int8"), check=check)
    assert model.jobs() == []
    model(check[0][:597])
    server.close()


def test_rows_are_counted(check, digits):
    """A question tells the rows of its check data and of what its students learn from."""

    def rows(*steps, **options):
        return Question.of(steps, keep=None, **{"check": None, "auto": None, **options}).rows

    assert rows(Quantize("int8"), check=check) == 2 * 597
    assert rows(Prune(0.5)) == 0
    assert rows(Prune(0.5), Distill(data=digits[0], epochs=3)) == 2 * 3 * 1200
    budget = Budget(error=0.1, recipes=[(Prune(0.5),), (Prune(0.5), Quantize("int8"))])
    assert rows(check=check, auto=budget) == 5 * 597


@pytest.mark.parametrize(
    ("arguments", "keywords", "words"),
    [
        ((lambda model, _trial: model,), {}, "none of these: Quantize, Prune"),
        ((Distill(nn.Linear(64, 10), torch.ones(4, 64)), Prune(0.5)), {}, "student"),
        ((Prune(0.5),), {"keep": lambda _found, _first: ""}, "none of Agreement"),
        ((Prune(0.5),), {"metric": lambda _given, _wanted: 0.0}, "metric= is code"),
    ],
)
def test_code_does_not_cross(place, arguments, keywords, words):
    """A step, a gate or a metric of one's own is refused before anything is sent."""
    arguments = arguments[::-1]  # a student that is taught first is taught here
    with pytest.raises(maas.Unsupported, match=words):
        place.model.compress(*arguments, check=torch.ones(4, 64), **keywords)


STEPS = [
    Quantize("int8", skip=["2"]),
    Prune(0.25, structured=True),
    Distill(data=torch.ones(3, 4), epochs=2, seeds=2),
    Compile(),
]


def test_a_question_crosses_as_data():
    """Steps, gates, budgets and rows are the same question on the other side."""
    data = (torch.ones(5, 4), torch.zeros(5))
    budget = Budget(size=0.5, error=0.1, data=data, recipes=[(Prune(0.5), STEPS[2])])
    for steps, auto in ((STEPS, None), ((), budget)):
        question = Question.of(steps, check=data, keep=ScoreDrop(0.25), auto=auto)
        again = Question.from_data(*question.to_data())
        assert difference(again.to_data(), question.to_data()) is None
        assert again.rows == question.rows
        assert [*map(str, again.steps)] == [*map(str, steps)]
    named = "sha256:" + 64 * "0"
    question = Question.of([Prune(0.5)], check=named, keep=None, auto=None)
    assert question.to_data()[1] == {"part 0": {"dataset": named}}


ODD = {
    "no question": ({}, "fields"),
    "a step that is none": ({"steps": [{"step": "Prun", "amount": 0.5}]}, "mean 'Prune'"),
    "a step without a name": ({"steps": [["Prune", 0.5]]}, "told as a map"),
    "an option that is none": ({"steps": [{"step": "Prune", "amounts": 0.5}]}, "mean 'amount'"),
    "an option missing": ({"steps": [{"step": "Prune"}]}, "amount"),
    "an option that is rows": (
        {"steps": [{"step": "Prune", "amount": torch.ones(2)}]},
        "plain values",
    ),
    "rows that are not there": (
        {"steps": [{"step": "Distill", "data": "part 9"}]},
        "a part of the rows cannot be 'part 9'",
    ),
    "a gate that is none": ({"keep": [{"gate": "Quantize"}]}, "a gate's name"),
    "a budget that is none": ({"steps": [], "auto": {"size": 1.0}}, "a budget has"),
    "steps that are no list": ({"steps": "Prune"}, "lists its steps"),
}


@pytest.mark.parametrize("what", ODD)
def test_odd_questions_are_refused(place, what):
    """A message that is no question is an error of the sender, and begins nothing."""
    changes, words = ODD[what]
    good, rows = Question.of([Prune(0.5)], check=None, keep=None, auto=None).to_data()
    odd = {} if what == "no question" else {**good, **changes}
    executor = place.model.executor
    with pytest.raises((maas.CodecError, maas.Unsupported, ValueError, TypeError), match=words):
        executor.ask(COMPRESS, ("odd", odd, rows, ""), maas.calls.Context())
    assert place.model.jobs() == []
