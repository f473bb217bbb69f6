import datetime as dt
import io
import zipfile
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import maas
from maas.data import Data

ROWS = 57
TABLE = pa.table(
    {
        "a": np.arange(ROWS),
        "b": np.linspace(0, 1, ROWS),
        "label": np.arange(ROWS) % 3,
    }
)


def _write(table, path):
    match path.suffix:
        case ".csv":
            pa.csv.write_csv(table, path)
        case ".parquet":
            pq.write_table(table, path, row_group_size=13)
        case ".arrow":
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=10)
        case ".feather":
            with pa.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table, max_chunksize=10)
    return path


def _rows(data, batch_size=8, **how):
    batches = list(data.batches(batch_size, **how))
    inputs = np.concatenate([inputs for inputs, _ in batches])
    return inputs, np.concatenate([targets for _, targets in batches])


TABLES = [".csv", ".parquet", ".arrow", ".feather"]


@pytest.mark.parametrize("memory", [2**30, 1])
@pytest.mark.parametrize("suffix", TABLES)
def test_a_table_of_numbers_is_a_matrix(tmp_path, suffix, memory):
    """Whole or streamed, numbers become one float32 matrix in the order of the columns."""
    data = Data.of(_write(TABLE, tmp_path / f"t{suffix}"), target="label", memory=memory)
    inputs, targets = _rows(data)
    assert (inputs.dtype, targets.dtype) == (np.float32, np.int64)
    assert np.array_equal(inputs[:, 0], np.arange(ROWS, dtype=np.float32))
    assert np.array_equal(inputs[:, 1], np.linspace(0, 1, ROWS).astype(np.float32))
    assert targets.tolist() == [row % 3 for row in range(ROWS)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    return {suffix: _write(TABLE, folder / f"t{suffix}") for suffix in TABLES}


@pytest.mark.parametrize("suffix", TABLES)
@settings(max_examples=20)
@given(
    size=st.integers(1, 60),
    order=st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9)),
    start=st.integers(0, 60),
    buffer=st.integers(1, 60),
)
def test_a_stream_is_entered_anywhere(files, suffix, size, order, start, buffer):
    """A streamed file's batches from a position on are the tail, and partition the rows."""
    data = Data.of(files[suffix], target="label", memory=1)
    data._source.inner._buffer = buffer
    whole = [inputs.tolist() for inputs, _ in data.batches(size, order=order)]
    tail = [inputs.tolist() for inputs, _ in data.batches(size, order=order, start=start)]
    assert tail == whole[start:]
    assert sorted(row[0] for batch in whole for row in batch) == list(range(ROWS))


def test_a_stream_is_shuffled_in_blocks(files):
    """Every epoch orders each block anew, and no row leaves its block."""
    data = Data.of(files[".parquet"], target="label", memory=1)
    data._source.inner._buffer = 20
    orders = []
    for epoch in range(3):
        rows = _rows(data, order=(1, epoch))[0][:, 0].astype(int).tolist()
        blocks = [rows[at : at + 20] for at in range(0, ROWS, 20)]
        assert [sorted(block) for block in blocks] == [
            list(range(at, min(at + 20, ROWS))) for at in range(0, ROWS, 20)
        ]
        orders += [tuple(row % 20 for row in block) for block in blocks[:2]]
    assert len(set(orders)) == len(orders)


def test_other_columns_stay_a_table(tmp_path):
    """With text among them, columns stay apart, and what is missing is NaN or None."""
    path = tmp_path / "people.csv"
    path.write_text('age,city,member,job\n31,Bern,true,1\n,"NA",,0\n45,NA,false,1\n')
    data = Data.of(path, target="job")
    ((inputs, targets),) = data.batches(9)
    assert inputs["city"].tolist() == ["Bern", "NA", None]
    assert np.array_equal(inputs["age"], [31, np.nan, 45], equal_nan=True)
    assert np.array_equal(inputs["member"], [1, np.nan, 0], equal_nan=True)
    assert targets.tolist() == [1, 0, 1]


