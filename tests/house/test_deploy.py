"""What stands in deploy/ fits the code: metrics, settings, paths."""

import configparser
import itertools
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


@pytest.mark.parametrize("name", ["grafana.json", "grafana-cluster.json"])
def test_every_metric_of_the_dashboard_is_published(name):
    dashboard = json.loads((DEPLOY / name).read_text())
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


def settings_of(environment):
    """Return what the settings among a container's variables make, all of them known."""
    own = {name: str(value) for name, value in environment.items() if name.startswith("MEZZOTINT_")}
    return load(environment=own).settings


def test_compose_file_is_whole_and_its_settings_are_known():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {
        "postgres", "store", "bucket", "head", "node-1", "node-2", "front-1", "front-2",
    }  # fmt: skip
    for service in services.values():
        assert set(service["secrets"]) <= set(compose["secrets"])
        assert set(service["networks"]) <= set(compose["networks"])
        named = {volume.partition(":")[0] for volume in service.get("volumes", ())}
        assert named <= set(compose["volumes"])
        assert set(service.get("depends_on") or {}) <= set(services)
        for published in service.get("ports", ()):
            assert published.startswith("127.0.0.1:")
    for name in ("head", "node-1", "node-2", "front-1", "front-2"):
        environment = services[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
        assert "inside" in services[name]["networks"]
    assert compose["networks"]["inside"]["internal"] is True  # Ray listens on every address
    assert settings_of(services["front-1"]["environment"]).worker.ray == "head:6379"
    assert "mezzotint serve" in services["front-2"]["command"][0]
    jobs = settings_of(services["front-2"]["environment"]).jobs
    assert jobs.results_url == "s3://pictures"  # a picture of one front is read by the other
    homes = {
        volume.partition(":")[0]
        for name in ("front-1", "front-2")
        for volume in services[name]["volumes"]
        if volume.endswith(":/var/lib/mezzotint")
    }
    assert len(homes) == 2  # a second server on one home exits


def test_kuberay_manifest_asks_for_a_token_and_its_settings_are_known():
    cluster, service = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    assert (cluster["kind"], service["kind"]) == ("RayCluster", "Service")
    spec = cluster["spec"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    pods = [spec["headGroupSpec"]["template"], *(g["template"] for g in groups.values())]
    for pod in pods:
        assert pod["spec"]["automountServiceAccountToken"] is False
        (container,) = pod["spec"]["containers"]
        variables = {v["name"]: v.get("value", "x") for v in container["env"]}
        assert variables["RAY_AUTH_MODE"] == "token"
        assert "RAY_AUTH_TOKEN" in variables
        assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
        settings_of({v["name"]: v["value"] for v in container["env"] if "value" in v})
        assert {"readinessProbe", "livenessProbe", "resources"} <= set(container)
    front = groups["fronts"]["template"]
    assert front["metadata"]["labels"] == service["spec"]["selector"]
    ports = {p["name"] for p in front["spec"]["containers"][0]["ports"]}
    assert {p["targetPort"] for p in service["spec"]["ports"]} <= ports
    assert groups["fronts"]["rayStartParams"]["num-cpus"] == "0"


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


FORMULA = DEPLOY / "homebrew" / "mezzotint.rb"


def test_homebrew_formula_says_what_the_package_says():
    text = FORMULA.read_text()
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    assert re.search(r'^  license "(.+)"$', text, re.MULTILINE)[1] == project["license"]
    python = re.search(r'depends_on "python@(3\.\d+)"', text)[1]
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]
    assert f'"python@{python}"].opt_bin/"python{python}"' in text
    assert "constraints.txt" in text  # the tested versions, and no list of them beside it
    assert all(f'"{verb}"' in text for verb in ("serve", "generate", "completion"))


def test_homebrew_formula_keeps_to_homebrews_style():
    """What ``brew style`` and ``brew audit`` say of a formula's words and their order."""
    text = FORMULA.read_text()
    desc = re.search(r'^  desc "(.+)"$', text, re.MULTILINE)[1]
    assert len(f"mezzotint: {desc}") <= 80
    assert desc[0].isupper()
    assert not desc.endswith(".")
    assert not re.match(r"(?i)(an?|the|mezzotint)\b", desc)
    order = r"^  (desc|license|head|depends_on|on_macos|def install|service|test)\b"
    parts = ("desc", "license", "head", "depends_on", "on_macos", "def install", "service", "test")
    assert tuple(re.findall(order, text, re.MULTILINE)) == parts
    assert max(map(len, text.splitlines())) <= 118


@pytest.mark.skipif(shutil.which("ruby") is None, reason="ruby is not here")
def test_homebrew_formula_is_ruby():
    done = subprocess.run(["ruby", "-wc", FORMULA], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("Syntax OK", "")


def instructions(text):
    """Return the instructions of a Dockerfile, each with its lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines()]


def test_dockerfile_keeps_to_the_rules_that_hadolint_checks():
    found = instructions((DEPLOY / "Dockerfile").read_text())
    kinds = [kind for kind, _ in found]
    assert not {"ADD", "MAINTAINER"} & set(kinds)  # DL3020, DL4000
    assert kinds.count("CMD") == kinds.count("HEALTHCHECK") == kinds.count("STOPSIGNAL") == 1
    users = [value for kind, value in found if kind == "USER"]
    assert users[-1] not in ("root", "0")  # DL3002
    for kind, value in found:
        if kind == "WORKDIR":
            assert value.startswith("/")  # DL3000
        if kind == "CMD":
            assert isinstance(json.loads(value), list)  # DL3025
        if kind == "HEALTHCHECK":
            assert isinstance(json.loads(value.partition(" CMD ")[2]), list)
        if kind == "RUN":
            assert not re.search(
                r"\b(sudo|ssh|vim|shutdown|service|ps|free|top|kill|mount)\b", value
            )
            assert not re.search(r"(^|[;&] *)cd ", value)  # DL3003
            assert "|" not in value  # DL4006: a pipe hides what fails before it
            for install in re.findall(r"pip install [^&|]+", value):
                assert "--no-cache-dir" in install  # DL3042
                assert "-c constraints.txt" in install  # DL3013
            assert "apt-get" not in value  # DL3008, DL3009, DL3015: nothing of it is needed
            done = subprocess.run(
                ["sh", "-n"], input=value, capture_output=True, text=True, check=False
            )
            assert done.stderr == ""
    stages = [kind for kind in kinds if kind in ("FROM", "RUN")]
    assert ("RUN", "RUN") not in list(itertools.pairwise(stages))  # DL3059
