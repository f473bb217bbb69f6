"""Bytes, in whichever of the three forms they come."""

__all__ = ["Body", "Buffer"]

Buffer = bytes | bytearray | memoryview

Body = bytearray | memoryview
"""A request's body: writable, and its reader's alone; of a large one the size is fixed."""
