"""The files in examples/deploy: what they say is what a server does."""

import hashlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import tomllib
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path

import pytest
import torch
import trustme
import yaml

import maas
from maas.server import runner
from maas.server.patience import Patience

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "examples" / "deploy"
PATIENT = 60.0


def image():
    """The instructions of the container file, each with what it says."""
    text = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def command():
    """What the container runs, as a list of words."""
    (told,) = [rest for word, rest in image() if word == "ENTRYPOINT"]
    return json.loads(told)


def option(name):
    words = command()
    return words[words.index(name) + 1]


def manifests():
    found = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {each["kind"]: each for each in found}


def pod():
    return manifests()["Deployment"]["spec"]["template"]["spec"]


def container():
    (only,) = pod()["containers"]
    return only


def probe_paths():
    probes = [value for name, value in container().items() if name.endswith("Probe")]
    assert {probe["httpGet"]["scheme"] for probe in probes} == {"HTTPS"}
    return {probe["httpGet"]["path"] for probe in probes}


@pytest.fixture
def stage(tmp_path):
    """What the container has: a folder of models, a certificate, and a file of keys."""
    maas.save(maas.Model(torch.nn.Linear(3, 1)), tmp_path / "models" / "net")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "tls.key")
    for part in certificate.cert_chain_pems:
        part.write_to_path(tmp_path / "tls.crt", append=True)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    digest = hashlib.sha256(b"the-key-of-alice-0123456789").hexdigest()
    (tmp_path / "keys.toml").write_text(
        f'[alice]\nsha256 = "{digest}"\nallow = ["call", "describe"]\n'
    )
    return tmp_path


def started(stage):
    """The container's own command, with the folders and the address of this test."""
    words = command()
    assert words[:2] == ["maas", "serve"]
    changed = {"--host": "127.0.0.1", "--port": "0"}
    for name in ("--key-file", "--tls-cert", "--tls-key"):
        changed[name] = str(stage / Path(option(name)).name)
    for name, value in changed.items():
        words[words.index(name) + 1] = value
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=stage,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def status(url, tls):
    try:
        with urllib.request.urlopen(url, context=tls, timeout=PATIENT) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_the_containers_command_serves_and_drains(stage):
    """The command answers every probe, lets nobody in without a key, and at SIGTERM says "not
    ready" while it still takes calls; then it ends with 0.
    """
    tls = ssl.create_default_context(cafile=stage / "ca.pem")
    with started(stage) as process:
        try:
            log = []
            reader = threading.Thread(target=lambda: log.extend(process.stderr))
            reader.start()
            url = process.stdout.readline().split()[-1]
            assert url.startswith("https://127.0.0.1:")
            assert {status(url + path, tls) for path in probe_paths()} == {200}
            assert status(f"{url}/net", tls) == 401
            key = "the-key-of-alice-0123456789"
            with maas.connect(f"{url}/net", auth=key, verify=tls) as net:
                x = torch.ones(2, 3)
                before = net(x)
                process.send_signal(signal.SIGTERM)
                while status(f"{url}/readyz", tls) != 503:
                    pass
                assert status(f"{url}/healthz", tls) == 200
                assert torch.equal(net(x), before)
            assert process.wait(PATIENT) == 0
            reader.join(PATIENT)
        finally:
            process.kill()
    assert {"readyz", "net"} & {word for line in log for word in re.findall(r"\w+", line)}
    assert all(isinstance(json.loads(line), dict) for line in log)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))


def test_the_pod_is_given_the_time_that_a_drain_takes():
    """Kubernetes waits longer than the delay, the drain and the cutting off take together, and
    looks at readiness more than once within the delay.
    """
    delay = float(option("--drain-delay"))
    longest = delay + Patience().drain + 2 * runner.CLEANUP
    assert pod()["terminationGracePeriodSeconds"] > longest + 5
    readiness = container()["readinessProbe"]
    assert 2 * readiness["periodSeconds"] * readiness["failureThreshold"] < delay


def test_the_manifest_and_the_image_agree():
    """Port, mounted files and user of the manifest are those that the image uses."""
    (port,) = container()["ports"]
    assert str(port["containerPort"]) == option("--port") == dict(image())["EXPOSE"]
    mounts = {mount["mountPath"] for mount in container()["volumeMounts"]}
    assert {
        str(Path(option(name)).parent) for name in ("--key-file", "--tls-cert", "--tls-key")
    } <= mounts
    assert {mount["name"] for mount in container()["volumeMounts"]} == {
        volume["name"] for volume in pod()["volumes"]
    }
    assert str(pod()["securityContext"]["runAsUser"]) == dict(image())["USER"]
    (exposed,) = manifests()["Service"]["spec"]["ports"]
    assert exposed["targetPort"] == port["name"]


def test_selectors_find_the_pods():
    """Deployment, service and budget choose by the labels that the pods have."""
    found = manifests()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels


def test_the_image_installs_what_there_is():
    """The distribution and the extras that the image installs are ours."""
    (run,) = [rest for word, rest in image() if word == "RUN" and "pip" in rest]
    name, extras = re.search(r'"([\w-]+)\[([\w,]+)\]"', run).groups()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert name == project["name"] == metadata.metadata("maas-sdk")["Name"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
