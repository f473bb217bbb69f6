"""scikit-learn is the oracle: the same names, parameters and numbers."""

import json

import numpy as np
import pytest
import sklearn.compose
import sklearn.feature_extraction.text
import sklearn.impute
import sklearn.pipeline
import sklearn.preprocessing as theirs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import maas
from maas import data as ours

NUMBERS = st.floats(-1e6, 1e6, width=32) | st.just(float("nan")) | st.integers(-3, 3).map(float)


@st.composite
def _matrices(draw, elements=NUMBERS, least=1):
    rows, columns = draw(st.integers(least, 12)), draw(st.integers(1, 4))
    made = draw(hnp.arrays(np.float64, (rows, columns), elements=elements))
    # A column without any value is refused here, and warned of there.
    made[0, np.isnan(made).all(axis=0)] = 0.0
    return made


def _same(found, wanted):
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


def _again(step):
    """The step after a journey as JSON."""
    data = step.to_data()
    again = ours.of_data(json.loads(json.dumps(data, allow_nan=False)))
    assert again.to_data() == data
    return again


def _blocks(rows, size=3):
    return ours.Data.of(
        [(rows[at : at + size], rows[at : at + size]) for at in range(0, len(rows), size)]
    )


NUMERIC = [
    ("StandardScaler", theirs.StandardScaler, {}),
    ("StandardScaler", theirs.StandardScaler, {"with_mean": False}),
    ("StandardScaler", theirs.StandardScaler, {"with_std": False}),
    ("MinMaxScaler", theirs.MinMaxScaler, {}),
    ("MinMaxScaler", theirs.MinMaxScaler, {"feature_range": (-2, 5.5), "clip": True}),
    ("SimpleImputer", sklearn.impute.SimpleImputer, {}),
    ("SimpleImputer", sklearn.impute.SimpleImputer, {"strategy": "median"}),
    ("SimpleImputer", sklearn.impute.SimpleImputer, {"strategy": "most_frequent"}),
    ("SimpleImputer", sklearn.impute.SimpleImputer, {"strategy": "constant", "fill_value": -1.5}),
    ("SimpleImputer", sklearn.impute.SimpleImputer, {"strategy": "mean", "add_indicator": True}),
]


@pytest.mark.parametrize(("name", "their", "parameters"), NUMERIC)
@settings(max_examples=25)
@given(train=_matrices(), data=st.data())
def test_numbers_come_out_as_theirs(name, their, parameters, train, data):
    """Scalers and the imputer equal scikit-learn's, before and after a journey as JSON."""
    mine, other = getattr(ours, name)(**parameters), their(**parameters)
    new = data.draw(hnp.arrays(np.float64, (5, train.shape[1]), elements=NUMBERS))
    _same(mine.fit_transform(train), other.fit_transform(train))
    _same(mine.transform(new), other.transform(new))
    _same(_again(mine).transform(new), other.transform(new))


