"""Bytes, in whichever of the three forms they come."""

__all__ = ["Buffer"]

Buffer = bytes | bytearray | memoryview
