"""What one does in a notebook: serve in the background, ask later, ask much, ask otherwise.

Each `# %%` begins a cell; editors and Jupyter run them one by one.
"""

# %% A network, fitted to handwritten digits in a moment.
import concurrent.futures

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

import maas

data = load_digits()
pictures = torch.tensor(data.data, dtype=torch.float32)
fitted = LogisticRegression(C=0.01, max_iter=1000).fit(data.data[:1000], data.target[:1000])
net = nn.Linear(64, 10)
net.load_state_dict({"weight": torch.tensor(fitted.coef_), "bias": torch.tensor(fitted.intercept_)})

# %% Served in the background, so that the notebook goes on.
server = maas.serve({"digits": net.eval()}, port=0, block=False)
model = maas.connect(f"{server.url}/digits")
print(model, "has", model.info.details["parameters"], "parameters")

# %% Later: a job is a `concurrent.futures.Future`, and tells how its answer came to be.
jobs = [model.submit(picture) for picture in pictures[1000:1008]]
concurrent.futures.wait(jobs, timeout=10)
print("read", [int(job.result().argmax()) for job in jobs], "should be", data.target[1000:1008])
print(jobs[0].info)

# %% Many: in order, a bounded number on their way, sixteen pictures to a call.
read = torch.stack(list(model.map(pictures[1000:], batch_size=16))).argmax(1)
right = (read == torch.tensor(data.target[1000:])).float().mean()
print(f"{right:.1%} of {len(read)} unseen digits read right")

# %% Otherwise: options make another handle, and never mix with the model's own arguments.
patient = model.with_options(timeout=5.0, retries=2)
assert torch.equal(patient(pictures), model(pictures))

# %% A timeout is a TimeoutError, wherever the model runs.
try:
    model.with_options(timeout=1e-6)(pictures)
except TimeoutError as error:
    print(type(error).__name__, "-", error)

# %% The last cell: what was begun is finished, then the server is gone.
model.close()
server.close()