@pytest.mark.parametrize(("name", "their", "parameters"), NUMERIC)
@settings(max_examples=20)
@given(train=_matrices(least=4))
def test_a_stream_teaches_what_the_whole_does(name, their, parameters, train):
    """Learned from blocks that pass by, the numbers are those of all rows at once."""
    mine = getattr(ours, name)(**parameters).fit(_blocks(train))
    np.testing.assert_allclose(
        mine.transform(train), their(**parameters).fit(train).transform(train), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", ["StandardScaler", "MinMaxScaler", "SimpleImputer"])
def test_small_numbers_stay_small(name):
    """float32 stays float32, as in scikit-learn, and is close to theirs."""
    rows = np.random.default_rng(1).normal(5, 3, (50, 3)).astype(np.float32)
    their = getattr(theirs, name, getattr(sklearn.impute, name, None))()
    found, wanted = getattr(ours, name)().fit_transform(rows), their.fit_transform(rows)
    assert found.dtype == wanted.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


WORDS = st.sampled_from(["a", "b", "c", "Zürich", ""])
CELLS = st.one_of(WORDS, st.none())


@st.composite
def _categories(draw, cells=CELLS, least=1):
    rows, columns = draw(st.integers(least, 10)), draw(st.integers(1, 3))
    made = np.empty((rows, columns), object)
    made[...] = [[draw(cells) for _ in range(columns)] for _ in range(rows)]
    return made


@pytest.mark.parametrize("drop", [None, "first", "if_binary"])
@pytest.mark.parametrize("kind", ["text", "numbers"])
@settings(max_examples=25)
@given(data=st.data())
def test_one_hot_is_theirs(drop, kind, data):
    """`OneHotEncoder` equals scikit-learn's for text, None, numbers and NaN, and unknown is 0."""
    strategy = (
        _categories()
        if kind == "text"
        else _matrices(st.integers(0, 3).map(float) | st.just(np.nan))
    )
    train = data.draw(strategy)
    mine = ours.OneHotEncoder(drop=drop).fit(train)
    other = theirs.OneHotEncoder(drop=drop, sparse_output=False).fit(train)
    _same(mine.transform(train), other.transform(train))
    _same(_again(mine).transform(train), other.transform(train))
    if drop is None:
        new = train[:1].copy()
        new[0, 0] = "other" if kind == "text" else 99.0
        mine = ours.OneHotEncoder(handle_unknown="ignore").fit(train)
        other = theirs.OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(train)
        _same(mine.transform(new), other.transform(new))


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"encoded_missing_value": -7},
        {"handle_unknown": "use_encoded_value", "unknown_value": -1},
    ],
)
@settings(max_examples=25)
@given(train=_categories())
def test_ordinal_is_theirs(parameters, train):
    """`OrdinalEncoder` equals scikit-learn's, what is missing and what is unknown included."""
    mine, other = ours.OrdinalEncoder(**parameters), theirs.OrdinalEncoder(**parameters)
    _same(mine.fit_transform(train), other.fit_transform(train))
    new = train[:1].copy()
    if "unknown_value" in parameters:
        new[0, 0] = "other"
    _same(_again(mine).transform(new), other.transform(new))


def test_categories_are_given():
    """Categories that are given keep their order, and training rows must be among them."""
    rows = np.array([["low"], ["high"], ["mid"]], object)
    order = [["low", "mid", "high"]]
    assert ours.OrdinalEncoder(categories=order).fit_transform(rows).tolist() == [[0], [2], [1]]
    mine = ours.OneHotEncoder(categories=order).fit_transform(rows)
    _same(mine, theirs.OneHotEncoder(categories=order, sparse_output=False).fit_transform(rows))
    with pytest.raises(maas.DataError, match="column 0, row 0: 'low' was not learned"):
        ours.OneHotEncoder(categories=[["mid", "high"]]).fit(rows)
    with pytest.raises(maas.DataError, match="for 2 columns, and there are 1"):
        ours.OneHotEncoder(categories=[["mid"], ["high"]]).fit(rows)


@settings(max_examples=25)
@given(
    labels=st.lists(st.sampled_from(["a", "b", "c"]), min_size=1)
    | st.lists(st.integers(0, 9), min_size=1)
)
def test_labels_are_theirs(labels):
    """`LabelEncoder` equals scikit-learn's, and gives the names back."""
    mine, other = ours.LabelEncoder().fit(labels), theirs.LabelEncoder().fit(labels)
    codes = _again(mine).transform(labels)
    assert codes.dtype == np.int64
    assert codes.tolist() == other.transform(labels).tolist()
    assert mine.inverse_transform(codes).tolist() == labels


TEXTS = st.lists(st.text(st.sampled_from("ab é1,A \n"), max_size=20), min_size=1, max_size=8)


@pytest.mark.parametrize("analyzer", ["word", "char"])
@settings(max_examples=25)
@given(texts=TEXTS, lowercase=st.booleans(), min_df=st.integers(1, 2))
def test_words_are_theirs(analyzer, texts, lowercase, min_df):
    """`TextVectorizer` learns `CountVectorizer`'s words in its order, and writes ids for them."""
    other = sklearn.feature_extraction.text.CountVectorizer(
        analyzer=analyzer, lowercase=lowercase, min_df=min_df
    )
    mine = ours.TextVectorizer(analyzer=analyzer, lowercase=lowercase, min_df=min_df)
    try:
        other.fit(texts)
    except ValueError:
        with pytest.raises(maas.DataError, match="no word was learned"):
            mine.fit(texts)
        return
    ids = _again(mine.fit(texts)).transform(texts)
    split, known = other.build_analyzer(), other.vocabulary_
    assert dict(zip(mine.vocabulary_, range(len(known)), strict=True)) == known
    wanted = [[known.get(word, -1) + 2 for word in split(text)] for text in texts]
    for row, words in zip(ids.tolist(), wanted, strict=True):
        assert row == words + [0] * (len(row) - len(words))


