import threading

from opentelemetry import trace

from mezzotint.observe.spans import recording, remote_parent, span


def test_a_recorder_hears_spans_of_every_thread_while_it_listens():
    heard = []

    def work():
        with span("decode", images=2):
            pass

    with recording(heard.append):
        work()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    work()
    assert [(r.name, r.attributes) for r in heard] == [("decode", {"images": 2})] * 2
    assert all(r.duration_s >= 0 for r in heard)


def test_a_span_that_fails_is_recorded_too():
    heard = []
    with recording(heard.append):
        try:
            with span("encode"):
                raise ValueError("broken")
        except ValueError:
            pass
    assert [r.name for r in heard] == ["encode"]


def test_a_clients_trace_is_continued():
    header = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with remote_parent(header):
        context = trace.get_current_span().get_span_context()
    assert f"{context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert trace.get_current_span().get_span_context().trace_id == 0
