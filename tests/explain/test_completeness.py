"""How nearly attributions add up to the change that they explain: the figures of their page."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import maas

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "gradient-attributions.md"
ROW = re.compile(r"^\| (\w+) \| `(\w+)` \| ([\d.e-]+) \| ([\d.e-]+) \|$", re.MULTILINE)
ROWS = ROW.findall(PAGE.read_text("utf-8"))
LAYERS = {"tanh": nn.Tanh, "GELU": nn.GELU, "ReLU": nn.ReLU}


@pytest.fixture(scope="module")
def digits():
    """1,797 digits in an order of their own, and their classes."""
    inputs, targets = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    return torch.tensor(inputs, dtype=torch.float32)[order] / 16, torch.tensor(targets)[order]


@pytest.fixture(scope="module")
def reading(digits, one_thread):
    """A network for digits by the name of what stands between its layers."""
    inputs, targets = digits
    made = {}
    for name, layer in LAYERS.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(
                nn.Linear(64, 64), layer(), nn.Linear(64, 64), layer(), nn.Linear(64, 10)
            )
            optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
            for _ in range(8):
                for rows in torch.randperm(1200).split(64):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(net(inputs[rows]), targets[rows]).backward()
                    optimizer.step()
        made[name] = net.eval()
    return made


def shares(net, digits, **options):
    """What is missing of each row's change, as a share of it."""
    x, target = digits[0][1200:1264], digits[1][1200:1264]
    found = maas.Model(net).explain(x, target=target.tolist(), **options)
    with torch.no_grad():
        change = (net(x) - net(torch.zeros_like(x))).gather(1, target[:, None])[:, 0]
    missing = (found.attributions.sum(1) - change).abs()
    assert found.gap == pytest.approx(float(missing.max()), abs=1e-5)
    return missing / change.abs()


def test_the_page_has_its_table():
    """What holds is told for networks with kinks and for those without."""
    assert {layer for layer, *_ in ROWS} == LAYERS.keys()


@pytest.mark.parametrize(("layer", "rule", "few", "many"), ROWS)
def test_integrated_gradients_are_as_complete_as_told(reading, digits, layer, rule, few, many):
    """The largest gap is the page's: below a thousandth at 64 steps only where nothing jumps."""
    for steps, told in ((64, float(few)), (256, float(many))):
        found = float(shares(reading[layer], digits, rule=rule, steps=steps).max())
        assert found < max(2 * told, 5e-6)
        assert found > told / 3 or told < 1e-4
        assert found < 1e-3 or layer == "ReLU"


def test_deep_lift_is_complete_for_what_has_kinks(reading, digits):
    """DeepLift adds up to rounding for the ReLU network, where a path of points does not."""
    assert float(shares(reading["ReLU"], digits, method="deep_lift").max()) < 1e-5