def test_texts_are_cut_and_limited():
    """A length cuts, `max_features` keeps the most frequent words, and a missing text is named."""
    texts = ["red red green", "red blue green", "red"]
    mine = ours.TextVectorizer(max_features=2, length=2).fit(texts)
    assert mine.vocabulary_ == ["green", "red"]
    assert mine.transform(["blue green red", "", "red"]).tolist() == [[1, 2], [0, 0], [3, 0]]
    with pytest.raises(maas.DataError, match="row 1: None is no text"):
        mine.transform(["red", None])


PEOPLE = {
    "age": [31.0, None, 45.0, 22.0],
    "city": ["Bern", "Basel", None, "Bern"],
    "size": ["low", "high", "mid", "low"],
    "rank": [1, 2, 3, 4],
}


def _people():
    return ours.ColumnTransformer(
        [
            (
                "age",
                ours.Pipeline(
                    [
                        ("fill", ours.SimpleImputer(strategy="median")),
                        ("scale", ours.StandardScaler()),
                    ]
                ),
                ["age"],
            ),
            (
                "city",
                ours.Pipeline(
                    [
                        ("fill", ours.SimpleImputer(strategy="constant", fill_value="?")),
                        ("hot", ours.OneHotEncoder(handle_unknown="ignore")),
                    ]
                ),
                ["city"],
            ),
            ("size", ours.OrdinalEncoder(categories=[["low", "mid", "high"]]), ["size"]),
        ],
        remainder="passthrough",
    )


def test_a_composition_is_theirs():
    """A ColumnTransformer of Pipelines equals scikit-learn's, by columns' numbers."""
    rows = np.empty((4, 4), object)
    rows[...] = np.array(list(PEOPLE.values()), object).T
    rows[1, 0] = float("nan")
    other = sklearn.compose.ColumnTransformer(
        [
            (
                "age",
                sklearn.pipeline.make_pipeline(
                    sklearn.impute.SimpleImputer(strategy="median"), theirs.StandardScaler()
                ),
                [0],
            ),
            (
                "city",
                sklearn.pipeline.make_pipeline(
                    sklearn.impute.SimpleImputer(
                        strategy="constant", fill_value="?", missing_values=None
                    ),
                    theirs.OneHotEncoder(handle_unknown="ignore"),
                ),
                [1],
            ),
            ("size", theirs.OrdinalEncoder(categories=[["low", "mid", "high"]]), [2]),
        ],
        remainder="passthrough",
        sparse_threshold=0,
    ).fit(rows)
    mine = _people().fit(PEOPLE)
    wanted = other.transform(rows).astype(np.float64)
    _same(mine.transform(PEOPLE), wanted)
    _same(_again(mine).transform(PEOPLE), wanted)
    records = [dict(zip(PEOPLE, row, strict=True)) for row in zip(*PEOPLE.values(), strict=True)]
    _same(_again(mine).transform(records), wanted)
    _same(_again(mine).transform({**PEOPLE, "more": [0] * 4}), wanted)


def test_rows_come_in_many_forms():
    """Tensors, lists of rows and dicts of columns teach the same."""
    rows = torch.arange(12.0).reshape(4, 3)
    forms = [
        rows,
        rows.numpy(),
        rows.tolist(),
        {name: rows[:, at] for at, name in enumerate("abc")},
    ]
    found = [ours.StandardScaler().fit(form).transform(form) for form in forms]
    assert all(np.array_equal(each, found[0]) for each in found)


def test_a_preprocessing_does_not_change_its_rows():
    """`transform` leaves the caller's arrays as they are."""
    for kind in (np.float32, np.float64):
        rows = np.array([[1, 2], [3, np.nan]], kind)
        before = rows.copy()
        for step in (ours.StandardScaler(), ours.MinMaxScaler(clip=True), ours.SimpleImputer()):
            step.fit_transform(rows)
        assert np.array_equal(rows, before, equal_nan=True)


