import pytest
from prometheus_client.parser import text_string_to_metric_families

from mezzotint.observe.metrics import CATALOGUE, Metric, Metrics


def read(metrics):
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def test_a_counter_counts_by_label():
    metrics = Metrics()
    metrics.count("mezzotint_images_total", model="plate")
    metrics.count("mezzotint_images_total", 3, model="plate")
    metrics.count("mezzotint_images_total", model="other")
    samples = read(metrics)
    assert samples["mezzotint_images_total", (("model", "plate"),)] == 4
    assert samples["mezzotint_images_total", (("model", "other"),)] == 1


def test_a_gauge_holds_the_last_value():
    metrics = Metrics()
    metrics.set_to("mezzotint_queue_images", 5)
    metrics.set_to("mezzotint_queue_images", 2)
    assert read(metrics)["mezzotint_queue_images", ()] == 2


def test_a_histogram_sums_and_sorts_into_its_buckets():
    metrics = Metrics()
    for rows in (2, 2, 5):
        metrics.measure("mezzotint_batch_rows", rows, model="plate")
    samples = read(metrics)
    plate = ("model", "plate")
    assert samples["mezzotint_batch_rows_sum", (plate,)] == 9
    assert samples["mezzotint_batch_rows_bucket", (("le", "4.0"), plate)] == 2
    assert samples["mezzotint_batch_rows_bucket", (("le", "6.0"), plate)] == 3


def test_only_what_stands_in_the_catalogue_can_be_counted():
    with pytest.raises(KeyError):
        Metrics().count("mezzotint_surprises_total")


def test_a_metric_of_one_kind_is_not_used_as_another():
    metrics = Metrics()
    with pytest.raises(TypeError, match="no counter"):
        metrics.count("mezzotint_queue_images")
    with pytest.raises(TypeError, match="no gauge"):
        metrics.set_to("mezzotint_images_total", 1, model="x")
    with pytest.raises(TypeError, match="no histogram"):
        metrics.measure("mezzotint_queue_images", 1)


def test_two_sets_of_metrics_share_nothing():
    first, second = Metrics(), Metrics()
    first.set_to("mezzotint_queue_images", 5)
    assert read(second) == {}


@pytest.mark.parametrize(("name", "metric"), CATALOGUE.items())
def test_every_name_follows_the_conventions_of_prometheus(name, metric: Metric):
    assert name.startswith("mezzotint_")
    assert name.endswith("_total") == (metric.kind == "counter")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert metric.help.endswith(".")
