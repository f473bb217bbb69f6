"""A pretrained network that somebody else made, behind HTTP.

Magika (Apache-2.0) tells what kind of file some bytes are. Its network, 3 MB of ONNX, comes
inside the package `magika`, so nothing is fetched. To offer any framework's model, write a
class that loads it and mark the methods that callers may call.
"""

import io
import wave
from pathlib import Path

import numpy as np
from magika import Magika

import maas


class Kinds:
    """Knows about 200 kinds of files."""

    def __init__(self) -> None:
        self._network = Magika()

    @maas.method(pure=True)
    def kind(self, content: bytes) -> tuple[str, float]:
        """The kind, and how sure the network is of it."""
        found = self._network.identify_bytes(content)
        return str(found.output.label), found.score


def samples() -> dict[str, bytes]:
    """Files of several kinds; some do not begin with anything that would tell."""
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(np.sin(np.arange(800) / 9).astype("<f2").tobytes())
    array = io.BytesIO()
    np.save(array, np.arange(100))
    return {
        "this program": Path(__file__).read_bytes(),
        "a sound": sound.getvalue(),
        "an array": array.getvalue(),
        "a query": b"SELECT name, count(*) FROM guests\nGROUP BY name ORDER BY 2 DESC;\n" * 2,
        "a page": b"<html><body><h1>Guests</h1><p>Nobody is here yet.</p></body></html>",
        "settings": b"[server]\nport = 8000\nhost = 'localhost'\n\n[limits]\nbody = 268435456\n",
    }


def main() -> None:
    files = samples()
    kinds = Kinds()
    with (
        maas.serve({"kinds": kinds}, port=0, block=False) as server,
        maas.connect(f"{server.url}/kinds") as there,
    ):
        for name, (kind, score) in zip(files, there.kind.map(files.values()), strict=True):
            assert (kind, score) == kinds.kind(files[name])
            print(f"{name:14} {kind:10} {score:4.0%}")


if __name__ == "__main__":
    main()
