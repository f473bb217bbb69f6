"""Carrying an HTTP request to where it is answered, and the reply back.

`base.py` is the seam; the other files are the ways: sockets, a caller's own httpx client,
and no wire at all (in-process). Import the one you want: each brings only its own weight.
"""

__all__: list[str] = []
