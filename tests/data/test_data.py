import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

import maas
from maas.data import Data, permutation

X = torch.arange(22.0).reshape(11, 2)
Y = torch.arange(11)


class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 11

    def __getitem__(self, index):
        return X[index], Y[index]


class Passing(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y, strict=True)


class Plain:
    def __len__(self):
        return 11

    def __getitem__(self, index):
        return X[index].numpy(), int(Y[index])


KINDS = {
    "tensors": lambda: (X, Y),
    "numpy": lambda: (X.numpy(), Y.numpy()),
    "lists": lambda: (X.tolist(), Y.tolist()),
    "columns": lambda: ({"a": X[:, 0], "b": X[:, 1]}, Y),
    "several": lambda: ((X, X + 1), Y),
    "inputs alone": lambda: X,
    "rows": X.tolist,
    "tensor dataset": lambda: TensorDataset(X, Y),
    "dataset": Squares,
    "subset": lambda: Subset(Squares(), range(11)),
    "plain dataset": Plain,
    "stream": Passing,
}


def _flat(batches):
    return [[_list(inputs), _list(targets)] for inputs, targets in batches]


def _list(value):
    if isinstance(value, dict):
        return {name: _list(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return [_list(each) for each in value]
    return None if value is None else value.tolist()


ORDERS = st.none() | st.tuples(st.integers(0, 2**40), st.integers(0, 1000))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(batch_size=st.integers(1, 13), order=ORDERS, start=st.integers(0, 13))
def test_any_start_gives_the_tail(kind, batch_size, order, start):
    """Batches from a position on are those that follow it when one begins at the beginning."""
    data = Data.of(KINDS[kind]())
    whole = _flat(data.batches(batch_size, order=order))
    assert _flat(data.batches(batch_size, order=order, start=start)) == whole[start:]
    assert data.repeatable


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(batch_size=st.integers(1, 13), order=ORDERS)
def test_batches_partition_the_rows(kind, batch_size, order):
    """Each row is in one batch, with its own target, and only the last batch may be smaller."""
    batches = list(Data.of(KINDS[kind]()).batches(batch_size, order=order))
    first = [inputs["a"] if isinstance(inputs, dict) else inputs for inputs, _ in batches]
    first = [each[0] if isinstance(each, tuple) else each for each in first]
    rows = [row if kind == "columns" else row[0] for each in first for row in each.tolist()]
    assert sorted(rows) == X[:, 0].tolist()
    assert [len(each) for each in first[:-1]] == [batch_size] * (len(first) - 1)
    targets = [row for _, each in batches if each is not None for row in each.tolist()]
    assert targets in ([], [row / 2 for row in rows])
    assert order is not None or rows == sorted(rows)


@given(rows=st.integers(0, 300), seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6))
def test_the_order_is_torchs(rows, seed, epoch):
    """The permutation of an epoch is `torch.randperm`, seeded as in torch's samplers."""
    generator = torch.Generator().manual_seed(seed + epoch)
    found = permutation(rows, seed, epoch)
    assert found.dtype == np.int64
    assert found.tolist() == torch.randperm(rows, generator=generator).tolist()


def test_the_order_is_torchs_without_torch():
    """Where torch is not loaded, the permutation is the same."""
    cases = [(0, 1, 0), (1, 1, 0), (2, 5, 1), (1000, 7, 3), (70_000, 2**32 + 5, 9)]
    code = (
        "import sys; from maas.data import permutation\n"
        f"for case in {cases}: print(hash(tuple(permutation(*case).tolist())))\n"
        "assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = [int(line) for line in run.stdout.split()]
    assert told == [hash(tuple(permutation(*case).tolist())) for case in cases]


def test_data_loads_no_framework():
    """`import maas.data` brings no torch, no pandas and no pyarrow."""
    code = "import sys, maas.data; print({'torch', 'pandas', 'pyarrow'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_a_plain_loop_gets_the_same_bits():
    """Batches of tensors are those of a bare torch loop over the same permutation."""
    order = torch.randperm(11, generator=torch.Generator().manual_seed(3 + 2))
    found = list(Data.of((X, Y)).batches(4, order=(3, 2)))
    for (inputs, targets), at in zip(found, range(0, 11, 4), strict=True):
        assert torch.equal(inputs, X[order[at : at + 4]])
        assert torch.equal(targets, Y[order[at : at + 4]])


@pytest.mark.parametrize("dataset", [Squares(), TensorDataset(X, Y), Subset(Squares(), [3, 1, 2])])
def test_a_dataset_is_batched_as_a_loader_does(dataset):
    """The batches of a torch dataset are those of `DataLoader(dataset, batch_size)`."""
    wanted = [list(map(_list, batch)) for batch in DataLoader(dataset, batch_size=4)]
    assert _flat(Data.of(dataset).batches(4)) == wanted


def test_a_loader_gives_its_batches_as_they_come():
    """A DataLoader's own size, order and draws from the generator are left alone."""
    loader = DataLoader(Squares(), batch_size=3, shuffle=True)
    torch.manual_seed(5)
    wanted = [list(map(_list, batch)) for batch in loader]
    torch.manual_seed(5)
    data = Data.of(loader)
    assert _flat(data.batches(99, order=(1, 1))) == wanted
    assert data.own_batches
    assert (data.rows, data.steps(99)) == (11, 4)


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Squares(), batch_size=3),
        [(X[:4], Y[:4]), (X[4:], Y[4:])],
        lambda: iter([(X[:4], Y[:4]), (X[4:], Y[4:])]),
    ],
)
def test_a_loader_in_order_can_be_entered_anywhere(loader):
    """What is read in the same order each time is repeatable, and gives the tail."""
    data = Data.of(loader)
    assert data.repeatable
    assert _flat(data.batches(1, start=1)) == _flat(data.batches(1))[1:]


