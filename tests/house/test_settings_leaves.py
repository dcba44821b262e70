"""Every leaf of the settings tree arrives where it acts, from every road, and acts there.

Two proofs a leaf. First, a value that is not the default is given by TOML, environment,
command line and Python, and is found in what the service or the server is made of.
Second, what it does there is observed: by a probe below, or by the test that is named.
A leaf without both fails.
"""

import ast
import asyncio
import contextlib
import errno
import io
import json
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image
from tests.serving import open_door

from mezzotint import api, errors
from mezzotint.cli import main
from mezzotint.engine.config import EngineConfig
from mezzotint.images.config import ImageConfig
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.observe import log
from mezzotint.observe.config import LogConfig
from mezzotint.plain import read
from mezzotint.request import GenerationRequest
from mezzotint.serve.config import Limits, ServeConfig
from mezzotint.service.composition import ServiceConfig
from mezzotint.service.config import WorkerConfig
from mezzotint.settings import Settings, known_settings

TESTS = Path(__file__).resolve().parents[1]
IN_SERVICE = ("engine", "handlers", "images", "models")
"""Sections that act in a service; the others act where a server listens."""


# What each probe observes


def free_ports(count):
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in opened:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in opened]


def listeners_bind():
    from mezzotint.serve.run import _bind

    ports, hosts = free_ports(3), [f"127.0.0.{k}" for k in (2, 3, 4)]
    named = dict(zip(("port", "management_port", "metrics_port"), ports, strict=True))
    hosted = dict(zip(("host", "management_host", "metrics_host"), hosts, strict=True))
    bound = _bind(ServeConfig(**hosted, **named))
    found = [s.getsockname() for s in bound.values()]
    for one in bound.values():
        one.close()
    assert found == list(zip(hosts, ports, strict=True))


def uvicorn_is_told():
    from mezzotint.serve.run import _server

    limits = Limits(connections=3, head_s=1.25)
    told = _server(ServeConfig(certificate="c", private_key="k", limits=limits), None).config
    crowd = told.http.keywords["crowd"]
    assert (told.ssl_certfile, told.ssl_keyfile) == ("c", "k")
    assert (crowd.most, crowd.head_s) == (3, 1.25)


def a_path_is_registered_where_it_is_allowed():
    for allowed, status in ((False, 403), (True, 200)):
        with open_door(register_paths=allowed) as door:
            answer = door.management.post("/models", params={"url": "/models/new.mzt"})
            assert answer.status_code == status


def one_caller_gets_a_share_of_connections():
    assert Limits(connections=40).visits == 30
    assert Limits(connections=40, client_share=0.5).visits == 20


def one_client_gets_a_share_of_jobs():
    from mezzotint.service.config import JobsConfig

    assert JobsConfig(max_waiting=10).full(5, 5) == ""
    assert JobsConfig(max_waiting=10, client_share=0.5).full(5, 5) == "5 jobs of this key"


def one_client_gets_a_share_of_the_queue():
    from mezzotint.engine.admission import admit
    from mezzotint.engine.backlog import Load
    from mezzotint.planning.costs import Prediction

    load = Load(images=4, seconds=4.0, ahead_s=4.0, own_images=4)
    cost = Prediction(seconds=1.0, model_calls=1, peak_bytes=1, measured=True)
    assert admit(load, [cost], config=EngineConfig(max_waiting=8), budget_bytes=10) > 0
    with pytest.raises(errors.QueueFull, match="4 of 8"):
        config = EngineConfig(max_waiting=8, client_share=0.5)
        admit(load, [cost], config=config, budget_bytes=10)


def pictures_of_one_request_are_counted_together():
    from mezzotint.service.finishing.pictures import check_pictures
    from mezzotint.types import ImageInput

    stream = io.BytesIO()
    Image.new("L", (64, 64)).save(stream, "PNG")
    picture = ImageInput(stream.getvalue())
    request = GenerationRequest(prompt="x", image=picture, mask=picture)
    check_pictures(request, ImageConfig())
    with pytest.raises(errors.InvalidRequest, match="5000 pixels together"):
        check_pictures(request, ImageConfig(max_request_pixels=5000))


def only_listed_keys_are_trusted():
    from mezzotint.images.signing import read_trusted_keys

    with pytest.raises(errors.InvalidRequest, match=r"no-such-key\.pub"):
        read_trusted_keys("no-such-key.pub")


