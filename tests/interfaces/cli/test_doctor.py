"""What doctor finds: each thing with its level and the next command, and nothing is created by looking."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from fixtures.cli import call, failed
from fixtures.endpoints import http_server

from smallfirst.base.paths import state_folder
from smallfirst.interfaces.cli import doctor
from smallfirst.interfaces.cli.doctor import Diagnosis, examine
from smallfirst.path.project.task_file import TaskFile, read_task_file


def task_file(folder: Path, more: str = "") -> TaskFile:
    (folder / "task.yaml").write_text(f"name: desk\ndata: {{train: train.jsonl}}\n{more}\n")
    return read_task_file(folder)


def found(name: str, file: TaskFile | None = None, *, ask_large: bool = False) -> Diagnosis:
    return next(one for one in examine(file, ask_large=ask_large) if one.name == name)


def test_a_machine_without_a_task_is_looked_at_and_nothing_is_created() -> None:
    findings = [*examine(None)]
    assert [one.name for one in findings[:3]] == ["python", "processor", "memory"]
    assert [one for one in findings if one.level == "fail"] == []
    assert all(one.next for one in findings if one.level == "warn")
    assert found("state folder").what.startswith(f"{state_folder()}, not created yet")
    assert not state_folder().exists()


def test_a_missing_package_has_its_command_and_warns_where_most_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name in ("torch", "xllamacpp") else True)
    train, llama = found("extra train"), found("extra llama")
    assert (train.level, train.what) == ("warn", "not installed: torch")
    assert train.next == 'pip install "smallfirst[train]"'
    assert (llama.level, llama.next) == ("ok", 'pip install "smallfirst[llama]"')


def test_only_the_weights_of_the_ladder_are_looked_for(tmp_path: Path) -> None:
    assert [one for one in examine(task_file(tmp_path, "ladder: [words]")) if one.name == "weights"] == []
    missing = found("weights", task_file(tmp_path, "small: {base: HuggingFaceTB/SmolLM2-360M-Instruct}"))
    assert missing.level == "warn"
    assert missing.next.startswith("smallfirst models ")


@pytest.mark.parametrize(("status", "level"), [(200, "ok"), (404, "ok"), (401, "fail")])
def test_an_endpoint_is_asked_on_request_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, level: str
) -> None:
    monkeypatch.setenv("BIG_KEY", "sk-1")
    asked: list[str] = []

    def answer(path: str, headers: Mapping[str, str], _: bytes) -> tuple[int, None]:
        asked.append(f"{path} {headers.get('Authorization')}")
        return status, None

    with http_server(answer) as url:
        file = task_file(tmp_path, f"large: {{endpoint: {{base_url: {url}/v1, model: m, api_key_env: BIG_KEY}}}}")
        assert found("large model", file).what == f"{url}/v1, not asked"
        assert asked == []
        assert found("large model", file, ask_large=True).level == level
        assert asked == ["/v1/models Bearer sk-1"]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        joined = task_file(tmp_path, f"small: {{vllm: {{url: {url}}}}}")
        assert (found("vLLM", joined).level, found("mlflow").level) == (level, level)
    gone = found("vLLM", joined)
    assert (gone.level, gone.next) == ("fail", "start it, or correct small.vllm.url")
    assert "no answer" in gone.what


def test_a_key_that_is_not_set_fails_before_anything_is_asked(tmp_path: Path) -> None:
    where = "base_url: https://api.example.com/v1"
    file = task_file(tmp_path, f"large: {{endpoint: {{{where}, model: m, api_key_env: BIG_KEY}}}}")
    one = found("large model", file, ask_large=True)
    assert (one.level, one.next) == ("fail", "export BIG_KEY=…")


def test_doctor_prints_a_line_for_each_thing_and_ends_with_one_where_something_does_not_work(
    desk_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = "large: {endpoint: {base_url: http://127.0.0.1:9/v1, model: m}}\n"
    task_file(desk_folder, f"ladder: [words]\n{large}")
    result = call("doctor", desk_folder)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split()[:2] == ["ok", "python"]
    assert lines[-1] == f"      next: smallfirst doctor {desk_folder} --ask-large   asks for its list of models"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "file"))
    monkeypatch.chdir(tmp_path)
    told = call("doctor")
    failed(told, 1)
    assert f"{tmp_path / 'file'} cannot be written" in told.output