def test_columns_are_chosen_and_typed(tmp_path):
    """`inputs` chooses columns in its order, `types` says what is not to be guessed."""
    path = tmp_path / "t.csv"
    path.write_text("zip,a,b\n08001,1,2\n00100,3,4\n")
    data = Data.of(path, target=["a", "b"], inputs=["zip"], types={"zip": "text"})
    ((inputs, targets),) = data.batches(2)
    assert inputs["zip"].tolist() == ["08001", "00100"]
    assert targets.tolist() == [[1, 2], [3, 4]]
    ((inputs, _),) = Data.of(path, inputs=["b", "a"]).batches(2)
    assert inputs.tolist() == [[2, 1], [4, 3]]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("a,b\n1,x\nq,y\n", {"types": {"a": "int64"}}, r"row 3, column 'a': .*'q'"),
        ("a,b\n1,2\n3,4,5\n", {}, "row 3: Expected 2 columns, got 3"),
        ("a,b\n1,2\n3\n", {}, "row 3: Expected 2 columns, got 1"),
        ("", {}, "Empty CSV"),
        ("a,a\n1,2\n", {}, "column 'a' twice"),
        ("a,b\n1,\udcff\udcfe\n", {}, "column 'b' is of type binary"),
        ("a,b\n1,2020-01-01\n", {}, "column 'b' is of type date32"),
        ("a,b\n1,2\n", {"target": "z"}, "no column 'z'; it has a, b"),
        ("a,b\n1,2\n", {"inputs": ["z"]}, "no column 'z'; it has a, b"),
        ("a,b\n1,2\n", {"types": {"z": "text"}}, "no column 'z' to give a type"),
        ("a\n1\n", {"target": "a"}, "no column but the target"),
        ("a,b\n", {"memory": 1}, "no rows"),
    ],
)
def test_a_bad_csv_names_the_place(tmp_path, text, options, words):
    """What is wrong in a CSV file is a DataError with the file's name, row and column."""
    path = tmp_path / "bad.csv"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(maas.DataError, match=words) as caught:
        list(Data.of(path, **options).batches(4))
    assert "bad.csv" in str(caught.value)


