"""A list that grows with use, of jobs, files, models, verdicts or answers, does not hold the event loop."""

import httpx
from fixtures.finetuning_api import add_job
from fixtures.loop_lag import MAX_LAG_S

HELLO = [{"role": "user", "content": "hello"}]


LISTS = [
    ("POST", "/v1/chat/completions", {"model": "ft:tiny:smallfirst::00000000000fffff", "messages": HELLO}),
    ("POST", "/v1/chat/completions", {"model": "nobody", "messages": HELLO}),
    ("POST", "/invocations", {"messages": HELLO}),
    ("GET", "/v1/models/nobody", None),
    ("GET", "/v1/fine_tuning/jobs?limit=100", None),
    ("GET", "/v1/fine_tuning/jobs/ftjob-00000000000fffff", None),
    ("GET", "/v1/fine_tuning/jobs/ftjob-0000000000000001/events", None),
]


def test_many_jobs(start_api) -> None:
    for number in range(400):
        events = add_job(number, "QUEUED", "STARTED").log
        update = events.append("TRAIN_UPDATED", "").model_dump_json()
        with events.path.open("a", encoding="utf-8") as file:  # appended one by one they take minutes
            file.write(f"{update}\n" * (20 if number != 1 else 10_000))
        events.append("FAILED", "")
    api = start_api()
    lags_ms: dict[str, int] = {}
    for method, path, body in LISTS:
        for _ in range(2):  # the first one imports
            with api.running.measure_lag() as lag:
                reply = httpx.request(method, f"{api.running.url}{path}", json=body, timeout=120)
            assert reply.status_code in (200, 404)
            lags_ms[f"{path} {(body or {}).get('model', '')}"] = round(1000 * lag.worst_s)
    assert {path: lag for path, lag in lags_ms.items() if lag > 1000 * MAX_LAG_S} == {}
