import json
import urllib.request

import numpy as np
import pytest
import torch

import maas
from maas import data

ROWS = {"age": [31.0, None, 45.0], "city": ["Bern", "Basel", "Bern"]}
RECORDS = [dict(zip(ROWS, row, strict=True)) for row in zip(*ROWS.values(), strict=True)]


def _steps():
    age = data.Pipeline([("fill", data.SimpleImputer()), ("scale", data.StandardScaler())])
    return data.ColumnTransformer(
        [("age", age, ["age"]), ("city", data.OneHotEncoder(), ["city"])]
    ).fit(ROWS)


def _net():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(), torch.nn.Linear(8, 2))


NET, STEPS = _net().eval(), _steps()
MODEL = maas.Model(NET, name="people").prepared(STEPS)
WANTED = NET(torch.from_numpy(STEPS.transform(ROWS).astype(np.float32))).detach().numpy()


def test_raw_rows_are_answered_in_every_place(maas_connect):
    """A prepared model takes columns and records, here and there, called in each way."""
    model = maas_connect(MODEL)
    for rows in (ROWS, RECORDS):
        assert np.array_equal(model(rows), WANTED)
    assert np.array_equal(model.submit(ROWS).result(20.0), WANTED)
    assert [each.tolist() for each in model.map([ROWS, RECORDS])] == [WANTED.tolist()] * 2
    assert np.array_equal(model(rows=ROWS), WANTED)
    assert model.describe()["details"]["rows"] == {"columns": ["age", "city"]}


def test_wrong_rows_are_refused_in_every_place(maas_connect):
    """An unknown category, a missing column and a wrong call are the same error everywhere."""
    model = maas_connect(MODEL)
    with pytest.raises(maas.DataError, match="column 'city', row 0: 'Rom' was not learned"):
        model([{"age": 3, "city": "Rom"}])
    with pytest.raises(maas.DataError, match="no column 'city'"):
        model.submit({"age": [3]}).result(20.0)
    with pytest.raises(maas.SignatureError):
        model(ROWS, 1)
    with pytest.raises(maas.CodecError):
        model({"age": [3], "city": np.array(["Bern"], object)})


def test_a_remote_model_is_prepared_here():
    """In front of a model elsewhere, the preprocessing runs here and only numbers travel."""
    seen = []

    def numbers(x: np.ndarray) -> np.ndarray:
        seen.append((x.dtype.name, x.shape))
        return x * 2

    model = maas.connect(maas.Server(numbers)).prepared(STEPS)
    assert np.array_equal(model(ROWS), STEPS.transform(ROWS).astype(np.float32) * 2)
    assert seen == [("float32", (3, 3))]


def test_json_callers_send_records():
    """A prepared model is asked with plain JSON, null for what is missing."""
    with maas.serve(MODEL, port=0, block=False) as server:
        request = urllib.request.Request(
            f"{server.url}/people",
            json.dumps({"rows": RECORDS}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as reply:
            assert np.allclose(json.load(reply)["result"], WANTED)


def test_a_preprocessing_is_saved_with_the_model(tmp_path):
    """`maas.load` gives a model that takes raw rows, in the mode it was saved in."""
    maas.save(MODEL, tmp_path / "people")
    loaded = maas.load(tmp_path / "people")
    assert np.array_equal(loaded(ROWS), WANTED)
    assert loaded.name == "people"
    assert loaded.executor.preprocessing.to_data() == STEPS.to_data()
    maas.save(loaded.train(), tmp_path / "people")
    assert maas.load(tmp_path / "people").training is True
    manifest = json.loads((tmp_path / "people" / "model.json").read_text())
    assert manifest["preprocessing"] == STEPS.to_data()
    maas.save(NET, tmp_path / "people")
    assert "preprocessing" not in json.loads((tmp_path / "people" / "model.json").read_text())


@pytest.mark.parametrize("damage", [None, {}, {"kind": "exec", "parameters": {}}, [1]])
def test_a_strangers_folder_is_judged(tmp_path, damage):
    """A folder whose preprocessing is none that is known is refused."""
    maas.save(MODEL, tmp_path / "people")
    path = tmp_path / "people" / "model.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "preprocessing": damage}))
    with pytest.raises(maas.CodecError):
        maas.load(tmp_path / "people")


def test_a_tensor_comes_back_as_a_tensor():
    """Rows that are a tensor get an answer that is one, and no gradient is promised."""
    rows = torch.randn(4, 3)
    steps = data.StandardScaler().fit(rows)
    model = maas.Model(NET).prepared(steps)
    assert torch.equal(model(rows), NET(torch.from_numpy(steps.transform(rows))))
    with pytest.raises(maas.Unsupported, match="no gradient passes"):
        model(rows.requires_grad_())


def test_the_model_keeps_its_other_methods():
    """Only the model's own call takes rows; its other methods are as they were."""

    class Counter:
        def __call__(self, x: np.ndarray) -> float:
            return float(x.sum())

        @maas.method(pure=True)
        def named(self, name: str) -> str:
            return name

    model = data.prepared(Counter(), STEPS)
    assert model.named("a") == "a"
    assert model.named.submit("b").result(20.0) == "b"
    assert model(ROWS) == pytest.approx(STEPS.transform(ROWS).sum(), abs=1e-5)


def test_a_batched_model_is_prepared_too():
    """Calls with raw rows share runs of a model that batches."""
    model = maas.Model(NET, batching=maas.Batching(8)).prepared(STEPS)
    jobs = [model.submit([record]) for record in RECORDS * 4]
    for job, wanted in zip(jobs, WANTED.tolist() * 4, strict=True):
        np.testing.assert_allclose(job.result(20.0), [wanted], rtol=1e-5, atol=1e-6)
    model.close()
    with pytest.raises(RuntimeError):
        model(ROWS)


def test_what_is_no_preprocessing_is_refused():
    """`prepared` wants a fitted step of ours."""
    with pytest.raises(maas.DataError, match="learned nothing yet"):
        maas.Model(NET).prepared(data.StandardScaler())
    with pytest.raises(TypeError, match="give a step of"):
        maas.Model(NET).prepared(print)