def test_a_stream_that_turns_bad_names_the_place(tmp_path):
    """A value that does not fit what the beginning of a stream told is found with its row."""
    path = tmp_path / "long.csv"
    path.write_text("a,b\n" + "1,2\n" * 600_000 + "oops,2\n")
    data = Data.of(path, memory=1)
    with pytest.raises(maas.DataError, match=r"long.csv, row 600002, column 'a': .*'oops'"):
        for _ in data.batches(4096):
            pass


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet", ".arrow", ".feather"])
@pytest.mark.parametrize(
    "content", [b"", b"hello, world", b"PAR1xxxxxxxxPAR1", b"PK\x03\x04broken"]
)
def test_a_damaged_file_is_refused(tmp_path, suffix, content):
    """Bytes that are no such file are a DataError that names it."""
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(maas.DataError, match=r"bad\."):
        Data.of(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", *TABLES[1:]])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_file_that_was_cut_is_refused(tmp_path, suffix, part):
    """A file whose end is missing is a DataError, or rows are missing from no batch."""
    path = tmp_path / f"cut{suffix}"
    if suffix == ".npy":
        np.save(path, np.ones((50, 50)))
    elif suffix == ".npz":
        np.savez(path, np.ones((50, 50)), np.ones(50))
    else:
        _write(TABLE, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(maas.DataError, match=r"cut\."):
        list(Data.of(path).batches(4))


def test_an_array_file_is_mapped(tmp_path):
    """An .npy file is mapped: its rows are had without reading it whole."""
    np.save(tmp_path / "x.npy", np.arange(20).reshape(10, 2))
    data = Data.of(tmp_path / "x.npy")
    assert isinstance(data._source.inputs, np.memmap)
    ((inputs, targets),) = data.batches(16, order=(1, 2))
    assert targets is None
    assert sorted(inputs[:, 0]) == list(range(0, 20, 2))


@pytest.mark.parametrize(
    ("arrays", "options", "target"),
    [
        ({"x": 2, "y": 1}, {}, "y"),
        ({"arr_0": 2, "arr_1": 1}, {}, "arr_1"),
        ({"images": 2, "labels": 1}, {"target": "labels"}, "labels"),
        ({"images": 2}, {}, None),
    ],
)
def test_an_archive_holds_inputs_and_targets(tmp_path, arrays, options, target):
    """Arrays of an .npz file are inputs and targets by NumPy's usual names, or as they are told."""
    path = tmp_path / "a.npz"
    np.savez(path, **{name: np.ones((4,) * dims) for name, dims in arrays.items()})
    ((inputs, targets),) = Data.of(path, **options).batches(9)
    assert inputs.shape == (4, 4)
    assert (None if targets is None else targets.shape) == (None if target is None else (4,))


def test_no_file_is_unpickled(tmp_path):
    """Arrays of objects, which NumPy would unpickle, are refused."""
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "o.npz", np.array([{}], object))
    for name in ("o.npy", "o.npz"):
        with pytest.raises(maas.DataError, match=f"{name} cannot be read"):
            Data.of(tmp_path / name)


def test_an_archive_unpacks_to_no_more_than_allowed(tmp_path):
    """A small file that unpacks to a large one is refused before it is unpacked."""
    zeros = io.BytesIO()
    np.save(zeros, np.zeros(10**6))
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", zeros.getvalue())
    with pytest.raises(maas.DataError, match="unpacks to 8000128 bytes, and memory=1000000"):
        Data.of(tmp_path / "bomb.npz", memory=10**6)


def test_other_columns_of_arrow_are_read_too(tmp_path):
    """Categories become text, decimals numbers, lists an axis; a ragged one is named."""
    path = tmp_path / "t.parquet"
    table = pa.table(
        {
            "kind": pa.array(["x", None, "x"]).dictionary_encode(),
            "price": pa.array([Decimal(1), None, Decimal(3)], pa.decimal128(5, 2)),
            "pixels": pa.array([[1.5, 2], [3, 4], [5, 6]], pa.list_(pa.float32())),
            "nothing": pa.nulls(3),
        }
    )
    pq.write_table(table, path)
    ((inputs, _),) = Data.of(path).batches(9)
    assert inputs["kind"].tolist() == ["x", None, "x"]
    assert np.array_equal(inputs["price"], [1, np.nan, 3], equal_nan=True)
    assert inputs["pixels"].tolist() == [[1.5, 2], [3, 4], [5, 6]]
    assert np.isnan(inputs["nothing"]).all()
    pq.write_table(pa.table({"p": [[1], [1], [1, 2]]}), path)
    with pytest.raises(maas.DataError, match="column 'p' has 2 values in row 2"):
        Data.of(path)
    pq.write_table(pa.table({"when": [dt.datetime(2020, 1, 1)]}), path)  # noqa: DTZ001
    with pytest.raises(maas.DataError, match="column 'when' is of type timestamp"):
        Data.of(path)


def test_what_speaks_arrow_is_a_table():
    """Anything with Arrow's C stream is read as a table, whoever made it."""
    inputs, targets = _rows(Data.of(TABLE, target="label"))
    assert inputs.shape == (ROWS, 2)
    assert targets.dtype == np.int64


def test_paths_are_checked(tmp_path):
    """A file that is not there, an unknown type, and columns of an array are refused."""
    with pytest.raises(FileNotFoundError, match="no file"):
        Data.of(tmp_path / "x.csv")
    (tmp_path / "x.xlsx").write_bytes(b"")
    with pytest.raises(maas.DataError, match=r"no type that is known; known: \.npy"):
        Data.of(tmp_path / "x.xlsx")
    np.save(tmp_path / "x.npy", np.ones(3))
    with pytest.raises(maas.DataError, match="no columns to choose from"):
        Data.of(tmp_path / "x.npy", target="y")
    with pytest.raises(ValueError, match="known types: text"):
        (tmp_path / "x.csv").write_text("a,b\n1,2\n")
        Data.of(tmp_path / "x.csv", types={"a": "number"})
