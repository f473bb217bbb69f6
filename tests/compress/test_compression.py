"""`model.compress` as a whole: reports are true, the original stays, the lossy is not kept."""

import contextlib

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import maas
from maas.compress import Agreement, Distill, Factor, Prune, Quantize, RelativeError, ScoreDrop


def bits(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_report_tells_what_anybody_can_measure(model, net, check, tmp_path):
    """Sizes, errors, agreement and score of a report are those recomputed from outside."""
    small = model.compress(Quantize("int8"), check=check)
    maas.save(small, tmp_path / "small")
    maas.save(model, tmp_path / "model")
    inputs, targets = check
    with torch.no_grad():
        ours, theirs = small(inputs), net(inputs)
    found, before = small.report.result, small.report.original
    for figures, folder in ((found, "small"), (before, "model")):
        assert figures.disk == sum(f.stat().st_size for f in (tmp_path / folder).iterdir())
    assert found.error == pytest.approx(float((ours - theirs).norm() / theirs.norm()), rel=1e-5)
    assert found.largest == pytest.approx(float((ours - theirs).abs().max()), rel=1e-5)
    assert found.agreement == float((ours.argmax(1) == theirs.argmax(1)).double().mean())
    assert found.score == float((ours.argmax(1) == targets).double().mean())
    held = [*small.executor.backend.target.parameters(), *small.executor.backend.target.buffers()]
    assert found.memory == sum(each.nbytes for each in held)
    assert before.numbers == sum(each.numel() for each in net.parameters())
    assert found.latency.keys() == {1, 64}
    assert small.report.size < 0.27


def test_a_report_is_a_table_data_and_a_picture(model, check, tmp_path):
    """A row for the original and one after each step, in words, as plain data and drawn."""
    pytest.importorskip("matplotlib")
    report = model.compress(Prune(0.3), Quantize("int8"), check=check).report
    names = [row["name"] for row in report.to_data()["rows"]]
    assert names == ["original", "Prune(0.3)", "Quantize('int8')"]
    assert all(name in str(report) for name in names)
    sizes = [row["size"] for row in report.to_data()["rows"]]
    assert sizes == sorted(sizes, reverse=True)
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


@settings(max_examples=8, deadline=None)
@given(
    steps=st.lists(
        st.sampled_from(
            [
                Quantize("int8"),
                Quantize("bf16"),
                Prune(0.5),
                Prune(0.5, structured=True),
                Factor(0.5),
                Distill(data=torch.ones(9, 6), epochs=1),
            ]
        ),
        min_size=1,
        max_size=3,
    ),
    seed=st.integers(0, 99),
)
def test_the_original_stays_bit_for_bit(steps, seed):
    """Whatever is done and however it ends, the weights, modes and gradients are as before."""
    pytest.importorskip("torch_pruning")
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model = maas.Model(net)
    before = bits(net)
    with contextlib.suppress(maas.TooLossy, maas.Unsupported):
        model.compress(*steps, check=torch.randn(9, 6), keep=RelativeError(0.1))
    assert same_bits(bits(net), before)
    assert all(each.training for each in net.modules())
    assert all(each.grad is None for each in net.parameters())


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (Agreement(0.99), "agreement is"),
        (RelativeError(0.05), "relative error is"),
        (ScoreDrop(0.01), "the score is"),
    ],
)
def test_a_step_beyond_what_is_kept_is_refused(model, check, keep, words):
    """A step that costs more than `keep=` allows raises `TooLossy` with the figures."""
    with pytest.raises(maas.TooLossy, match=words) as caught:
        model.compress(Quantize("int8"), Prune(0.95), check=check, keep=keep)
    assert "Prune(0.95) was refused" in str(caught.value)
    assert caught.value.figures["error"] > 0.5


def test_a_gate_of_ones_own(model, check):
    """`keep=` takes any callable of the figures and the original's."""

    def half(found, original):
        return "" if found.disk < original.disk / 2 else "not half the size"

    assert model.compress(Quantize("int8"), check=check, keep=half).report.size < 0.5
    with pytest.raises(maas.TooLossy, match="not half the size"):
        model.compress(Prune(0.1), check=check, keep=[half])


def test_numbers_that_are_not_finite_are_refused(model, check):
    """A step that gives nan is refused even where nothing was asked to be kept."""

    def broken(model, _trial):
        net = nn.Sequential(nn.Linear(64, 10))
        nn.init.constant_(net[0].bias, float("nan"))
        return maas.Model(net, name=model.name)

    with pytest.raises(maas.TooLossy, match=r"broken was refused: .*not finite"):
        model.compress(broken, check=check)


