"""How a target is run: one file per kind of target, chosen by `base.backend_for`."""