SCALER = ours.StandardScaler().fit({"a": [1.0, 2.0], "b": [1.0, 2.0]})


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: ours.StandardScaler().transform([[1.0]]), "learned nothing yet; call fit"),
        (lambda: ours.StandardScaler().fit(np.empty((0, 2))), "no rows to learn from"),
        (lambda: ours.StandardScaler().fit({"a": ["x"]}), "column 'a', row 0: 'x' is no number"),
        (lambda: ours.StandardScaler().fit([[1.0, np.inf]]), "column 1, row 0: inf is no amount"),
        (lambda: ours.StandardScaler().fit([[None], [None]]), "column 0 has no value at all"),
        (lambda: ours.MinMaxScaler().fit([[np.nan, 1.0]]), "column 0 has no value at all"),
        (lambda: ours.SimpleImputer().fit({"a": [None, None]}), "column 'a' has no value at all"),
        (
            lambda: ours.SimpleImputer().fit({"a": ["x", None]}),
            "column 'a', row 0: 'x' is no number",
        ),
        (lambda: SCALER.transform({"a": [1.0]}), "no column 'b'; there are: a"),
        (lambda: SCALER.transform([[1.0]]), "1 columns came, and 2 were learned from"),
        (lambda: SCALER.transform(np.ones(3)), r"shape \(3,\) is no table"),
        (lambda: SCALER.transform([{"a": 1, "b": 2}, {"a": 1}]), "row 1 has not the columns"),
        (lambda: SCALER.transform({"a": [1], "b": [1, 2]}), "different numbers of rows"),
        (lambda: SCALER.transform(3), "int is no table"),
        (
            lambda: ours.OneHotEncoder().fit({"a": ["x"]}).transform({"a": ["y"]}),
            "column 'a', row 0: 'y' was not learned; known: 'x'.*ignore",
        ),
        (lambda: ours.OrdinalEncoder().fit({"a": ["x", 1]}), "column 'a' mixes int and str"),
        (
            lambda: ours.LabelEncoder().fit(["a"]).transform(["a", "b"]),
            "row 1: 'b' is no class; known: 'a'",
        ),
        (lambda: ours.LabelEncoder().fit(["a", None]), "a class is missing"),
        (lambda: ours.LabelEncoder().fit(["a"]).inverse_transform([1]), "from 0 to 0"),
        (
            lambda: ours.ColumnTransformer([("s", ours.StandardScaler(), ["z"])]).fit({"a": [1]}),
            "no column 'z'",
        ),
        (
            lambda: ours.ColumnTransformer([("s", "drop", ["a"])]).fit_transform({"a": [1]}),
            "drops every column",
        ),
    ],
)
def test_what_does_not_fit_is_named(act, words):
    """Unknown categories, missing columns and values that are no numbers name their place."""
    with pytest.raises(maas.DataError, match=words):
        act()


@pytest.mark.parametrize(
    "act",
    [
        lambda: ours.SimpleImputer(strategy="mode"),
        lambda: ours.OneHotEncoder(handle_unknown="no"),
        lambda: ours.OneHotEncoder(drop="last"),
        lambda: ours.OneHotEncoder(categories="some"),
        lambda: ours.OrdinalEncoder(unknown_value=1),
        lambda: ours.MinMaxScaler(feature_range=(1, 0)),
        lambda: ours.TextVectorizer(analyzer="wörd"),
        lambda: ours.TextVectorizer(length=0),
        lambda: ours.Pipeline([]),
        lambda: ours.Pipeline([("a", theirs.StandardScaler())]),
        lambda: ours.Pipeline([("a", ours.StandardScaler()), ("a", ours.StandardScaler())]),
        lambda: ours.ColumnTransformer([("a", ours.StandardScaler())]),
        lambda: ours.ColumnTransformer([("a", ours.StandardScaler(), [1.5])]),
        lambda: ours.ColumnTransformer([("a", "drop", [0])], remainder="keep"),
    ],
)
def test_parameters_are_checked(act):
    """A parameter that makes no sense is refused when it is given."""
    with pytest.raises(ValueError):
        act()


def _damaged(data, path, value):
    copied = json.loads(json.dumps(data))
    place = copied
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return copied