def test_a_third_partys_step_is_a_function_in_one_file(model, check, net):
    """A step is any callable of a Model and a trial; the report has its name and its note."""

    def without_bias(model, trial):
        module = maas.compress.copied(model)
        for layer in module:
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
        trial.note(f"judged on {len(trial.check)} rows")
        return maas.compress.around(model, module)

    small = model.compress(without_bias, Quantize("int8"), check=check, keep=Agreement(0.8))
    assert [row.name for row in small.report.rows][1] == "without_bias"
    assert small.report.notes == ["judged on 597 rows"]
    assert float(net[0].bias.detach().abs().sum()) > 0


def test_a_compressed_model_is_a_model(model, check, tmp_path, maas_connect):
    """It is saved, loaded, served, asked in many rows and handed on, each time with the same
    bits.
    """
    inputs, _ = check
    small = model.compress(Prune(0.5), Quantize("int8"), check=check)
    wanted = small(inputs)
    maas.save(small, tmp_path / "small")
    loaded = maas.load(tmp_path / "small")
    assert torch.equal(loaded(inputs), wanted)
    assert loaded.name == "digits"
    assert torch.equal(maas_connect(loaded)(inputs), wanted)
    assert small.with_options(timeout=9.0).report is small.report


def test_gradients_of_inputs_go_through_packed_layers(model, net, check):
    """A packed model can be explained: its input gradient is that of the unpacked weights."""
    inputs = check[0][:4].clone().requires_grad_()
    small = model.compress(Quantize("int8"), check=check)
    (ours,) = torch.autograd.grad(small(inputs).sum(), inputs)
    (theirs,) = torch.autograd.grad(net(inputs).sum(), inputs)
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


# What is refused before any work.


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "words"),
    [
        ((), {}, TypeError, "compress wants steps"),
        (("int8",), {}, TypeError, "a step is a callable"),
        ((Prune,), {}, TypeError, "a step is a callable"),
        ((Prune(0.5),), {"keep": Agreement(0.9)}, ValueError, "give check="),
        ((Prune(0.5),), {"keep": 0.9, "check": torch.ones(4, 64)}, TypeError, "keep= wants"),
        ((Prune(0.5),), {"check": torch.ones(4, 63)}, RuntimeError, "shapes cannot"),
        ((Prune(0.5),), {"check": torch.ones(1, 64)}, ValueError, "at least 2 rows"),
        ((Prune(0.5),), {"check": "digits"}, TypeError, "wants arrays"),
        ((Prune(0.5),), {"check": torch.full((4, 64), torch.nan)}, ValueError, "not finite"),
        (
            (Prune(0.5),),
            {"check": (torch.ones(4, 64), torch.ones(3))},
            ValueError,
            "as many in each",
        ),
        ((Prune(0.5, skip=["head"]),), {}, ValueError, "no layer; there are: 0, 1"),
        ((Quantize("int8 static"),), {}, ValueError, "give check="),
    ],
)
def test_bad_input_is_refused(model, arguments, keywords, error, words):
    """What makes no sense raises an error that says what was wanted."""
    with pytest.raises(error, match=words):
        model.compress(*arguments, **keywords)


def test_unknown_names_get_the_nearest_one():
    """An unknown scheme or step lists those there are, and the one probably meant."""
    with pytest.raises(ValueError, match=r"did you mean 'int8'\? There are: int8, bf16"):
        Quantize("int9")
    with pytest.raises(AttributeError, match="did you mean 'Quantize'"):
        maas.compress.Quantise


@pytest.mark.parametrize("amount", [0, 1, -0.5, "half", True])
def test_a_share_is_between_0_and_1(amount):
    """Prune refuses what is no share."""
    with pytest.raises(ValueError, match="share between 0 and 1"):
        Prune(amount)


def test_what_is_no_module_is_refused(model, check):
    """A function cannot be compressed, nor what stands in front of a module; and no model here
    has versions to name.
    """
    with pytest.raises(maas.Unsupported, match="only torch modules"):
        maas.Model(len, signature=maas.Signature.from_callable(lambda x: x)).compress(Prune(0.5))
    scaler = maas.data.StandardScaler().fit(check[0].numpy())
    with pytest.raises(maas.Unsupported, match="compress the module that it asks"):
        model.prepared(scaler).compress(Prune(0.5))
    with pytest.raises(TypeError, match="a model here makes no version"):
        model.compress(Prune(0.5), name="small")
