"""Training as a job: in a process of its own, kept in a folder, survived by its checkpoints."""
