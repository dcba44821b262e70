"""Deployments: what is asked of a cluster, and which replicas may be used."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

import mezzotint
from mezzotint.cli.serve import worker_of
from mezzotint.errors import InvalidRequest
from mezzotint.service.cluster.config import ClusterConfig
from mezzotint.service.cluster.deployments import fault_of, note_of, spec_of
from mezzotint.service.cluster.messages import (
    ClusterState,
    DeploymentSpec,
    DeploymentState,
    ReplicaGreeting,
    ReplicaState,
    encode,
    read_batch,
    unpack,
)
from mezzotint.service.cluster.replica import take_cores
from mezzotint.service.cluster.views import describe
from mezzotint.service.config import WorkerConfig
from mezzotint.service.workers.local_pool import create_workers
from mezzotint.service.workers.messages import CallMethod, Cancel
from mezzotint.settings import load


def greeting(**fields) -> ReplicaGreeting:
    models = [{"name": "plate", "version": "1.0", "digest": "a" * 64}]
    usual = {"version": "1", "host": "10.0.0.2", "environment": "x", "models": models}
    return ReplicaGreeting(**{**usual, **fields})


def test_a_node_with_another_version_or_other_files_is_not_used_and_says_why():
    first = greeting()
    assert fault_of(first, None, "1") == ""
    assert fault_of(greeting(host="10.0.0.3"), first, "1") == ""
    skew = fault_of(greeting(version="2", host="10.0.0.3"), first, "1")
    assert skew == (
        "the node 10.0.0.3 has Mezzotint 2, the cluster 1: install the same version on every node"
    )
    models = [{"name": "plate", "version": "1.0", "digest": "b" * 64}]
    other = fault_of(greeting(models=models), first, "1")
    assert other == (
        "the node 10.0.0.2 has another plate: sha256 bbbbbbbbbbbb, the deployment aaaaaaaaaaaa: "
        "put the same files on every node"
    )


def test_another_arithmetic_is_noted_and_gets_no_exact_requests():
    assert note_of(greeting(), None) == ""
    assert note_of(greeting(), greeting()) == ""
    assert "no exact requests" in note_of(greeting(environment="y"), greeting())


def test_settings_become_a_deployment():
    cluster = ClusterConfig(
        deployment="large", min_replicas=0, max_replicas=4, backlog_s=5.0, idle_s=60.0, cpus=8,
        gpus=1,
    )  # fmt: skip
    config = WorkerConfig(options={"models": {"max_bytes": 7}}, ray="auto", cluster=cluster)
    spec = spec_of(config, {"level": "info"})
    assert spec.version == mezzotint.__version__
    assert (spec.name, spec.least, spec.most, spec.cpus, spec.gpus) == ("large", 0, 4, 8, 1)
    assert (spec.scale.backlog_s, spec.scale.idle_s) == (5.0, 60.0)
    assert spec.options["models"] == {"max_bytes": 7, "placement": {"device": "cuda"}}
    assert unpack(encode(spec), DeploymentSpec) == spec


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"deployment": "Large one"}, "a-z, 0-9 and -"),
        ({"min_replicas": 3, "max_replicas": 2}, "at most max_replicas, 2, got 3"),
        ({"gpus": 2}, "gpus"),
    ],
)
def test_what_cannot_be_asked_is_refused(fields, said):
    with pytest.raises(InvalidRequest, match=said):
        ClusterConfig(**fields)


def test_a_cluster_is_named_by_its_head_and_places_replicas_itself():
    with pytest.raises(InvalidRequest, match="auto or HOST:PORT"):
        WorkerConfig(ray="somewhere")
    with pytest.raises(InvalidRequest, match="the cluster places replicas"):
        WorkerConfig(ray="auto", count=2)
    made = create_workers(WorkerConfig(ray="10.0.0.1:6379", options={"model_store": "x"}))
    assert made._config.factory == "mezzotint.service.cluster.service:create_service"
    assert made._config.options["worker"]["ray"] == "10.0.0.1:6379"
    assert made._config.options["service"] == {"model_store": "x"}


def test_messages_travel_many_at_a_time_and_nothing_else_is_read():
    sent = [CallMethod(call=1, method="models", arguments={}), Cancel(call=1)]
    assert list(read_batch(encode(sent), from_worker=False)) == sent
    with pytest.raises(ValueError, match="Invalid"):
        read_batch(encode([{"type": "Exec", "code": "1"}]), from_worker=False)


def test_replicas_of_one_machine_take_different_cores(tmp_path):
    assert take_cores(2, tmp_path, [4, 5, 6]) == [4, 5]
    # the first two are locked by this process: only one is left, so two have to share
    assert take_cores(1, tmp_path, [4, 5, 6]) == [6]
    assert take_cores(2, tmp_path, [4, 5, 6]) == [4, 5]


def test_a_state_is_shown_as_plain_data():
    spec = DeploymentSpec(name="default", version="1", factory="f", options={}, models=["plate"])
    replica = ReplicaState(name="r", deployment="default", status="ready", others_s=1.23456)
    state = ClusterState(
        number=1, version="1", deployments=[DeploymentState(spec=spec, wanted=2)],
        replicas=[replica], fronts=1,
    )  # fmt: skip
    told = describe(unpack(encode(state), ClusterState))
    assert told["deployments"][0]["wanted"] == 2
    assert told["replicas"][0]["backlog_s"] == 1.235
    assert told["fronts"] == 1


def spec_at(monkeypatch, user, text=""):
    """What a server asks of a cluster whose user's folder is ``user``."""
    (user / "mezzotint.toml").write_text(text)
    for name in ("XDG_DATA_HOME", "MEZZOTINT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(user))
    settings = load(file=user / "mezzotint.toml").settings
    runs = replace(settings.serve, runs=str(settings.home_path / "runs"))
    return spec_of(worker_of(replace(settings, serve=runs), ["plate"]))


def test_servers_of_users_with_other_home_folders_ask_for_one_deployment(tmp_path, monkeypatch):
    ann, bob = tmp_path / "ann", tmp_path / "bob"
    for user in (ann, bob):
        user.mkdir()
    first, second = (spec_at(monkeypatch, user) for user in (ann, bob))
    assert first == second
    assert first.options["runs"] == "~/.local/share/mezzotint/runs"
    chosen = spec_at(monkeypatch, bob, f"home = '{tmp_path}/common'")
    assert chosen.options["models"]["home"] == f"{tmp_path}/common"
    assert chosen.options["runs"] == f"{tmp_path}/common/runs"


KEPT = """
import os, threading
from mezzotint.service.cluster.replica import keep_to
core = min(os.sched_getaffinity(0))
beside = threading.Thread(target=keep_to, args=([core],))
beside.start()
beside.join()
assert os.sched_getaffinity(0) == {core}
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no cores to keep to here")
def test_all_threads_of_a_replica_are_kept_to_its_cores():
    # what is asked in an actor is asked beside the thread whose cores OpenVINO counts
    subprocess.run([sys.executable, "-c", KEPT], check=True)
