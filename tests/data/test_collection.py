import logging
import threading
import urllib.request

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import maas
from maas.data import Collect
from maas.data.journal import Journal

ALLOW = {"call", "describe", "train", "label", "collect"}
X = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
Y = X.sum(1, keepdim=True)


def _net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.ReLU(inplace=True), torch.nn.Linear(3, 1))


@pytest.fixture
def serving(tmp_path):
    """A server of `net` that collects, over sockets."""
    running = []

    def start(allow=ALLOW, models=None, **options):
        server = maas.Server(
            models or {"net": _net()},
            allow=allow,
            jobs=tmp_path / "jobs",
            collect=Collect(tmp_path / "kept", **options),
        )
        running.append(server)
        running.append(maas.serve(server, port=0, block=False))
        return maas.connect(f"{running[-1].url}/{next(iter(server.handler.models))}")

    yield start
    for each in reversed(running):
        each.close()


def _ask(model, *args, **kwargs):
    job = model.submit(*args, **kwargs)
    job.result()
    return job.info.request


def test_a_served_model_is_improved_from_its_use(serving):
    """What was asked, with labels that came later, is a dataset that a job at the server learns."""
    model = serving()
    for x, y in zip(X.split(8), Y.split(8), strict=True):
        model.label(_ask(model, x), y)
    _ask(model, X)  # without a label
    dataset = maas.data.collected(model)
    assert dataset == maas.data.collected(model) == maas.data.upload(model, (X, Y))
    history = model.fit(dataset, loss="mse", optimizer="adam", lr=0.1, epochs=30)
    here = maas.Model(_net())
    expected = here.fit((X, Y), loss="mse", optimizer="adam", lr=0.1, epochs=30)
    assert history.losses == expected.losses
    assert history.losses[-1] < history.losses[0]


def test_inputs_are_kept_as_they_came(serving, tmp_path):
    """A layer that changes its input in place changes nothing of what is kept."""
    model = serving()
    model.label(_ask(model, X.clone()), Y)
    ((x, y),) = Collect(tmp_path / "kept").data("net").batches(99)
    np.testing.assert_array_equal(x, X.numpy())
    np.testing.assert_array_equal(y, Y.numpy())


def test_nothing_is_kept_unless_its_owner_says_so(tmp_path):
    """A server keeps no requests by itself; labels are refused, and so is one for a model here."""
    with maas.serve({"net": _net()}, port=0, block=False, allow=ALLOW, jobs=tmp_path) as running:
        model = maas.connect(f"{running.url}/net")
        assert _ask(model, X) is None
        with pytest.raises(maas.Unsupported, match=r"collect=maas\.data\.Collect"):
            model.label("guess", Y)
        with pytest.raises(maas.Unsupported, match="--collect"):
            maas.data.collected(model)
        with pytest.raises(maas.NotFound, match="kept nothing of that call"):
            model.label(None, Y)
    with pytest.raises(maas.Unsupported, match="runs here"):
        maas.Model(_net()).label("guess", Y)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("grant", ["label", "collect"])
def test_labels_and_what_was_asked_are_granted_apart(serving, grant):
    """To give labels is one grant, and to make a dataset of what everybody asked another."""
    model = serving(ALLOW - {grant})
    request = _ask(model, X)
    if grant == "label":
        with pytest.raises(maas.Forbidden, match="'label'"):
            model.label(request, Y)
    else:
        model.label(request, Y)
        with pytest.raises(maas.Forbidden, match="'collect'"):
            maas.data.collected(model)


def test_a_label_that_does_not_fit_is_refused(serving):
    """A request that is not there, or has another number of rows, is told apart; one value does for
    one row.
    """
    model = serving()
    request = _ask(model, X)
    with pytest.raises(maas.NotFound, match="no request 'guess' is kept here"):
        model.label("guess", Y)
    with pytest.raises(maas.DataError, match="the request has 40 rows, and its label 2"):
        model.label(request, Y[:2])
    with pytest.raises(maas.DataError, match="nothing that was asked of net has a label"):
        maas.data.collected(model)
    model.label(_ask(model, X[:1]), 0.5)
    assert maas.data.collected(model).rows == 1


def test_the_last_label_counts(serving, tmp_path):
    """A label that is given again corrects the one before, and is counted once."""
    model = serving()
    request = _ask(model, X)
    for target in (Y - 1, Y):
        model.label(request, target)
    ((_, y),) = Collect(tmp_path / "kept").data("net").batches(99)
    np.testing.assert_array_equal(y, Y.numpy())


