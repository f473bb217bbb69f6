import gc
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import maas
from maas.testing import ExecutorConformance
from maas.testing.places import PLACES

PATIENCE = 20.0


class TestLocal(ExecutorConformance):
    @pytest.fixture
    def executor_for(self):
        return lambda target: maas.Model(target)._executor
