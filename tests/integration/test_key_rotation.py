"""A rotated key opens what its predecessor owned: files, jobs, fine-tuned models and answers in the ledger."""

from pathlib import Path
from typing import Any

import openai
import pytest
from fixtures.finetuning_api import add_job

from smallfirst.interfaces.jobs.job_folder import JobResult
from smallfirst.interfaces.openai_finetuning.files import FineTuningSettings
from smallfirst.interfaces.openai_finetuning.plugin import fine_tuning
from smallfirst.ledger.keys import KeyPolicy, KeyStore


def owned(client: openai.OpenAI) -> list[str]:
    """All that a key may see of what is owned."""
    models = [model.id for model in client.models.list() if model.id.startswith("ft:")]
    return [*(file.id for file in client.files.list()), *(job.id for job in client.fine_tuning.jobs.list()), *models]


@pytest.mark.parametrize("grace_s", [0, 3600])
def test_a_rotated_key_keeps_what_it_owns(
    start: Any, label: Any, tmp_path: Path, tiny_folder: Path, grace_s: int
) -> None:
    key_store = KeyStore(tmp_path / "keys.db")
    key, secret = key_store.create("desk", KeyPolicy(role="admin"))
    _, stranger = key_store.create("other", KeyPolicy(role="admin"))
    api = fine_tuning(FineTuningSettings(base_models={"tiny": str(tiny_folder)}))
    server = start(key_store=key_store, plugins=[api], m=label)
    client = server.client(secret)
    file = client.files.create(file=("rows.jsonl", b"{}"), purpose="fine-tune").id
    job = add_job(1, "STARTED", owner=key.owner)
    JobResult(model="main.fine_tuning.desk", version=1, best_epoch=1).save(job.folder / "result.json")
    job.log.append("COMPLETED", "")
    before = owned(client)
    assert before == [file, job.name, f"ft:tiny:smallfirst::{1:016x}"]
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])

    new_key, new_secret = key_store.rotate("desk", grace_s=grace_s)
    rotated = server.client(new_secret)
    assert owned(rotated) == before
    rotated.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
    assert rotated.files.content(file).content == b"{}"
    assert (new_key.owner, new_key.policy, new_key.name) == (key.owner, key.policy, "desk")
    assert [row.owner for row in server.ledger.rows()] == [key.owner] * 2
    assert owned(server.client(stranger)) == []
    if grace_s:
        assert owned(client) == before
        key_store.revoke("desk")  # both keys of the name
        with pytest.raises(openai.AuthenticationError):
            rotated.files.list()
    with pytest.raises(openai.AuthenticationError):
        client.files.list()
