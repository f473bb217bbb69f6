"""Mutated messages in a process of its own, so that a crash is a finding and not the end of the
tests.

200,000 frames in every run; ten million with `pytest -m long`. By hand, with a seed of one's own:
`python tests/attacks/mutations.py --frames 10000000 --seed 7`.
"""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).with_name("mutations.py")


def attack(frames, seed, timeout):
    command = [sys.executable, str(FUZZER), "--frames", str(frames), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-4_000:]
    assert f"{frames} frames of seed {seed}" in done.stdout


def test_mutations():
    """200,000 mutated messages give a value or a CodecError, in bounded time and memory."""
    attack(200_000, 1, 280)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_many_mutations(seed):
    """Ten million mutated messages do."""
    attack(1_000_000, 100 + seed, 3_000)
