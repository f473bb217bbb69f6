"""Triton's server and its Python backend, out of pytriton's wheel: `triton_server.py PORT`.

There is no other build of it to install by pip; this one has no backend that runs without Python.
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import pytriton

CONFIGURATION = """
name: "{name}"
backend: "python"
max_batch_size: 64
input [{{ name: "input" data_type: TYPE_FP32 dims: [1000] }}]
output [{{ name: "output" data_type: TYPE_FP32 dims: [1] }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
{more}
"""

if __name__ == "__main__":
    home = Path(pytriton.__file__).parent / "tritonserver"
    models = Path(sys.prefix) / "models"
    for name, more in {"alone": "", "together": "dynamic_batching {}"}.items():
        folder = models / name
        (folder / "1").mkdir(parents=True, exist_ok=True)
        (folder / "config.pbtxt").write_text(CONFIGURATION.format(name=name, more=more))
        shutil.copy(Path(__file__).with_name("triton_model.py"), folder / "1" / "model.py")
    libraries = [str(sysconfig.get_config_var("LIBDIR")), str(home / "external_libs")]
    os.environ["LD_LIBRARY_PATH"] = ":".join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")])
    os.environ["PYTHONPATH"] = ":".join(sys.path[1:])
    server = str(home / "bin" / "tritonserver")
    command = [server, f"--model-repository={models}", f"--backend-directory={home / 'backends'}"]
    command += ["--http-address=127.0.0.1", f"--http-port={sys.argv[1]}", "--http-thread-count=4"]
    os.execv(server, [*command, "--allow-grpc=false", "--allow-metrics=false"])