def test_what_orders_itself_is_not_entered_in_the_middle():
    """A shuffling loader and an iterator refuse a start, and say what to give instead."""
    shuffled = DataLoader(Squares(), shuffle=True)
    for loader in (shuffled, iter([(X, Y)])):
        data = Data.of(loader)
        assert not data.repeatable
        with pytest.raises(maas.Unsupported, match="give arrays or the dataset"):
            data.batches(1, start=1)


def test_an_iterator_is_read_once():
    """An iterator of batches serves one epoch; a second one says what to give."""
    data = Data.of(iter([(X, Y)]))
    assert len(list(data.batches(1))) == 1
    with pytest.raises(maas.DataError, match="the function that makes it"):
        list(data.batches(1))


def test_lists_become_what_models_compute_with():
    """Floats become float32, whole numbers int64, and text stays text."""
    data = Data.of({"f": [1.5, 2], "i": [1, 2], "t": ["a", None], "y": [0, 1]}, target="y")
    ((inputs, targets),) = data.batches(2)
    assert {name: str(each.dtype) for name, each in inputs.items()} == {
        "f": "float32", "i": "int64", "t": "object",
    }  # fmt: skip
    assert inputs["t"].tolist() == ["a", None]
    assert targets.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (([1, 2, 3], [1, 2]), maas.DataError, "3 rows of inputs and 2 of targets"),
        (({"a": [1, 2], "b": [1]}, [1, 2]), maas.DataError, "have 1, 2 rows"),
        ([[1, 2], [1]], maas.DataError, r"row 1 has the shape \(1,\)"),
        ((X, Y, Y), maas.DataError, r"\(\(a, b\), targets\)"),
        ([], maas.DataError, "no rows"),
        ({}, maas.DataError, "nothing to learn from"),
        (torch.tensor(1.0), maas.DataError, "first axis of rows"),
        (3, TypeError, "int; give"),
        (None, TypeError, "NoneType; give"),
    ],
)
def test_what_is_no_data_is_refused(value, error, words):
    """What cannot be rows is refused at once, in words that say what to give."""
    with pytest.raises(error, match=words):
        Data.of(value)


def test_a_target_must_be_a_column():
    """A target that is not there is refused with the columns that are, and so is one without."""
    with pytest.raises(maas.DataError, match="has no column 'z'; it has a, b"):
        Data.of({"a": [1], "b": [2]}, target="z")
    with pytest.raises(TypeError, match="target= and inputs= name columns"):
        Data.of((X, Y), target="z")


@pytest.mark.parametrize(("size", "start"), [(0, 0), (-1, 0), (1, -1)])
def test_sizes_and_positions_are_checked(size, start):
    """A batch of no rows, and a position before the first, are refused."""
    with pytest.raises(ValueError, match="at least"):
        Data.of((X, Y)).batches(size, start=start)


def test_a_batch_of_three_is_refused():
    """A loader's batch that is no pair is refused with the way to write it."""
    with pytest.raises(maas.DataError, match="batch is a tuple of 3"):
        list(Data.of(lambda: iter([(X, X, Y)])).batches(1))


@given(fraction=st.floats(0.05, 0.9), seed=st.integers(0, 10))
def test_a_split_parts_the_rows(fraction, seed):
    """Each row is in one of the two parts, and the second has the fraction that was asked for."""
    for value in ((X, Y), Squares()):
        train, rest = Data.of(value).split(fraction, seed=seed)
        rows = [row for part in (train, rest) for _, y in part.batches(4) for row in y.tolist()]
        assert sorted(rows) == Y.tolist()
        assert len(rest) == -int(-fraction * 11 // 1)


def test_a_split_that_leaves_nothing_is_refused():
    """A fraction without rows on one side, and a stream, are refused."""
    for fraction in (0.0, 1.0):
        with pytest.raises(ValueError, match="without any"):
            Data.of((X, Y)).split(fraction)
    with pytest.raises(maas.Unsupported, match="as two"):
        Data.of(Passing()).split(0.5)


def test_rows_that_are_unknown_have_no_length():
    """A stream's rows are None, and `len` says so."""
    data = Data.of(Passing())
    assert data.rows is None
    assert data.steps(2) is None
    with pytest.raises(TypeError, match="once they were read"):
        len(data)
    assert "rows unknown" in repr(data)
    assert len(Data.of((X, Y))) == 11


def test_data_is_data():
    """`Data.of` gives a Data back as it is."""
    data = Data.of((X, Y))
    assert Data.of(data) is data


def test_a_file_that_is_mapped_gives_rows_of_ones_own(tmp_path):
    """Rows of a memory-mapped array are copies that torch takes without a warning."""
    np.save(tmp_path / "x.npy", np.ones((5, 2), np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for inputs, _ in Data.of(mapped).batches(2):
            torch.from_numpy(inputs).add_(1)
