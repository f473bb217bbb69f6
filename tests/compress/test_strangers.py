"""Steps of somebody else's, in one file and without touching the library."""

import os
import subprocess
import sys

PLUGIN = '''
"""Weights in steps of a fraction, and a model without biases."""
import attrs
import torch
from maas.compress import around, copied

@attrs.frozen
class Rounded:
    """Weights in steps of one `parts`-th."""
    parts: int = attrs.field(default=64, validator=attrs.validators.ge(1))

    def __call__(self, model, trial):
        module = copied(model)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_((parameter * self.parts).round() / self.parts)
        trial.note(f"rounded, and judged on {len(trial.check)} rows")
        return around(model, module)

def unbiased(model, trial):
    """No biases."""
    module = copied(model)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    return around(model, module)
'''

PROGRAM = """
import sys, torch, maas
from maas.compress import Quantize

torch.manual_seed(0)
torch.set_num_threads(1)
net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()
x = torch.randn(40, 8)
steps = maas.compress.Rounded(32), maas.compress.unbiased, Quantize("int8")
server = maas.Server({"net": net}, allow={"call", "describe", "compress"}, jobs=sys.argv[1])
here, there = (
    model.compress(*steps, check=x) for model in (maas.Model(net), maas.connect(server))
)
assert torch.equal(here(x), there(x))
names = [row.name for row in there.report.rows]
assert names == ["original", "Rounded(parts=32)", "unbiased", "Quantize('int8')"]
assert there.report.notes == here.report.notes == ["rounded, and judged on 40 rows"]
server.close()
try:
    maas.compress.unbiassed
except AttributeError as error:
    assert "did you mean 'unbiased'" in str(error), error
print("done")
"""


def test_steps_are_one_file(tmp_path):
    """An entry point that names a step adds it, here and at a server that has it."""
    (tmp_path / "strange_steps.py").write_text(PLUGIN)
    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[maas.compressions]\nRounded = strange_steps:Rounded\nunbiased = strange_steps:unbiased\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path / "jobs")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert run.stdout == "done\n", run.stderr
