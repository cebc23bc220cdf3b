from pathlib import Path

from tests.fixtures.cli import call, failed


def test_a_missing_file_names_the_way_without_one(tmp_path: Path) -> None:
    said = failed(call("proxy", tmp_path / "gateway.yaml"), 2)
    assert said == (
        f"ConfigError: {tmp_path}/gateway.yaml: no such file\n"
        "  next: smallfirst proxy --upstream https://api.openai.com/v1\n"
    )


def test_a_wrong_setting_is_named_with_a_suggestion(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("upstreams: {big: {base_url: example.com}}\nmodels: {gpt-4o: bg}\n")
    assert "upstreams.big.base_url: must be a full address" in failed(call("proxy", file), 2)
    file.write_text("upstreams: {big: {base_url: https://example.com/v1}}\nmodels: {gpt-4o: bg}\n")
    assert "no upstream is called 'bg' — did you mean \"big\"?" in failed(call("proxy", file), 2)
