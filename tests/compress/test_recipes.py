"""Each step does what its paper says, and the search finds what was asked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import maas
from maas.backends.packed_layers import PACKED, quantized
from maas.compress import (
    Agreement,
    Budget,
    Distill,
    Factor,
    Prune,
    Quantize,
    RelativeError,
)
from maas.compress.quantize import repacked

LAYERS = {
    nn.Linear: lambda: (nn.Linear(5, 7), torch.randn(3, 5)),
    nn.Conv1d: lambda: (nn.Conv1d(2, 3, 2, padding=1), torch.randn(3, 2, 6)),
    nn.Conv2d: lambda: (
        nn.Conv2d(2, 4, 3, stride=2, groups=2, bias=False),
        torch.randn(3, 2, 6, 6),
    ),
    nn.Conv3d: lambda: (nn.Conv3d(1, 2, 2), torch.randn(2, 1, 3, 3, 3)),
    nn.Embedding: lambda: (nn.Embedding(9, 5, padding_idx=0), torch.tensor([[0, 3], [8, 1]])),
}


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    scale=st.floats(1e-6, 1e6),
)
def test_int8_is_off_by_half_a_scale_at_most(seed, rows, columns, scale):
    """|w - s q| <= s / 2 for each number, and a zero stays zero."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale
    weight[0] = 0
    values, scales = quantized(weight)
    assert (weight - values * scales).abs().le(scales * 0.5001).all()
    assert values[0].eq(0).all()


@pytest.mark.parametrize("packing", ["int8", "sparse", "sparse int8", "bfloat16"])
@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
def test_a_packed_layer_is_torchs_with_the_unpacked_weight(kind, packing, tmp_path):
    """It gives what torch's layer gives for its weight, and comes back from a folder bit for
    bit.
    """
    torch.manual_seed(0)
    layer, inputs = LAYERS[kind]()
    with torch.no_grad():
        layer.weight[0] = 0
        made = repacked(layer.eval(), packing)
        assert type(made) is PACKED[kind]
        bare, _ = LAYERS[kind]()
        bare.weight.copy_(made.weight)
        if getattr(layer, "bias", None) is not None:
            bare.bias.copy_(made.bias)
        near = 0.05 if packing == "bfloat16" else 1e-6
        torch.testing.assert_close(made(inputs), bare(inputs), rtol=near, atol=near)
        torch.testing.assert_close(made(inputs), layer(inputs), rtol=0.05, atol=0.05)
    maas.save(made, tmp_path / "layer")
    loaded = maas.load(tmp_path / "layer")
    assert type(loaded.executor.backend.target) is PACKED[kind]
    assert torch.equal(loaded(inputs), maas.Model(made)(inputs))


def test_the_smallest_weights_go_and_their_bytes_too(model, net, check):
    """Pruning keeps exactly the largest magnitudes of all layers, and stores no zero."""
    small = model.compress(Prune(0.75), check=check)
    weights = [layer.weight.detach().flatten() for layer in net if isinstance(layer, nn.Linear)]
    everything = torch.cat(weights)
    least = everything.abs().sort().values[round(0.75 * len(everything))]
    module = small.executor.backend.target
    kept = [layer.weight.flatten() for layer in module if isinstance(layer, nn.Linear)]
    assert torch.equal(torch.cat(kept), everything.where(everything.abs() >= least, 0.0))
    assert small.report.size < 0.25 + 1 / 32 + 0.02


def test_zeros_stay_unstored_when_pruned_weights_are_quantized(model, check):
    """Steps compose: pruned and quantized is smaller than each, in both orders."""
    both = model.compress(Prune(0.5), Quantize("int8"), check=check)
    other = model.compress(Quantize("int8"), Prune(0.5), check=check)
    alone = model.compress(Quantize("int8"), check=check)
    assert both.report.size < alone.report.size * 0.7
    assert other.report.size == pytest.approx(both.report.size, rel=0.05)


def test_a_layer_that_is_named_stays_as_it_is(model, net, check):
    """`skip=` leaves a layer bit for bit alone."""
    small = model.compress(Quantize("int8", skip=["4"]), Prune(0.5, skip=["4"]), check=check)
    assert torch.equal(small.executor.backend.target[4].weight, net[4].weight)
    assert type(small.executor.backend.target[4]) is nn.Linear


