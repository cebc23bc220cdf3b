"""Registries: built-in parts, parts of installed packages, parts registered in the process."""

import sys
from pathlib import Path

import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.base.extensions import Registry

GROUP = "smallfirst.test_parts"


def registry() -> Registry[object]:
    return Registry(GROUP, {"path": "pathlib:Path", "broken": "pathlib:Nowhere", "extra": "torch:nn"}, noun="part")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution that registers "answer", and a "path" that must not replace the built-in one."""
    info = tmp_path / "somebody-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nanswer = somebody:ANSWER\npath = somebody:ANSWER\n")
    (tmp_path / "somebody.py").write_text("ANSWER = 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_listing_and_checking_names_load_no_code(installed: None) -> None:
    parts = registry()
    parts.check("answer")
    assert parts.names() == ("path", "broken", "extra", "answer")
    assert "somebody" not in sys.modules


def test_an_installed_package_adds_a_part_and_replaces_none(installed: None) -> None:
    assert registry().get("answer") == 42
    assert registry().get("path") is Path
    sys.modules.pop("somebody")


def test_an_unknown_name_is_refused_with_a_suggestion_and_the_place() -> None:
    with pytest.raises(ConfigError, match=r'task\.yaml: unknown part "paht".*path') as refused:
        registry().get("paht", where="task.yaml")
    assert GROUP in (refused.value.hint or "")


def test_a_part_that_cannot_be_loaded_is_named() -> None:
    with pytest.raises(ConfigError, match='part "broken" cannot be loaded: AttributeError'):
        registry().get("broken")


def test_a_registered_part_is_found_and_a_taken_name_refused() -> None:
    parts = registry()
    parts.register("mine", 7)
    assert dict((name, parts.get(name)) for name in ("mine", "path")) == {"mine": 7, "path": Path}
    with pytest.raises(ConfigError, match='part "path" exists already'):
        parts.register("path", 7)
