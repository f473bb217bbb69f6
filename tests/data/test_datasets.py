import copy
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import maas
from maas.data import Data
from maas.data.datasets import Datasets, fingerprint

X = np.random.default_rng(1).normal(size=(23, 2, 3)).astype(np.float32)
Y = np.arange(23) % 4
TABLE = {"age": np.arange(23.0), "city": np.array(["Bern", None, "Zürich"] * 7 + ["", "x"], object)}

FORMS = {
    "images": (X, Y),
    "tensors": (torch.from_numpy(X), torch.from_numpy(Y)),
    "inputs alone": X,
    "a table": (TABLE, Y),
    "several": ((X, X[:, 0]), (Y, Y + 1)),
    "bfloat16": (torch.from_numpy(X).bfloat16(), torch.from_numpy(Y)),
    "truth": (X > 0, Y.astype(np.uint8)),
}


def _store(folder, most=9, nbytes=2**30):
    return Datasets(folder, most=most, nbytes=nbytes)


def _written(store, value, size=5, owner="me"):
    writing = store.begin(owner)
    for number, (inputs, targets) in enumerate(Data.of(value).batches(size), 1):
        writing.add(number, inputs, targets)
    return writing.end()


def _flat(source):
    plain = []
    for batch in source.batches(99, None, 0):
        plain += [_plain(each) for each in batch]
    return plain


def _plain(value):
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(each) for each in value)
    if value is None:
        return None
    return [str(value.dtype).removeprefix("torch."), value.tolist()]


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=10)
@given(size=st.integers(1, 30))
def test_what_is_written_is_read(tmp_path_factory, form, size):
    """Rows come back with their values, dtypes and structure, whatever batches they came in."""
    store = _store(tmp_path_factory.mktemp("kept"))
    facts = _written(store, FORMS[form], size)
    assert facts == fingerprint(Data.of(FORMS[form]).batches(7))
    assert facts.rows == 23
    assert _flat(store.open("me", facts.name)) == _flat(Data.of(FORMS[form])._source)


def test_the_name_is_of_the_content():
    """NumPy or torch, strides and batches change no name; a value, a dtype or a column does."""

    def name(value, size=7):
        return fingerprint(Data.of(value).batches(size)).name

    wanted = name((X, Y))
    turned = np.asfortranarray(X)
    strided = np.repeat(X, 2, axis=0)[::2]
    for inputs in (torch.from_numpy(X), turned, strided, torch.from_numpy(turned)):
        assert name((inputs, Y), 3) == wanted
    changed = X.copy()
    changed[3, 1, 2] += 1e-3
    others = [
        (changed, Y),
        (X.astype(np.float64), Y),
        (X, None),
        (X, Y + 1),
        ({"x": X}, Y),
        ((X,), Y),
    ]
    names = {name(other if other[1] is not None else X) for other in others}
    assert len(names) == len(others)
    assert wanted not in names


def test_the_name_is_the_hash_of_the_manifest(tmp_path):
    """Anybody can check a dataset with sha256sum: the manifest's name, and each column's hash."""
    facts = _written(_store(tmp_path), (X, Y))
    (manifest,) = tmp_path.glob("*/*/manifest.json")
    assert "sha256:" + hashlib.sha256(manifest.read_bytes()).hexdigest() == facts.name
    assert manifest.parent.name == facts.name.removeprefix("sha256:")
    assert hashlib.sha256((manifest.parent / "0").read_bytes()).hexdigest() in manifest.read_text()
    assert (manifest.parent / "0").read_bytes() == X.tobytes()


@pytest.mark.parametrize("part", ["manifest.json", "0", "1"])
@pytest.mark.parametrize("at", [0, -1])
def test_a_damaged_dataset_is_refused(tmp_path, part, at):
    """One bit in the manifest or in a column, at either end, is found when it is read."""
    store = _store(tmp_path)
    facts = _written(store, (X, Y))
    (path,) = tmp_path.glob(f"*/*/{part}")
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    with pytest.raises(maas.CodecError, match="damaged"):
        store.open("me", facts.name)


def test_nobody_else_sees_it(tmp_path):
    """To another owner a dataset is not there, and what he has is not touched."""
    store = _store(tmp_path)
    facts = _written(store, (X, Y))
    assert store.facts("you") == []
    for name in (facts.name, "sha256:" + "0" * 64, "sha256:../../x", "../../etc", ""):
        with pytest.raises(maas.NotFound):
            store.open("you", name)
    store.drop("you", facts.name)
    assert store.facts("me") == [facts]
    store.drop("me", facts.name)
    store.drop("me", facts.name)
    assert store.facts("me") == []


def test_what_an_owner_has_is_bounded(tmp_path):
    """Count and bytes are refused before they are written, and nothing is left of the try."""
    store = _store(tmp_path, most=1, nbytes=X.nbytes + Y.nbytes + 4_000)
    facts = _written(store, (X, Y))
    with pytest.raises(maas.LimitExceeded, match=r"Leases\(datasets=1\)"):
        store.begin("me")
    store = _store(tmp_path, most=9, nbytes=X.nbytes + Y.nbytes + 4_000)
    with pytest.raises(maas.LimitExceeded, match=r"Leases\(dataset_bytes="):
        _written(store, (np.zeros((10_000, 4)), np.zeros(10_000)))
    assert store.facts("me") == [facts]
    assert [path.name for path in tmp_path.glob("*/.*")] == []
    assert _written(store, (X[:9], Y[:9]), owner="you").rows == 9


