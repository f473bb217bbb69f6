"""A method of somebody else's, in one file and without touching the library."""

import os
import subprocess
import sys
import textwrap

PLUGIN = '''
"""Occlusion from one side: what the output loses when all from a number on is gone."""
import torch
from maas.explain import Algorithm, Option

def _attribute(model, problem, layer):
    (x,), (baseline,) = problem.inputs, problem.baselines
    found = torch.zeros_like(x)
    last = model(x)[:, problem.target]
    for place in reversed(range(x.shape[1])):
        x = x.clone()
        x[:, place] = baseline[:, place]
        now = model(x)[:, problem.target]
        found[:, place], last = problem.options["scale"] * (last - now), now
    return found

from_the_end = Algorithm(
    attribute=_attribute,
    rows=lambda problem: problem.rows * (1 + problem.features),
    needs="values",
    sums="change",
    options={"scale": Option(1.0, 0, 10)},
    assumes="What comes first matters most.",
)
'''

PROGRAM = """
import torch, maas
torch.manual_seed(0)
net = torch.nn.Linear(5, 3).eval()
x = torch.randn(2, 5)
wanted = net.weight[1].detach() * x
server = maas.Server({"net": net}, allow={"call", "describe", "explain"})
for model in (maas.Model(net), maas.connect(server)):
    for through in ("module", "calls"):
        found = model.explain(x, target=1, method="from_the_end", through=through)
        assert torch.allclose(found.attributions, wanted, atol=1e-5)
        assert found.gap < 1e-5 and found.rows == 2 * 6 + 4
        assert found.assumption == "What comes first matters most."
try:
    model.explain(x, target=1, method="from_the_end", scale=11.0)
except ValueError as error:
    assert "0 to 10" in str(error)
try:
    model.explain(x, target=1, method="from_end")
except ValueError as error:
    assert "did you mean 'from_the_end'" in str(error)
assert "from_the_end" in maas.explain.table()
print("done")
"""


def test_an_algorithm_is_one_file(tmp_path):
    """An entry point that names an `Algorithm` adds it, here and at a server that has it."""
    (tmp_path / "from_the_end.py").write_text(PLUGIN)
    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[maas.explanations]\nfrom_the_end = from_the_end:from_the_end\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert run.stdout == "done\n", run.stderr
