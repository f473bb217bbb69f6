"""What stands in front of a model for callers from outside this process."""