def test_a_batch_that_comes_again_is_added_once(tmp_path):
    """A repeated number changes nothing, a gap is a Conflict, and the end may be asked again."""
    store = _store(tmp_path)
    writing = store.begin("me")
    for number in (1, 1, 2, 2):
        writing.add(number, X[(number - 1) * 12 : number * 12], Y[(number - 1) * 12 : number * 12])
    with pytest.raises(maas.Conflict, match="4 came where 3"):
        writing.add(4, X, Y)
    assert writing.end() == writing.end() == fingerprint(Data.of((X, Y)).batches(4))


def test_the_same_content_twice_is_one_dataset(tmp_path):
    """Uploaded twice, it is there once."""
    store = _store(tmp_path)
    assert _written(store, (X, Y), 3) == _written(store, (X, Y), 9)
    assert len(store.facts("me")) == 1
    assert [path.name for path in tmp_path.glob("*/.*")] == []


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "at least one row"),
        ([(X, Y), (X[:, 0], Y)], r"inputs: from row 23 on rows are float32\[3\]"),
        ([(X, Y), (X.astype(np.float64), Y)], "are float64"),
        ([(X, Y), (X, None)], "other columns: inputs"),
        ([(X, Y[:5])], "have 5, 23 rows"),
        ([(np.array([{}, 1], object), Y[:2])], "inputs, row 0: {} is neither"),
        ([(np.array(["2020-01-01"], "M8[D]"), Y[:1])], "datetime64"),
        ([({1: X}, Y)], "a column is called 1"),
    ],
)
def test_rows_that_are_no_dataset_are_refused(batches, words):
    """What has no rows, changes its form, or holds something else, is named."""
    with pytest.raises(maas.DataError, match=words):
        fingerprint(iter(batches))


