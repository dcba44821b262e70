"""What stands in deploy/ fits the code: metrics, settings, paths."""

import configparser
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from mezzotint.observe import metrics
from mezzotint.serve.config import Limits
from mezzotint.serve.metrics import CATALOGUE
from mezzotint.settings import load

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_every_metric_of_the_dashboard_is_published():
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    used = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\b(?:mezzotint|ts)_\w+", target["expr"])
    }
    known = {*metrics.CATALOGUE, *CATALOGUE}
    published = known | {f"{n}{s}" for n in known for s in ("_bucket", "_sum", "_count")}
    assert used <= published
    assert len({p["id"] for p in dashboard["panels"]}) == len(dashboard["panels"])


def test_example_configuration_is_read_without_complaint():
    settings = load(file=DEPLOY / "config.toml", environment={}).settings
    assert settings.serve.limits.concurrency == 8
    assert settings.log.format == "json"


def test_manifest_probes_paths_that_exist():
    from mezzotint.serve.app import endpoints

    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    assert [d["kind"] for d in documents] == [
        "Secret", "PersistentVolumeClaim", "Deployment", "Service",
    ]  # fmt: skip
    spec = documents[2]["spec"]["template"]["spec"]
    container = spec["containers"][0]
    paths = {e.path for e in endpoints("generation")}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert ports == {"generation": 8080, "management": 8081, "metrics": 8082}
    assert spec["automountServiceAccountToken"] is False
    volumes = {v["name"] for v in spec["volumes"]}
    assert {m["name"] for m in container["volumeMounts"]} == volumes


def test_keys_lines_of_the_manifest_are_of_the_right_shape():
    from mezzotint.serve.auth import read_keys

    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    callers = read_keys(documents[0]["stringData"]["keys"], Limits()).values()
    scopes = {caller.name: set(caller.scopes) for caller in callers}
    assert scopes == {"nobody": {"generate"}, "prometheus": {"metrics"}}


def test_dockerfile_copies_what_exists_and_runs_as_nobody_special():
    text = (DEPLOY / "Dockerfile").read_text()
    root = DEPLOY.parent
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (root / source).exists(), source
    assert re.search(r"^USER 10001$", text, re.MULTILINE)
    assert re.search(r"^ARG BASE$", text, re.MULTILINE)  # by digest: there is no default
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${BASE}", "${BASE}"]
    variables = dict(re.findall(r"(MEZZOTINT_\w+)=(\S+)", text))
    load(environment=variables)


def test_whoever_gets_the_package_or_the_image_gets_licence_and_notice():
    root = DEPLOY.parent
    named = tomllib.loads((root / "pyproject.toml").read_text())["project"]["license-files"]
    assert set(named) == {"LICENSE", "NOTICE"}
    assert all((root / name).is_file() for name in named)
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.M)
    assert set(named) <= set(" ".join(copied).split())


def test_unit_file_is_well_formed():
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read_string((DEPLOY / "mezzotint.service").read_text())
    assert parser["Service"]["KillSignal"] == "SIGTERM"
    assert " serve " in parser["Service"]["ExecStart"]
    assert int(parser["Service"]["LimitNOFILE"]) >= 3 * Limits().connections + 512
    assert parser["Service"]["MemoryMax"].endswith("%")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_unit_file_passes_systemds_own_check():
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no",
         str(DEPLOY / "mezzotint.service")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    complaints = [
        line for line in done.stderr.splitlines()
        if "mezzotint.service" in line and "is not executable" not in line
    ]  # fmt: skip
    assert complaints == []
