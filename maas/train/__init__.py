"""Training through a Model, wherever it runs: the weights here (mirror), or there (resident)."""