def test_a_crash_leaves_nothing_half(tmp_path):
    """A process that dies while it writes leaves no dataset, and what it left goes in an hour."""
    code = (
        "import sys, os, numpy; from pathlib import Path; from maas.data.datasets import Datasets\n"
        "writing = Datasets(Path(sys.argv[1]), most=9, nbytes=2**30).begin('me')\n"
        "writing.add(1, numpy.ones((9, 9)), None); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (left,) = tmp_path.glob("*/.*.tmp")
    assert _store(tmp_path).facts("me") == []
    assert left.exists()
    os.utime(left, (0, 0))
    _store(tmp_path)
    assert not left.exists()


# At a server.


@pytest.fixture
def server(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 4))
    made = maas.Server({"net": net}, allow={"call", "describe", "train"}, jobs=tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("form", FORMS)
def test_data_is_uploaded_once(server, tmp_path, form):
    """A second upload of the same content sends nothing, and finds the same dataset."""
    model = maas.connect(server)
    first = maas.data.upload(model, FORMS[form])
    (manifest,) = tmp_path.rglob("manifest.json")
    stamp = manifest.stat().st_ino
    assert maas.data.upload(model, FORMS[form]) == first
    assert maas.data.uploaded(model) == [first]
    assert manifest.stat().st_ino == stamp
    first.delete()
    assert maas.data.uploaded(model) == []
    assert maas.data.upload(model, FORMS[form]) == first
    assert maas.data.uploaded(model) == [first]


def test_what_passes_once_is_uploaded_too(server):
    """An iterator of batches, which cannot be named first, gives the dataset its content has."""
    batches = ((X[at : at + 5], Y[at : at + 5]) for at in range(0, 23, 5))
    assert maas.data.upload(maas.connect(server), batches).name == fingerprint(
        Data.of((X, Y)).batches(23)
    ).name  # fmt: skip


def test_more_than_one_message_is_one_dataset(server):
    """Rows beyond one message are sent in parts, and are one dataset."""
    large = np.random.default_rng(2).normal(size=(300, 10_000))
    dataset = maas.data.upload(maas.connect(server), large)
    assert (dataset.rows, dataset.nbytes) == (300, large.nbytes)


def questions(server):
    """Asks the server's service for datasets, and gives what it answers."""
    executor = maas.connect(server).executor
    return lambda *question: executor.ask("_data", question, maas.calls.Context()).value


def test_an_upload_that_was_broken_off_goes_on(tmp_path, server):
    """The same content, announced again, finds the batches that are there, and is verified."""
    ask, wanted = questions(server), fingerprint(Data.of((X, Y)).batches(5))
    begun, number = ask("begin", wanted.name)
    assert number == 0
    for number, (inputs, targets) in enumerate(Data.of((X, Y)).batches(5), 1):
        if number < 4:
            ask("add", begun, number, inputs, targets)
    assert ask("begin", wanted.name) == [begun, 3]
    assert ask("begin", "sha256:" + "0" * 64)[1] == 0
    assert ask("begin", "")[0] != begun
    for number, (inputs, targets) in enumerate(Data.of((X, Y)).batches(5, start=3), 4):
        ask("add", begun, number, inputs, targets)
    assert ask("end", begun)["name"] == wanted.name
    assert maas.data.upload(maas.connect(server), (X, Y)).name == wanted.name


def test_an_upload_of_something_else_is_refused(server, tmp_path):
    """What arrives under another content's name is not kept, and the name is free again."""
    ask, wanted = questions(server), fingerprint(Data.of((X, Y)).batches(5))
    begun, _ = ask("begin", wanted.name)
    ask("add", begun, 1, X + 1, Y)
    with pytest.raises(maas.CodecError, match="was announced"):
        ask("end", begun)
    assert maas.data.uploaded(maas.connect(server)) == []
    again, number = ask("begin", wanted.name)
    assert (again != begun, number) == (True, 0)


def test_an_upload_shows_how_far_it_is(server, capfd):
    """A bar, where one is asked for, counts rows to the last."""
    maas.data.upload(maas.connect(server), (X, Y), progress=True)
    assert "23/23" in capfd.readouterr().err


def test_rows_beyond_a_message_are_learned_all_the_same(tmp_path):
    """What does not fit a message goes to the server in pieces, before the job is submitted."""
    torch.manual_seed(0)
    net = torch.nn.Linear(8, 1)
    x = torch.randn(4_000, 8)
    data = x, x.sum(1, keepdim=True)
    server = maas.Server(
        {"net": net},
        allow={"call", "describe", "train"},
        jobs=tmp_path,
        limits=maas.Limits(body=100_000),
    )
    with maas.serve(server, port=0, block=False) as running:
        model = maas.connect(f"{running.url}/net")
        losses = model.fit(data, epochs=1, batch_size=500, lr=0.1).losses
        assert maas.data.uploaded(model)[0].rows == 4_000
    assert losses == maas.Model(copy.deepcopy(net)).fit(
        data, epochs=1, batch_size=500, lr=0.1
    ).losses  # fmt: skip


def test_uploads_are_granted(tmp_path):
    """A server that grants no training, or keeps nothing, refuses, and says what to give."""
    net = torch.nn.Linear(2, 2)
    with pytest.raises(maas.Forbidden, match="'train'"):
        maas.data.upload(maas.connect(maas.Server(net, jobs=tmp_path)), (X, Y))
    with pytest.raises(maas.Unsupported, match="jobs='folder'"):
        maas.data.upload(
            maas.connect(maas.Server(net, allow={"call", "describe", "train"})), (X, Y)
        )
    with pytest.raises(maas.Unsupported, match="runs here"):
        maas.data.upload(maas.Model(net), (X, Y))


@pytest.mark.parametrize(
    "question",
    [
        (),
        ("find",),
        ("find", 3),
        ("exec", "x"),
        ("add", "x", "1", None, None),
        ("begin",),
        ("begin", 1),
    ],
)
def test_strange_questions_are_refused(server, question):
    """A question that the service does not know is a CodecError."""
    executor = maas.connect(server).executor
    with pytest.raises(maas.CodecError, match="_data wants one of"):
        executor.ask("_data", question, maas.calls.Context())


def test_an_upload_is_its_owners(server):
    """An upload's name means nothing to who did not begin it, or when it is over."""
    executor = maas.connect(server).executor
    with pytest.raises(maas.Expired, match="this upload is not here"):
        executor.ask("_data", ("add", "guess", 1, X, Y), maas.calls.Context())


def test_rows_at_a_server_are_not_here(server):
    """A dataset has rows and a name as data, and says where it can be trained on."""
    dataset = maas.data.upload(maas.connect(server), (X, Y))
    for value in (dataset, dataset.name):
        data = Data.of(value)
        assert data.name == dataset.name
        with pytest.raises(maas.Unsupported, match="train there"):
            data.batches(3)
    assert Data.of(dataset).rows == 23


def test_a_job_learns_from_a_dataset(tmp_path):
    """A job that was given a dataset by name learns what a loop over the rows learns here."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 4))
    options = {"loss": "cross_entropy", "optimizer": "sgd", "lr": 0.1, "epochs": 2, "batch_size": 5}
    server = maas.Server({"net": net}, allow={"call", "describe", "train"}, jobs=tmp_path)
    with maas.serve(server, port=0, block=False) as running:
        model = maas.connect(f"{running.url}/net")
        dataset = maas.data.upload(model, (X, Y))
        job = model.fit.submit(dataset, name="named", validation=0.25, **options)
        there = job.result(120.0).state_dict()
        with pytest.raises(maas.NotFound, match="upload it first"):
            model.fit.submit("sha256:" + "0" * 64, name="none", **options)
    here = copy.deepcopy(net)
    maas.Model(here).fit((X, Y), validation=0.25, **options)
    for name, value in here.state_dict().items():
        torch.testing.assert_close(there[name], value)
    assert not torch.equal(here[1].weight, net[1].weight)
