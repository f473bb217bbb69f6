"""Other servers, each in an environment of its own, beside ours: `python -m benchmarks.peers`."""