def test_what_is_no_use_of_the_model_is_not_kept(serving):
    """Gradients, train mode, failed calls, and values that are no rows have no name to label."""
    model = serving(ALLOW | {"grad"}, models={"net": torch.nn.Linear(3, 1)})
    assert _ask(model, X) is not None
    assert _ask(model, X.clone().requires_grad_()) is None
    model.train()
    assert _ask(model, X) is None
    model.eval()
    job = model.submit(torch.zeros(2, 7))
    assert job.exception() is not None
    assert job.info is None or job.info.request is None

    def words(text: str) -> int:
        return len(text.split())

    assert _ask(serving(models={"words": words}), "as you like it") is None


def test_everybody_who_asks_over_http_is_told_the_name(serving):
    """An answer as JSON names its request in a header, too."""
    model = serving()
    request = urllib.request.Request(
        model.where, b'{"input": [[1, 2, 3]]}', {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        model.label(reply.headers["maas-request"], [[6.0]])
    assert maas.data.collected(model).rows == 1


def test_keywords_and_order_make_no_difference(serving, tmp_path):
    """An argument by name is the same column as one by position; several are a tuple."""

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, a, b):
            return (a + b) * self.scale

    model = serving(models={"both": Both()})
    for args, kwargs in (((X, Y), {}), ((X,), {"b": Y}), ((), {"b": Y, "a": X})):
        model.label(_ask(model, *args, **kwargs), Y)
    (((a, b), _),) = Collect(tmp_path / "kept").data("both").batches(999)
    np.testing.assert_array_equal(a, np.tile(X, (3, 1)))
    np.testing.assert_array_equal(b, np.tile(Y, (3, 1)))


def test_raw_rows_of_a_prepared_model_are_kept_raw(serving):
    """Records before a preprocessing are kept as columns, which the same model is trained on."""
    people = [{"age": 30.0, "city": "Bern"}, {"age": 40.0, "city": "Rom"}]
    columns = {name: [each[name] for each in people] for name in people[0]}
    steps = maas.data.ColumnTransformer(
        [("a", maas.data.StandardScaler(), ["age"]), ("c", maas.data.OneHotEncoder(), ["city"])]
    ).fit(columns)
    net = torch.nn.Sequential(torch.nn.Linear(3, 1))
    model = serving(models={"people": maas.Model(net, name="people").prepared(steps)})
    for rows in (people, columns):
        model.label(_ask(model, rows), [[1.0], [2.0]])
    dataset = maas.data.collected(model)
    assert dataset.rows == 4
    assert len(model.fit(dataset, epochs=1).losses) == 1


def test_only_what_redaction_leaves_is_written(serving, tmp_path, caplog):
    """What a redaction takes away, or fails at, never reaches the disk, and no log tells it."""

    def redact(inputs):
        if inputs["secret"][0] == "raise":
            raise ValueError(inputs["secret"][0])
        kept = {"x": inputs["x"]}
        return None if inputs["secret"][0] == "drop" else kept

    def add(rows: dict) -> list:
        return rows["x"]

    model = serving(models={"add": add}, redact=redact)
    requests = {
        word: _ask(model, {"x": [1.0], "secret": [word]}) for word in ("s3cret", "drop", "raise")
    }
    with caplog.at_level(logging.ERROR, "maas"):
        model.label(requests["s3cret"], [2.0])
        for word in ("drop", "raise"):
            with pytest.raises(maas.NotFound, match="left out"):
                model.label(requests[word], [2.0])
    (path,) = (tmp_path / "kept" / "add").iterdir()
    assert b"s3cret" not in path.read_bytes()
    assert "ValueError" in caplog.text
    assert "raise" not in caplog.text.replace("raised", "")


def test_odd_rows_do_not_spoil_the_others(serving):
    """Rows of another form than most are left out, with a warning of how many requests."""

    def first(x: object) -> float:
        return float(x.flatten()[0])

    model = serving(models={"first": first})
    for x in (X, X.double(), X[:, :2], X):
        model.label(_ask(model, x), Y)
    with pytest.warns(UserWarning, match="2 labelled requests have other columns"):
        assert maas.data.collected(model).rows == 80


def test_a_restarted_server_goes_on(serving, tmp_path):
    """A request of the server before is labelled at the next one, over the same folder."""
    request = _ask(serving(), X)
    model = serving()
    model.label(request, Y)
    assert maas.data.collected(model).rows == 40
    assert len([*(tmp_path / "kept" / "net").iterdir()]) == 2


def test_a_share_of_the_calls_is_kept(serving):
    """With a rate, that part is kept, drawn from a generator that is nobody else's."""
    model = serving(rate=0.5)
    names = [_ask(model, X) for _ in range(60)]
    assert 5 < sum(name is not None for name in names) < 55


def test_every_version_of_a_model_is_collected(tmp_path):
    """What a name means may change: its requests are kept in one place, and others' are not."""
    collect = {"net": Collect(tmp_path)}
    server = maas.Server({"net": _net(), "other": _net()}, allow=ALLOW, collect=collect)
    server.load("net@v2", _net())
    for name in ("net", "net@v2"):
        assert _ask(maas.connect(server, model=name), X) is not None
    assert _ask(maas.connect(server, model="other"), X) is None
    server.close()
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_a_folder_that_cannot_be_made_is_known_at_once(tmp_path):
    """A folder that cannot be made is an error when it is named, before a request is lost."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="kept"):
        Collect(tmp_path / "file" / "kept")


def test_a_slow_redaction_holds_no_answer(serving):
    """Answers come while a request is still being redacted, and while more wait than may."""
    go = threading.Event()

    def redact(inputs):
        go.wait()
        return inputs

    model = serving(redact=redact, rows=2**24)
    large = torch.zeros(2**20, 3)
    names = [_ask(model, large) for _ in range(8)]
    go.set()
    # 12 MB each, and 64 MiB may wait.
    assert [name is None for name in names] == [False] * 6 + [True] * 2
    model.label(names[0], torch.zeros(2**20, 1))


@pytest.mark.parametrize(
    ("options", "words"), [({"rate": 0}, "rate=0"), ({"rows": 0}, "rows=0"), ({"nbytes": -1}, "-1")]
)
def test_sizes_that_make_no_sense_are_refused(tmp_path, options, words):
    """A rate of none, or room for nothing, is a ValueError that says what is wanted."""
    with pytest.raises(ValueError, match=words):
        Collect(tmp_path, **options)
    with pytest.raises(TypeError, match=r"wants a maas\.data\.Collect, got 'kept'"):
        maas.Server(_net(), collect="kept")


# The journal.


def _bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=60), restart=st.integers(1, 20))
def test_what_is_kept_is_the_newest_within_bounds(tmp_path_factory, sizes, restart):
    """However requests come, and whenever a process ends, rows and bytes keep to their bounds, and
    what is kept is the newest, without a gap.
    """
    folder = tmp_path_factory.mktemp("kept") / "net"
    rows, nbytes = 40, 4_000
    journal = Journal(folder, rows=rows, nbytes=nbytes)
    for number, size in enumerate(sizes):
        if number % restart == 0:
            journal = Journal(folder, rows=rows, nbytes=nbytes)
        assert journal.add(f"r{number}", np.full((size, 2), number), size)
        assert _bytes(folder) <= nbytes
    kept = [name for each in journal._files for name in each.requests]
    assert kept == [f"r{number}" for number in range(len(sizes) - len(kept), len(sizes))]
    assert sum(each.rows for each in journal._files) <= rows
    assert sum(sizes[-len(kept) :]) >= min(sum(sizes), rows // 2 - 12) or _bytes(folder) > 2_000
    for name in kept:
        journal.label(name, np.zeros(sizes[int(name[1:])]))


def test_more_than_may_be_kept_is_not(tmp_path):
    """One request above all bounds is left out, and takes nothing with it."""
    journal = Journal(tmp_path / "net", rows=10, nbytes=4_000)
    assert journal.add("small", np.zeros(3), 3)
    assert not journal.add("many", np.zeros(11), 11)
    assert not journal.add("large", np.zeros((1, 1_000)), 1)
    journal.label("small", np.zeros(3))


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_torn_end_costs_what_is_in_it(tmp_path, cut):
    """A file whose last frame was cut gives all before it, and what comes later is whole."""
    folder = tmp_path / "net"
    journal = Journal(folder, rows=100, nbytes=10_000)
    for number in range(3):
        journal.add(f"r{number}", np.full((2, 1), number), 2)
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(folder, rows=100, nbytes=10_000)
    with pytest.raises(maas.NotFound):
        journal.label("r2", np.zeros(2))
    journal.add("r3", np.full((2, 1), 3), 2)
    for name in ("r1", "r3"):
        journal.label(name, np.zeros(2))
    ((inputs, _),) = Journal(folder, rows=100, nbytes=10_000).labelled().blocks()
    assert inputs.tolist() == [[1], [1], [3], [3]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.complex64, torch.bool])
def test_dtypes_are_kept(tmp_path, dtype):
    """Each dtype comes back, of torch alone where NumPy has it not."""
    collect = Collect(tmp_path)
    server = maas.Server({"first": lambda x: x.shape[0]}, allow=ALLOW, collect=collect)
    model = maas.connect(server)
    x = torch.ones(4, 2, dtype=dtype)
    model.label(_ask(model, x), list("abcd"))
    ((kept, labels),) = collect.data("first").batches(9)
    torch.testing.assert_close(torch.as_tensor(kept), x)
    assert labels.tolist() == list("abcd")
    server.close()
