"""Documents say what is true: task files are read; paths, modules, commands, options and settings exist."""

import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_args

import click
import pytest

import smallfirst
from smallfirst.interfaces.cli.main import main
from smallfirst.path.project.task_file import TaskFile, read_task_file

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "docs", "examples", "smallfirst", "tests", "tools")
PAGES = [
    *(ROOT / name for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md", "llms.txt")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
PLACEHOLDERS = {"docs/PAGE.md", "smallfirst/a/b.py", "tests/a/test_b.py", "a/b.py", "test_b.py"}
"""Stand for any file."""
WRITTEN_BY_READERS = re.compile(r"(shop_|my_package)\w*\.py")
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "smallfirst").rglob("*.py")))
BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8"), re.DOTALL)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code_of(text: str) -> list[str]:
    """The lines of code blocks and the spans between backticks."""
    blocks = re.findall(r"```[^\n]*\n(.*?)```", text, re.DOTALL)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [*(line for block in blocks for line in block.splitlines()), *re.findall(r"`([^`]+)`", prose)]


@every_page
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    files = {str(path.relative_to(ROOT)) for name in FOLDERS for path in (ROOT / name).rglob("*")}
    files |= {path.name for path in ROOT.iterdir()}
    named = set(re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w", text))
    named |= set(re.findall(r"(?<![\w/.-])[\w-]+(?:/[\w-]+)*\.(?:py|md)(?!\w)", text))
    written = set(re.findall(r'title="(?:[^"]*/)?([^"/]+)"', text))
    named = {
        name for name in named - PLACEHOLDERS - written if not WRITTEN_BY_READERS.fullmatch(name) and "SET" not in name
    }
    assert [name for name in sorted(named) if not any(f"/{file}".endswith(f"/{name}") for file in files)] == []
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


@every_page
def test_every_module_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    groups = {group for group in entry_points().groups if group.startswith("smallfirst.")}
    for name in set(re.findall(r"(?<![\w./-])(?:smallfirst|benchmarks)(?:\.\w+)+", text)):
        module = ROOT / name.replace(".", "/")
        if name.startswith("smallfirst.__") or module.is_dir() or module.with_suffix(".py").is_file():
            continue
        owner = module.parent / "__init__.py" if module.parent.is_dir() else module.parent.with_suffix(".py")
        is_known = owner.is_file() and re.search(rf"\b{module.name}\b", owner.read_text(encoding="utf-8"))
        is_public = name.startswith("smallfirst.") and module.name in dir(smallfirst)
        assert is_known or is_public or name in groups or f'"{name}"' in SOURCES, name


@every_page
def test_every_command_and_option_that_a_page_names_exists(page: Path) -> None:
    context = click.Context(main)
    for line in code_of(page.read_text(encoding="utf-8")):
        for found in re.finditer(r"(?<!import )(?<!\S)smallfirst ((?!import )[a-z][\w-]*)([^#|]*)", line.strip()):
            verb, rest = found[1], found[2]
            command = main.get_command(context, verb)
            assert command is not None, f"smallfirst {verb}"
            words = rest.split()
            if isinstance(command, click.Group) and words and re.fullmatch(r"[a-z]+", words[0]):
                command = command.get_command(context, words[0])
                assert command is not None, f"smallfirst {verb} {words[0]}"
            options = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options, line


@every_page
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    for code in code_of(page.read_text(encoding="utf-8")):
        if (dotted := re.match(r"([a-z_]+)((?:\.[a-z_]+)+)\b", code)) and dotted[1] in TaskFile.model_fields:
            record: Any = TaskFile
            for name in dotted[0].split("."):
                assert name in record.model_fields, dotted[0]
                annotation = record.model_fields[name].annotation
                record = next(
                    (part for part in (annotation, *get_args(annotation)) if hasattr(part, "model_fields")), None
                )


@pytest.mark.parametrize("block", BLOCKS, ids=[block.split("\n")[1] for block in BLOCKS])
def test_every_task_file_of_the_documents_is_read(block: str, tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(block, encoding="utf-8")
    assert read_task_file(tmp_path).kind in block


def test_each_kind_has_a_document_and_a_template_that_is_read() -> None:
    kinds = {"classify", "extract", "answer", "chat", "call"}
    assert {re.search(r"kind: (\w+)", block)[1] for block in BLOCKS} == kinds  # type: ignore[index]
    for kind in kinds:
        template = ROOT / "smallfirst" / "tasks" / "templates" / f"{kind}.yaml"
        found = read_task_file(template)
        assert found.kind == kind
        assert "guarantee" not in found.routing.model_fields_set  # it would bind answers that nobody asked to bind


def test_settings_that_a_template_has_commented_out_are_real_ones(tmp_path: Path) -> None:
    for template in (ROOT / "smallfirst" / "tasks" / "templates").glob("*.yaml"):
        text = template.read_text(encoding="utf-8")
        lines = [re.sub(r"^(\s*)# (?=[ a-z_]+:)", r"\1", line) for line in text.splitlines()]
        (tmp_path / "task.yaml").write_text("\n".join(lines), encoding="utf-8")
        assert read_task_file(tmp_path).large is not None
