"""What the tests of Keras stand on: one framework under it a process, chosen before its import.

`make test` runs them on torch, `make test-tensorflow` on TensorFlow.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
