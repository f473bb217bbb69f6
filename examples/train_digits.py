"""Train on scikit-learn's bundled digits and diabetes data, beside its own baselines.

A scaler stands before the model, so callers send raw rows. A search chooses the options on
held-out rows, early stopping when to end; the test rows are looked at once. `fit` is the same line
at a server, a job in a process of its own: same bar, same losses and answers to the last bit.
"""

import tempfile
from typing import Any

import numpy as np
import torch
from sklearn import datasets, linear_model, metrics, model_selection, neighbors, svm
from torch import nn

import maas

torch.manual_seed(0)
torch.set_num_threads(1)  # additions in the same order on every machine
SPACE = {
    "lr": (3e-4, 3e-2, "log"),
    "optimizer": ["adamw", {"name": "sgd", "momentum": 0.9, "nesterov": True}],
    "batch_size": [16, 64],
    "dropout": (0.0, 0.5),
    "weight_decay": (1e-5, 1e-1, "log"),
}


def network(width: int, outputs: int) -> nn.Module:
    layers = nn.Linear(width, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, outputs)
    return nn.Sequential(*layers).eval()


def trained(x: Any, y: Any, outputs: int, **options: Any) -> maas.Model[..., Any]:
    """A model behind its scaler: searched for here, and fitted here and at a server."""
    model = maas.data.prepared(network(x.shape[1], outputs), maas.data.StandardScaler().fit(x))
    search = model.search((x, y), SPACE, trials=4, epochs=8, **options)
    print(search.table(), "\n")
    chosen = {**search.options, "epochs": 60, "patience": 5, "schedule": "cosine"}
    grants = {"call", "describe", "train"}
    with (
        tempfile.TemporaryDirectory() as jobs,
        maas.serve(model, port=0, block=False, allow=grants, jobs=jobs) as server,
        maas.connect(server.url) as remote,
    ):
        there = remote.fit((x, y), **chosen)
        here = model.fit((x, y), **chosen)
        assert there.losses == here.losses
        assert np.array_equal(remote(x), model(x))
    print(here.picture(), f"\nbest epoch {here.best}: {here.last}\n")
    return model


def main() -> None:
    for name, measure, outputs, options, baselines in (
        ("digits", metrics.accuracy_score, 10, {"metrics": ["accuracy"], "watch": "accuracy"},
         (linear_model.LogisticRegression(max_iter=5000), svm.SVC())),
        ("diabetes", metrics.r2_score, 1, {"metrics": ["r2"]},
         (linear_model.RidgeCV(), neighbors.KNeighborsRegressor(10))),
    ):  # fmt: skip
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        x, x_test, y, y_test = model_selection.train_test_split(
            x.astype(np.float32), y, test_size=0.25, random_state=0
        )
        mean, scale = (0, 1) if outputs > 1 else (y.mean(), y.std())
        targets = y if outputs > 1 else ((y - mean) / scale).astype(np.float32)[:, None]
        outputs_there = trained(x, targets, outputs, **options)(x_test)
        told = outputs_there.argmax(1) if outputs > 1 else outputs_there[:, 0] * scale + mean
        scores = {"maas": measure(y_test, told)}
        scores |= {
            type(b).__name__: measure(y_test, b.fit(x, y).predict(x_test)) for b in baselines
        }
        print(f"{name}: {measure.__name__} of {len(x_test)} test rows")
        print(*(f"  {who:20} {score:.3f}" for who, score in scores.items()), "", sep="\n")
        assert scores["maas"] >= list(scores.values())[1] - 0.02


if __name__ == "__main__":
    main()
