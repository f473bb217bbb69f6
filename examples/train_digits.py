"""Train on scikit-learn's bundled digits and diabetes data, beside its own baselines.

A scaler learns the training rows and stands before the model, so callers send raw rows. A search
chooses the options on held-out rows, early stopping when to end, and the test rows are looked at
once. `fit` of a model elsewhere is the same line, followed there as a job.
"""

from typing import Any

import numpy as np
import sklearn.datasets
import torch
from sklearn import linear_model, metrics, model_selection, neighbors, svm
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


def parts(name: str) -> Any:
    """Training and test rows: `x_train, x_test, y_train, y_test`."""
    x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    return model_selection.train_test_split(x.astype(np.float32), y, test_size=0.25, random_state=0)


def network(width: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, outputs)
    ).eval()


def trained(rows: Any, outputs: int, **options: Any) -> maas.Model[..., Any]:
    """A model that was searched for and fitted, behind its scaler."""
    x, _, y, _ = rows
    model = maas.data.prepared(network(x.shape[1], outputs), maas.data.StandardScaler().fit(x))
    search = model.search((x, y), SPACE, trials=6, epochs=8, **options)
    print(search.table(), "\n")
    chosen = {**search.options, "epochs": 60, "patience": 8}
    history = model.fit((x, y), schedule="cosine", **chosen)
    print(history.picture(), f"\nbest epoch {history.best}: {history.last}\n")
    return model


def digits() -> None:
    rows = x, x_test, y, y_test = parts("digits")
    model = trained(rows, 10, metrics=["accuracy"], watch="accuracy")
    print("digits: share of 450 test rows that are right")
    ours = float((model(x_test).argmax(1) == y_test).mean())
    print(f"  maas                 {ours:.3f}")
    for baseline in (linear_model.LogisticRegression(max_iter=5000), svm.SVC()):
        print(f"  {type(baseline).__name__:20} {baseline.fit(x, y).score(x_test, y_test):.3f}")
    assert ours > 0.96


def diabetes() -> None:
    x, x_test, y, y_test = parts("diabetes")
    mean, scale = y.mean(), y.std()
    scaled = [x, x_test, ((y - mean) / scale).astype(np.float32)[:, None], y_test]
    model = trained(scaled, 1, metrics=["r2"])
    print("\ndiabetes: share of the variance of 111 test rows that is explained (R2)")
    ours = float(metrics.r2_score(y_test, model(x_test)[:, 0] * scale + mean))
    print(f"  maas                 {ours:.3f}")
    for baseline in (linear_model.RidgeCV(), neighbors.KNeighborsRegressor(10)):
        print(f"  {type(baseline).__name__:20} {baseline.fit(x, y).score(x_test, y_test):.3f}")
    assert ours > 0.3


if __name__ == "__main__":
    digits()
    diabetes()