FITTED = _people().fit(PEOPLE).to_data()


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {"kind": "os.system", "parameters": {}},
        {"kind": ["StandardScaler"], "parameters": {}},
        {"kind": "StandardScaler", "parameters": {"with_mean": True}},
        {"kind": "StandardScaler", "parameters": {"with_mean": True, "with_std": True}, "more": 1},
        _damaged(FITTED, ["columns"], []),
        _damaged(FITTED, ["columns"], -1),
        _damaged(FITTED, ["columns"], ["a", "b"]),
        _damaged(FITTED, ["learned", "rest_"], [99]),
        _damaged(FITTED, ["learned", "rest_"], "x"),
        _damaged(FITTED, ["parameters", "transformers", 0, 1], {"kind": "Pipeline"}),
        _damaged(FITTED, ["parameters", "transformers", 0, 1], "pass"),
        _damaged(FITTED, ["parameters", "transformers", 0, 2], ["size", "rank"]),
        _damaged(FITTED, ["parameters", "remainder"], 3),
        _damaged(SCALER.to_data(), ["learned", "mean_"], {"$array": "float64", "values": [1.0]}),
        _damaged(SCALER.to_data(), ["learned", "mean_"], {"$array": "float64", "values": ["x"]}),
        _damaged(
            SCALER.to_data(), ["learned", "mean_"], {"$array": "object", "values": [1.0, 1.0]}
        ),
        _damaged(SCALER.to_data(), ["learned", "mean_"], {"$array": "V8", "values": [1.0, 1.0]}),
        _damaged(SCALER.to_data(), ["learned", "mean_"], [1.0, 1.0]),
        _damaged(SCALER.to_data(), ["learned", "scale_"], None),
        _damaged(ours.TextVectorizer().fit(["ab"]).to_data(), ["learned", "length_"], 10**12),
        _damaged(ours.TextVectorizer().fit(["ab"]).to_data(), ["learned", "vocabulary_"], [1]),
        _damaged(ours.LabelEncoder().fit(["ab"]).to_data(), ["learned", "classes_"], None),
        _damaged(ours.OneHotEncoder().fit([["ab"]]).to_data(), ["learned", "categories_"], []),
        _damaged(ours.SimpleImputer().fit([[1.0]]).to_data(), ["learned", "statistics_"], None),
        _damaged(
            ours.SimpleImputer().fit([[1.0]]).to_data(),
            ["learned", "indicated_"],
            {"$array": "int64", "values": [7]},
        ),
    ],
)
def test_data_of_strangers_is_judged(data):
    """Data that tells no preprocessing, or one that `fit` would not have made, is refused."""
    with pytest.raises(maas.CodecError):
        ours.of_data(data)


def test_deep_data_is_refused():
    """A Pipeline within Pipelines has an end."""
    data = ours.StandardScaler().to_data()
    for _ in range(40):
        data = {"kind": "Pipeline", "parameters": {"steps": [["a", data]]}}
    with pytest.raises(maas.CodecError, match="too deep"):
        ours.of_data(data)


def test_data_passes_through_a_preprocessing():
    """`transformed` gives what models take, whole or from a stream, and labels for targets."""
    data = ours.Data.of(PEOPLE | {"job": ["x", "y", "x", "y"]}, target="job")
    steps, labels = _people().fit(data), ours.LabelEncoder().fit(data)
    prepared = data.transformed(steps, labels)
    ((inputs, targets),) = prepared.batches(4)
    assert (inputs.dtype, targets.tolist()) == (np.float32, [0, 1, 0, 1])
    assert np.array_equal(inputs, steps.transform(PEOPLE).astype(np.float32))
    assert [each.tolist() for each, _ in prepared.batches(3, start=1)] == [inputs[3:].tolist()]
    train, rest = prepared.split(0.25)
    assert (len(train), len(rest)) == (3, 1)
    loaded = [({name: each[:2] for name, each in PEOPLE.items()}, ["x", "y"])]
    ((inputs, _),) = ours.Data.of(loaded).transformed(steps).batches(1)
    assert np.array_equal(inputs, steps.transform(PEOPLE)[:2].astype(np.float32))


def test_a_table_of_numbers_keeps_its_names(tmp_path):
    """A preprocessing sees the columns of a file apart, though a model would get a matrix."""
    (tmp_path / "t.csv").write_text("a,b,y\n1,2,0\n3,4,1\n")
    data = ours.Data.of(tmp_path / "t.csv", target="y")
    steps = ours.ColumnTransformer([("b", ours.StandardScaler(), ["b"])]).fit(data)
    ((inputs, _),) = data.transformed(steps).batches(2)
    assert inputs.tolist() == [[-1.0], [1.0]]