def a_trusted_name_is_served():
    asked = {"host": "proxy.example"}
    with open_door() as door:
        assert door.http.get("/ping", headers=asked).status_code >= 400
    with open_door(trusted_hosts=("proxy.example",)) as door:
        assert door.http.get("/ping", headers=asked).status_code == 200


def models_cannot_be_registered():
    with open_door() as door:
        known = door.management.post("/models", params={"url": "nothing.mar"})
    with open_door(model_api=False) as door:
        refused = door.management.post("/models", params={"url": "nothing.mar"})
    assert refused.status_code == 405 != known.status_code


def a_long_body_is_refused():
    with open_door(limits=Limits(body_bytes=1024)) as door:
        assert door.http.post("/v1/generations", content=b"x" * 1025).status_code == 413


def a_slow_body_is_refused():
    from mezzotint.serve.streaming import BoundedBody

    async def silent():
        await asyncio.sleep(30)

    body = BoundedBody(silent, Limits(body_s=0.1), {"content-length": "5"})
    with pytest.raises(Exception, match="did not arrive within") as caught:
        asyncio.run(body())
    assert type(caught.value).__name__ == "BodyTooSlow"


def a_large_request_is_refused():
    limits = Limits(pixels=4096, steps=3, images=2)
    with open_door(limits=limits) as door:
        for field, value in (("width", 65536), ("num_inference_steps", 4), ("num_images", 3)):
            answer = door.http.post("/v1/generations", json={"prompt": "x", field: value})
            assert answer.status_code in (413, 422)
            assert field in answer.text


def a_key_asks_so_often():
    with open_door(limits=Limits(requests_per_minute=2)) as door:
        codes = [door.http.post("/v1/generations", json={}).status_code for _ in range(3)]
    assert codes == [200, 200, 429]


def a_long_side_is_refused():
    from mezzotint.images.codec import decode_image

    stream = io.BytesIO()
    Image.new("RGB", (60, 2)).save(stream, "PNG")
    assert decode_image(stream.getvalue(), config=ImageConfig()).shape[1] == 60
    with pytest.raises(errors.ImageError, match="50"):
        decode_image(stream.getvalue(), config=ImageConfig(max_side_px=50))


def calls_have_the_rows():
    assert EngineConfig().bucket(1) == 2
    assert EngineConfig(min_rows=1).bucket(1) == 1


def sizes_need_no_certificate():
    from mezzotint.engine.execution.runner import Runner

    config = EngineConfig(certify=False, buckets=(2, 4))
    assert Runner(config, None, certificates=None).buckets("step", "key") == (2, 4)


def prompts_are_kept():
    from mezzotint.engine.execution.runner import Runner

    runner = Runner(EngineConfig(prompt_cache_bytes=7), None, certificates=None)
    assert runner._filler._prompts._max_bytes == 7


def nothing_is_downloaded():
    from mezzotint.models.store.hub import fetch

    with pytest.raises(errors.ModelNotAllowed):
        fetch("someone/model", None, allow=ModelsConfig(allow_downloads=False).allow_downloads)


def the_log_has_its_form():
    for config, expected in (
        (LogConfig(level="info", format="json", prompts=True), True),
        (LogConfig(level="error", format="json"), False),
    ):
        stream = io.StringIO()
        log.configure(config, stream)
        log.info("leaf.told", prompt="a pear")
        assert bool(stream.getvalue()) is expected
        if expected:
            assert json.loads(stream.getvalue())["prompt"] == "a pear"
    log.configure(LogConfig(), io.StringIO())


