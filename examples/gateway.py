"""A gateway is a server that stands in front of models which run elsewhere.

There is nothing to configure: `Server` takes any model, and one that `connect` gives is a model.
Callers know the gateway's key and address alone; the machines behind it can be moved.
"""

import torch
from sklearn.datasets import load_diabetes
from torch import nn

import maas

KEY = "a-key-that-callers-have"  # a real one comes from a file: auth=Path("keys")

data = load_diabetes()
patients = torch.tensor(data.data, dtype=torch.float32)


def fitted() -> nn.Linear:
    """Least squares: how the disease goes on, from ten measurements."""
    ones = torch.ones(len(patients), 1)
    target = torch.tensor(data.target, dtype=torch.float32)[:, None]
    weights = torch.linalg.lstsq(torch.cat([patients, ones], 1), target).solution
    net = nn.Linear(10, 1)
    net.load_state_dict({"weight": weights[:-1].T, "bias": weights[-1]})
    return net.eval()


def describe(patient: list[float]) -> str:
    """A second model, on a second machine."""
    age, *_ = patient
    return "older than most" if age > 0.04 else "younger than most" if age < -0.04 else "neither"


def main() -> None:
    net = fitted()
    with (
        maas.serve({"progression": net}, port=0, block=False) as first_machine,
        maas.serve({"describe": describe}, port=0, block=False) as second_machine,
    ):
        behind = {
            "progression": maas.connect(f"{first_machine.url}/progression"),
            "age": maas.connect(f"{second_machine.url}/describe"),
        }
        with maas.serve(behind, auth=KEY, port=0, block=False) as gateway:
            progression = maas.connect(f"{gateway.url}/progression", auth=KEY)
            age = maas.connect(f"{gateway.url}/age", auth=KEY)

            assert torch.equal(progression(patients), net(patients))
            for patient in patients[:4]:
                print(f"{float(progression(patient)):6.1f}  {age(patient.tolist())}")

            # An error crosses both machines, and is what it was at the first.
            try:
                progression(torch.zeros(3))
            except RuntimeError as error:
                print(f"{type(error).__name__}: {error}")

            # Without the key there is no way in.
            try:
                maas.connect(f"{gateway.url}/age")([0.0])
            except maas.Unauthenticated as error:
                print(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
