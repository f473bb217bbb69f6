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


def write_models(folder):
    """The model twice; the backend runs Python as it was installed, so it is told what is here."""
    finding = f"import sys\n\nsys.path[:0] = {sys.path[1:]}"
    program = Path(__file__).with_name("triton_model.py").read_text()
    for name, more in {"alone": "", "together": "dynamic_batching {}"}.items():
        version = folder / name / "1"
        version.mkdir(parents=True, exist_ok=True)
        (folder / name / "config.pbtxt").write_text(CONFIGURATION.format(name=name, more=more))
        (version / "model.py").write_text(f"{finding}\n{program}")


def write_backend(folder, home):
    """The backend with the stub of this Python beside it, where the server looks for one."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(home / "backends", folder, dirs_exist_ok=True)
    shutil.copy(
        home / "python_backend_stubs" / python / "triton_python_backend_stub", folder / "python"
    )


if __name__ == "__main__":
    home = Path(pytriton.__file__).parent / "tritonserver"
    models, backends = Path(sys.prefix) / "models", Path(sys.prefix) / "backends"
    write_models(models)
    write_backend(backends, home)
    # The stub wants this Python's own library, and those of the wheel.
    libraries = [sysconfig.get_config_var("LIBDIR"), str(home.parents[1] / "nvidia_pytriton.libs")]
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
    server = str(home / "bin" / "tritonserver")
    command = [server, f"--model-repository={models}", f"--backend-directory={backends}"]
    command += ["--http-address=127.0.0.1", f"--http-port={sys.argv[1]}"]
    os.execv(
        server,
        [*command, "--allow-grpc=false", "--allow-metrics=false", "--disable-auto-complete-config"],
    )