def a_file_of_a_handler_is_bounded():
    code = (
        "from mezzotint.service.handlers.child import bound; import tempfile\n"
        "bound(1 << 34, 4096)\n"
        "file = tempfile.TemporaryFile(buffering=0)\n"
        "assert file.write(bytes(4096)) == 4096\n"
        "try:\n    file.write(b'x')\nexcept OSError as error:\n    print(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == errno.EFBIG


def a_slow_start_is_given_up():
    from mezzotint.service.workers.supervisor import WorkerSupervisor

    factory, options = "mezzotint.service.fake:create_fake", {"load_s": 60.0}

    async def start():
        service = WorkerSupervisor(WorkerConfig(factory=factory, options=options, start_s=1.0))
        try:
            await service.start()
        finally:
            await service.close()

    with pytest.raises(errors.NotReady, match="after 1 s"):
        asyncio.run(start())


def the_provider_is_placed():
    from mezzotint.service.provision.model_provider import ModelProvider

    placement = PlacementConfig(device="cpu")
    assert ModelProvider(ModelsConfig(placement=placement)).backend == "openvino"
    provider = ModelProvider(ModelsConfig(backend="torch", placement=placement))
    assert (provider.backend, provider.device) == ("torch", "cpu")


def a_service_times_its_models():
    from mezzotint.service.local import LocalService

    with tempfile.TemporaryDirectory() as folder:
        models = ModelsConfig(home=folder, backend="torch")
        engine = EngineConfig(calibrate_s=0.0, memory_bytes=1 << 30)
        service = LocalService(ServiceConfig(models=models, engine=engine))
        try:
            assert service._warm_up._limit_s == 0.0
            assert service.budget_bytes == 1 << 30
        finally:
            service.shut()


# Leaf: a value that is not the default; and the probe, or the test, of what it does

BATCHER = "unit/engine/test_batcher.py::"
PLACEMENT = "unit/models/backends/test_placement.py::"
HANDLERS = "unit/service/handlers/test_handlers.py::"
JOBS = "unit/service/jobs/test_jobs.py::"
LOCAL = "unit/service/test_local.py::"
STORE = "unit/models/store/test_store.py::"
CLUSTER = "unit/service/cluster/test_deployments.py::"
POOL = "unit/service/workers/test_local_pool.py::"
SUPERVISOR = "unit/service/workers/test_supervisor.py::"
APP = "unit/serve/test_app.py::"
AUTH = "unit/serve/test_auth.py::"
ADAPTERS = "unit/serve/site/test_adapters.py::"
RPC = "unit/serve/rpc/test_listeners.py::"
LIVENESS = "unit/service/workers/test_liveness.py::"
CODE = "system/test_server_handlers.py::test_handler_code_waits_for_its_digest_and_then_answers"
LEAVES = {
    "home": ("/elsewhere", "unit/cli/test_serve.py::test_the_home_folder_may_be_a_flag"),
    "engine.max_rows": (8, BATCHER + "test_a_call_has_at_most_max_rows"),
    "engine.buckets": ((2, 4), sizes_need_no_certificate),
    "engine.min_rows": (1, calls_have_the_rows),
    "engine.quantum_s": (0.5, BATCHER + "test_calls_stay_below_the_quantum"),
    "engine.max_running": (
        3, BATCHER + "test_within_a_client_the_earliest_deadline_goes_first",
    ),
    "engine.max_waiting": (5, LOCAL + "test_a_full_queue_refuses_with_a_time"),
    "engine.memory_bytes": (1 << 30, LOCAL + "test_a_picture_that_never_fits_is_refused"),
    "engine.calibrate_s": (0.5, a_service_times_its_models),
    "engine.learn_after_s": (
        0.5, "unit/service/test_idle_learning.py::test_sizes_are_learnt_while_nobody_waits",
    ),
    "engine.learn_share": (
        0.5, "unit/engine/execution/test_lessons.py::test_who_waits_pays_a_small_share",
    ),
    "engine.certify": (False, sizes_need_no_certificate),
    "engine.cache_memory_bytes": (
        0, LOCAL + "test_finished_pictures_are_kept_in_memory_and_on_disk_if_they_may_be",
    ),
    "engine.cache_disk_bytes": (
        0, LOCAL + "test_finished_pictures_are_kept_in_memory_and_on_disk_if_they_may_be",
    ),
    "engine.prompt_cache_bytes": (7, prompts_are_kept),
    "engine.client_share": (0.5, one_client_gets_a_share_of_the_queue),
    "engine.share_results": (
        True, "unit/service/test_tenants.py::test_finished_pictures_answer_their_owner_alone",
    ),
    "engine.max_pixels": (4096, LOCAL + "test_pixels_are_bounded_where_a_request_is_accepted"),
    "engine.max_request_pixels": (
        8192, LOCAL + "test_pixels_are_bounded_where_a_request_is_accepted",
    ),
    "handlers.timeout_s": (2.0, HANDLERS + "test_what_takes_too_long_or_is_too_long_is_killed"),
    "handlers.start_s": (3.0, HANDLERS + "test_code_that_cannot_be_loaded_is_a_clear_error"),
    "handlers.idle_s": (
        4.0, HANDLERS + "test_too_many_that_wait_are_refused_and_idle_processes_end",
    ),
    "handlers.memory_bytes": (
        1 << 28, HANDLERS + "test_a_crash_costs_one_call_and_the_next_starts_another_process",
    ),
    "handlers.max_children": (3, HANDLERS + "test_children_are_counted_and_measured_together"),
    "handlers.file_bytes": (1 << 20, a_file_of_a_handler_is_bounded),
    "handlers.max_response_bytes": (
        4096, HANDLERS + "test_what_takes_too_long_or_is_too_long_is_killed",
    ),
    "handlers.max_processes": (
        2, HANDLERS + "test_no_more_processes_than_allowed_even_while_one_starts",
    ),
    "handlers.max_waiting": (
        3, HANDLERS + "test_too_many_that_wait_are_refused_and_idle_processes_end",
    ),
    "images.max_pixels": (4096, "unit/images/test_codec.py::test_limits_come_from_the_config"),
    "images.max_request_pixels": (5000, pictures_of_one_request_are_counted_together),
    "images.max_output_pixels": (
        4096,
        "unit/service/finishing/test_pictures.py::"
        "test_an_extension_beyond_the_limit_is_refused_by_the_head",
    ),
    "images.signing_key": (
        "sign.pem",
        "unit/images/test_signing.py::test_what_cannot_be_signed_is_refused_before_it_is_drawn",
    ),
    "images.trusted_keys": (("sign.pem.pub",), only_listed_keys_are_trusted),
    "images.max_side_px": (500, a_long_side_is_refused),
    "images.max_bytes": (999, "unit/images/test_codec.py::test_limits_come_from_the_config"),
    "jobs.client_share": (0.5, one_client_gets_a_share_of_jobs),
    "jobs.folder": ("/jobs", JOBS + "test_a_store_that_cannot_be_opened_is_said"),
    "jobs.url": (
        "sqlite:///x", JOBS + "test_running_jobs_are_queued_again_when_a_server_starts",
    ),
    "jobs.max_waiting": (7, JOBS + "test_a_full_queue_and_a_stopping_server_refuse"),
    "jobs.max_running": (2, JOBS + "test_priority_goes_first_and_clients_take_turns"),
    "jobs.max_age_s": (60.0, JOBS + "test_a_sweep_keeps_what_the_settings_say"),
    "jobs.max_bytes": (9, JOBS + "test_a_sweep_keeps_what_the_settings_say"),
    "jobs.preview_every": (1, JOBS + "test_steps_have_previews_as_often_as_the_settings_say"),
    "jobs.cluster": (
        "north",
        "unit/service/jobs/test_leases.py::test_a_database_of_another_cluster_is_refused",
    ),
    "jobs.results_url": (
        "s3://pictures/here",
        "unit/service/jobs/test_buckets.py::"
        "test_pictures_of_jobs_are_in_the_bucket_and_damage_is_found",
    ),
    "jobs.environment_wait_s": (
        5.0,
        "unit/service/jobs/test_sharing.py::"
        "test_an_exact_job_fails_plainly_and_a_stable_one_moves_with_a_warning",
    ),
    "jobs.lease_s": (5.0, JOBS + "test_running_jobs_are_queued_again_when_a_server_starts"),
    "log.level": ("error", the_log_has_its_form),
    "log.format": ("json", the_log_has_its_form),
    "log.prompts": (True, the_log_has_its_form),
    "models.max_bytes": (7, STORE + "test_the_least_recently_used_model_goes_first"),
    "models.allow_paths": (False, STORE + "test_paths_are_names_only_where_that_is_allowed"),
    "models.allow_downloads": (False, nothing_is_downloaded),
    "models.allow_handler_code": (True, CODE + "_at_its_door"),
    "models.allowed_handlers": (("ab" * 32,), CODE + "_at_its_door"),
    "models.shared_url": (
        "folder",
        "unit/service/provision/test_learned.py::"
        "test_an_equal_request_is_answered_by_what_another_machine_drew_for_the_same_key",
    ),
    "models.backend": ("torch", the_provider_is_placed),
    "models.placement.device": ("cpu", the_provider_is_placed),
    "models.placement.dtype": (
        "bfloat16", STORE + "test_weights_have_the_datatype_of_the_placement",
    ),
    "models.placement.offload": ("model", PLACEMENT + "test_an_offloaded_network_answers_as_it_did"),
    "models.placement.attention_slicing": (True, PLACEMENT + "test_options_reach_the_modules"),
    "models.placement.vae_slicing": (
        True, PLACEMENT + "test_vae_slicing_takes_pictures_one_at_a_time",
    ),
    "models.placement.vae_tiling": (
        True, PLACEMENT + "test_vae_tiling_decodes_a_large_picture_in_tiles_of_one_shape",
    ),
    "models.placement.channels_last": (True, PLACEMENT + "test_options_reach_the_modules"),
    "models.placement.quantize": (
        "int8_weights", "unit/models/backends/test_eight_bits.py::"
        "test_what_cannot_be_had_is_refused_in_a_sentence",
    ),
    "serve.host": ("127.0.0.2", listeners_bind),
    "serve.port": (9000, listeners_bind),
    "serve.management_host": ("127.0.0.3", listeners_bind),
    "serve.management_port": (9001, listeners_bind),
    "serve.metrics_host": ("127.0.0.4", listeners_bind),
    "serve.metrics_port": (9002, listeners_bind),
    "serve.grpc_port": (9003, RPC + "test_a_listener_stands_at_its_port_and_no_other_by_default"),
    "serve.grpc_management_port": (
        9004, RPC + "test_a_listener_stands_at_its_port_and_no_other_by_default",
    ),
    "serve.api_keys": ("keys", AUTH + "test_no_key_is_a_401_and_a_400_at_torchserves_door"),
    "serve.certificate": ("chain.pem", uvicorn_is_told),
    "serve.private_key": ("key.pem", uvicorn_is_told),
    "serve.cors_origins": (("https://a.example",), APP + "test_listed_origins_get_cors"),
    "serve.trusted_hosts": (("proxy.example",), a_trusted_name_is_served),
    "serve.model_api": (False, models_cannot_be_registered),
    "serve.adapter_api": (
        False,
        ADAPTERS + "test_a_server_may_take_none_or_have_no_place_for_any",
    ),
    "serve.register_paths": (True, a_path_is_registered_where_it_is_allowed),
    "serve.runs": ("runs", "unit/serve/site/test_runs.py::test_runs_are_listed_with_what_they_say_of_themselves"),
    "serve.training": (
        True, "unit/cli/test_serve.py::test_runs_are_started_only_where_the_operator_wants_it",
    ),
    "serve.webhook_hosts": (
        ("hooks.example",),
        "unit/serve/test_webhooks.py::test_only_listed_hosts_may_be_called",
    ),
    "serve.drain_s": (
        1.0,
        "system/test_server_crashes.py::"
        "test_sigterm_on_a_full_disk_still_exits_0_and_the_next_start_goes_on",
    ),
    "serve.limits.body_bytes": (2048, a_long_body_is_refused),
    "serve.limits.adapter_bytes": (
        4096,
        ADAPTERS + "test_an_upload_may_be_larger_than_other_bodies_and_only_it",
    ),
    "serve.limits.adapters": (2, ADAPTERS + "test_a_key_has_as_many_as_it_may"),
    "serve.limits.body_s": (2.0, a_slow_body_is_refused),
    "serve.limits.pixels": (4096, a_large_request_is_refused),
    "serve.limits.steps": (3, a_large_request_is_refused),
    "serve.limits.images": (2, a_large_request_is_refused),
    "serve.limits.wait_s": (2.0, APP + "test_a_dead_line_shorter_than_the_work_is_a_504"),
    "serve.limits.requests_per_minute": (5, a_key_asks_so_often),
    "serve.limits.concurrency": (2, APP + "test_concurrency_limit_answers_429"),
    "serve.limits.connections": (9, uvicorn_is_told),
    "serve.limits.model_bytes": (
        4096, "unit/serve/site/test_uploads.py::test_a_file_that_is_too_large_leaves_nothing_behind",
    ),
    "serve.limits.head_s": (1.0, uvicorn_is_told),
    "serve.limits.client_share": (0.5, one_caller_gets_a_share_of_connections),
    "serve.limits.streams": (
        3, "unit/serve/test_limits_per_key.py::test_event_streams_count_per_key",
    ),
    "worker.factory": (
        "here:make", SUPERVISOR + "test_a_factory_that_does_not_exist_is_said_at_once",
    ),
    "worker.options": (
        {"model_store": "x"}, "unit/cli/test_serve.py::test_another_factory_gets_only_its_own_options",
    ),
    "worker.start_s": (9.0, a_slow_start_is_given_up),
    "worker.silence_s": (
        9.0, SUPERVISOR + "test_a_silent_process_is_killed_and_its_work_done_again",
    ),
    "worker.hang_s": (4.0, LIVENESS + "test_how_long_is_a_hang_is_configured"),
    "worker.hang_factor": (
        30.0, LIVENESS + "test_how_long_is_a_hang_is_configured",
    ),
    "worker.max_crashes": (
        2, SUPERVISOR + "test_a_poisonous_request_fails_and_plain_calls_are_repeated",
    ),
    "worker.backoff_s": (0.1, SUPERVISOR + "test_the_second_restart_in_a_row_waits_and_each_later_one_twice_as_long"),
    "worker.devices": (("cpu",), POOL + "test_each_device_has_a_worker_of_its_own"),
    "worker.ray": ("10.0.0.1:6379", CLUSTER + "test_a_cluster_is_named_by_its_head_and_places_replicas_itself"),
    "worker.cluster.deployment": ("large", CLUSTER + "test_settings_become_a_deployment"),
    "worker.cluster.min_replicas": (0, CLUSTER + "test_settings_become_a_deployment"),
    "worker.cluster.max_replicas": (4, CLUSTER + "test_settings_become_a_deployment"),
    "worker.cluster.backlog_s": (5.0, CLUSTER + "test_settings_become_a_deployment"),
    "worker.cluster.idle_s": (60.0, CLUSTER + "test_settings_become_a_deployment"),
    "worker.cluster.cpus": (8, CLUSTER + "test_settings_become_a_deployment"),
    "worker.cluster.gpus": (1, CLUSTER + "test_settings_become_a_deployment"),
    "worker.count": (2, POOL + "test_work_is_spread_and_a_death_costs_the_others_nothing"),
}  # fmt: skip


# Roads


def as_text(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    return json.dumps(value) if isinstance(value, dict) else str(value)


def as_toml(value):
    if isinstance(value, tuple):
        return json.dumps(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def by_toml(values, file, monkeypatch):
    file.write_text("".join(f"{name} = {as_toml(value)}\n" for name, value in values.items()))
    return ["--config", str(file)]


def by_environment(values, file, monkeypatch):
    for name, value in values.items():
        variable = "MEZZOTINT_" + name.upper().replace(".", "__")
        monkeypatch.setenv(variable, as_text(value))
    return []


def by_command_line(values, file, monkeypatch):
    return [
        text for name, value in values.items() for text in ("--set", f"{name}={as_text(value)}")
    ]


def together(name):
    """Return the leaf's value with what it cannot be without."""
    pairs = {"serve.certificate": "serve.private_key", "serve.private_key": "serve.certificate"}
    also = [pairs[name]] if name in pairs else []
    return {one: LEAVES[one][0] for one in (name, *also)}


def at(config, name):
    """Return the value of a path in a configuration."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.fixture
def road(monkeypatch, tmp_path):
    """Catch what a service and a server would be made of."""
    from mezzotint.service import engine, local

    monkeypatch.setenv("MEZZOTINT_HOME", str(tmp_path))
    monkeypatch.setattr(api, "_engines", [])
    monkeypatch.setattr(api.atexit, "register", lambda *_: None)
    caught = {}

    class Service:
        def __init__(self, config=None, **_):
            caught["service"] = config
            raise errors.WorkFailed("caught")

    def run(serve, jobs, worker, *, log_config, **_):
        caught.update(serve=serve, jobs=jobs, worker=worker, log=log_config)
        return 0

    monkeypatch.setattr(local, "LocalService", Service)
    monkeypatch.setattr(engine, "LocalService", Service)
    monkeypatch.setattr("mezzotint.serve.run.run", run)
    yield caught
    log.configure(LogConfig(), io.StringIO())


@pytest.mark.parametrize("how", [by_toml, by_environment, by_command_line])
@pytest.mark.parametrize("name", LEAVES)
def test_a_leaf_arrives_from_file_environment_and_command_line(
    road, name, how, tmp_path, monkeypatch
):
    value = LEAVES[name][0]
    assert value != at(Settings(), name)
    if name == "home" and how is by_environment:
        monkeypatch.setenv("MEZZOTINT_HOME", value)
        given = []
    else:
        given = how(together(name), tmp_path / "set.toml", monkeypatch)
        if name == "home":
            monkeypatch.delenv("MEZZOTINT_HOME")
    main._run([*given, "serve"])
    section, _, rest = name.partition(".")
    if section in (*IN_SERVICE, "home"):
        where = "models.home" if name == "home" else name
        assert at(read(ServiceConfig, road["worker"].options), where) == value
        main._run([*given, "generate", "a pear"])
        assert at(road["service"], where) == value
    elif name == "worker.options":
        assert read(ServiceConfig, road["worker"].options).model_store == "x"
    else:
        assert at(road[section], rest) == value


@pytest.mark.parametrize("name", [n for n in LEAVES if n.split(".")[0] in (*IN_SERVICE, "home")])
def test_a_leaf_of_the_service_arrives_from_python(road, name, tmp_path, monkeypatch):
    from mezzotint.service.engine import Engine

    value = LEAVES[name][0]
    where = "models.home" if name == "home" else name
    section, _, last = name.rpartition(".")
    part = {} if name == "home" or section.startswith("models") else {section: {last: value}}
    with pytest.raises(errors.WorkFailed, match="caught"):
        Engine(**(part or {last: value}))
    assert at(road["service"], where) == value
    whole = road.pop("service")
    with pytest.raises(errors.WorkFailed, match="caught"):
        Engine(config=whole)
    assert road.pop("service") == whole
    by_environment({name: value}, None, monkeypatch)
    with pytest.raises(errors.WorkFailed, match="caught"):
        api.shared_engine()  # behind mz.generate
    assert at(road["service"], where) == value


# Proofs


def test_no_leaf_is_without_a_proof():
    assert LEAVES.keys() == known_settings().keys()


@pytest.mark.parametrize("probe", sorted({p for _, p in LEAVES.values() if callable(p)}, key=str))
def test_a_leaf_acts(probe):
    probe()


@pytest.mark.parametrize("name", [n for n, (_, proof) in LEAVES.items() if isinstance(proof, str)])
def test_the_test_of_what_a_leaf_does_is_there_and_gives_it_another_value(name):
    file, _, function = LEAVES[name][1].partition("::")
    tree = ast.parse((TESTS / file).read_text())
    tests = [n for n in ast.walk(tree) if isinstance(n, DEFINED) and n.name == function]
    assert len(tests) == 1
    marks = [ast.unparse(mark) for mark in tests[0].decorator_list]
    assert not any(re.search(r"mark\.(skip|xfail)\b", mark) for mark in marks)
    leaf, usual = name.rpartition(".")[2], at(Settings(), name)
    assert gives(tree, function, leaf, usual), f"{function} gives {name} no value but {usual!r}"


DEFINED = ast.FunctionDef | ast.AsyncFunctionDef


def gives(tree, function, leaf, usual):
    """Whether a test, or what it uses of its own file, gives a leaf what is not its default."""
    return any(
        is_another(value, usual) for part in used(tree, function) for value in values(part, leaf)
    )


def used(tree, function):
    """Yield a test and whatever of its own file it uses, one after the other."""
    own = {n.name: n for n in ast.walk(tree) if isinstance(n, DEFINED)}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        names = [getattr(node, "name", ""), *(t.id for t in targets if isinstance(t, ast.Name))]
        own |= {name: node for name in names if name}
    seen, todo = set(), [function]
    while todo:
        part = own.get(todo.pop())
        if part is None or part in seen:
            continue
        seen.add(part)
        yield part
        for node in ast.walk(part):
            if isinstance(node, ast.Name | ast.arg):
                todo.append(node.id if isinstance(node, ast.Name) else node.arg)


def values(part, leaf):
    """Yield what code gives a name: as an argument, in a dictionary, as a variable or a flag."""
    for node in ast.walk(part):
        if isinstance(node, ast.keyword) and node.arg == leaf:
            yield node.value
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            yield from (v for k, v in pairs if isinstance(k, ast.Constant) and k.value == leaf)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            flag = "--" + leaf.replace("_", "-")
            if node.value in (flag, leaf) or node.value.endswith(f"__{leaf.upper()}"):
                yield None  # the value stands elsewhere


def is_another(value, usual):
    """Whether an expression is not plainly a leaf's default."""
    try:
        return value is None or ast.literal_eval(value) != usual
    except ValueError:
        return True  # it is worked out, or comes from where the test is called