def test_a_matrix_of_low_rank_is_factored_exactly():
    """Rank 3 of 40 x 30 is found, costs 3 x 70 numbers, and gives the same to rounding."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 30))
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(40, 3) @ torch.randn(3, 30))
    rows = torch.randn(50, 30)
    small = maas.Model(net).compress(Factor(0.999999), check=rows, keep=RelativeError(1e-4))
    first = small.executor.backend.target[0]
    assert [first[0].out_features, first[1].in_features] == [3, 3]
    assert small.report.notes == ["Factor(0.999999) made 1 of 2 linear layers thinner"]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), energy=st.floats(0.1, 0.9))
def test_the_energy_that_is_lost_is_the_error_of_the_matrix(seed, energy):
    """The squared relative error of each factored matrix is at most 1 - energy."""
    torch.manual_seed(seed)
    layer = nn.Linear(24, 24)
    small = Factor(energy)(maas.Model(layer), maas.compress.Trial(maas.Model(layer), None))
    made = small.executor.backend.target
    if isinstance(made, nn.Sequential):
        lost = (made[1].weight @ made[0].weight - layer.weight).norm() / layer.weight.norm()
        assert float(lost.detach()) ** 2 <= 1 - energy + 1e-5


def test_nine_times_fewer_parameters_within_a_point(model, digits):
    """Three quarters of the channels go, and what is left learns it again from the original."""
    pytest.importorskip("torch_pruning")
    (inputs, _), check = digits
    small = model.compress(
        Prune(0.75, structured=True), Distill(data=inputs, epochs=30), check=check
    )
    before, after = small.report.original, small.report.result
    assert before.numbers / after.numbers > 9
    assert after.score > before.score - 0.01
    assert next(small.executor.backend.target.parameters()).shape == (64, 64)


def test_the_search_finds_eight_times_fewer_bytes(model, digits):
    """The smallest recipe within the budget is returned, and all that were tried are told."""
    pytest.importorskip("torch_pruning")
    (inputs, _), check = digits
    again = Distill(data=inputs, epochs=30)
    budget = Budget(
        size=1 / 8,
        agreement=0.99,
        recipes=[
            (Quantize("int8"),),
            (Prune(0.95), Quantize("int8")),
            (Prune(0.5, structured=True), again, Quantize("int8")),
        ],
    )
    small = model.compress(auto=budget, check=check)
    rows = small.report.to_data()["rows"]
    assert [bool(row["refused"]) for row in rows] == [False, True, True, False]
    assert small.report.size < 1 / 8
    assert small.report.result.agreement >= 0.99
    with torch.no_grad():
        ours, theirs = small(check[0]), model(check[0])
    assert float((ours.argmax(1) == theirs.argmax(1)).double().mean()) >= 0.99


def test_a_budget_that_nothing_meets_is_refused_with_the_table(model, check):
    """Where no recipe is within the budget the error shows what each one came to."""
    budget = Budget(size=0.01, agreement=0.99, recipes=[(Quantize("int8"),), (Prune(0.5),)])
    with pytest.raises(maas.TooLossy, match="no recipe of 2 is within") as caught:
        model.compress(auto=budget, check=check)
    assert "Prune(0.5) was refused: size is" in str(caught.value)


def test_a_student_learns_from_a_teacher_elsewhere(model, digits):
    """A remote model teaches a student here, and the report tells whether that helped."""
    (inputs, targets), check = digits
    tiny = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    before = [each.clone() for each in tiny.parameters()]
    student = maas.connect(maas.Server(model)).compress(
        Distill(tiny, (inputs, targets), epochs=4, lr=0.01, seeds=2), check=check
    )
    (note,) = student.report.notes
    assert note.startswith("Distill(Sequential): score 0.")
    assert "2 seeds: the teacher" in note
    assert student.where == "here"
    assert student.report.result.agreement > 0.5
    assert student.report.original.numbers == 85_002
    assert all(torch.equal(*pair) for pair in zip(before, tiny.parameters(), strict=True))


def test_distillation_is_the_same_again(model, digits):
    """One seed gives one student, bit for bit."""
    (inputs, _), _ = digits
    step = Distill(nn.Linear(64, 10), inputs, epochs=2)
    first, second = (model.compress(step) for _ in range(2))
    assert torch.equal(first(inputs), second(inputs))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda x: Distill(nn.Linear(64, 10)), ValueError, "wants data="),
        (lambda x: Distill(x, x), TypeError, "student is a torch module"),
        (lambda x: Distill(None, x, epochs=0), ValueError, "epochs is a positive int"),
        (lambda x: Distill(None, x, weight=2.0), ValueError, "weight is from 0 to 1"),
        (lambda x: Distill(nn.Linear(64, 9), x), maas.SignatureError, "the teacher \\[10\\]"),
        (lambda x: Distill(nn.ReLU(), x), maas.Unsupported, "nothing to train"),
        (lambda x: Factor(0.0), ValueError, "share of energy"),
        (lambda x: Budget(size=0.5), ValueError, "wants agreement= or error="),
        (lambda x: Budget(size=0.0, error=0.1), ValueError, "above 0"),
        (lambda x: Agreement(1.5), ValueError, "from 0 to 1"),
        (lambda x: RelativeError(-1), ValueError, "from 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(model, digits, make, error, words):
    """A value out of range, or a student of another shape, is refused in words."""
    with pytest.raises(error, match=words):
        model.compress(make(digits[0][0]))


def test_a_model_without_such_layers_is_told_so():
    """A step that finds nothing to do says which layers it treats."""
    model = maas.Model(nn.Sequential(nn.ReLU()))
    for step in (Quantize("int8"), Prune(0.5), Factor(0.9)):
        with pytest.raises(maas.Unsupported, match="has no"):
            model.compress(step)


def test_channels_that_hang_together_otherwise_are_refused_unharmed():
    """A model that fixes its own widths cannot be narrowed, and stays as it was."""
    pytest.importorskip("torch_pruning")

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.b(self.a(x).reshape(-1, 2, 4).flatten(1))

    net = Fixed()
    before = net.a.weight.clone()
    with pytest.raises(maas.Unsupported, match="cannot be taken out"):
        maas.Model(net).compress(Prune(0.5, structured=True), check=torch.randn(4, 6))
    assert torch.equal(net.a.weight, before)
