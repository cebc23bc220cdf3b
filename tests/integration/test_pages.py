"""Every code block of the documentation runs, page by page, in the order in which a reader meets them."""

import re

import pytest
from fixtures.pages import ROOT, Block, PageRunner, blocks_of, chains

ELSEWHERE = {
    "docs/python.md": "tests/architecture/test_public_interface.py",
    "CONTRIBUTING.md": "tests/architecture/test_contributing.py",
}
"""Pages whose blocks run in a test of their own."""
PAGES = sorted(
    page
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md"))
    if str(page.relative_to(ROOT)) not in ELSEWHERE
)
CHAINS = chains(PAGES)
CODE = ("python", "sh", "yaml", "toml")
NOT_CODE = {"text", "json", "csv", "html"}
"""Languages of output, diagrams and rows."""


@pytest.mark.parametrize("first", list(CHAINS))
def test_every_block_of_a_page_and_of_those_that_continue_it_runs(first: str, page_runner: PageRunner) -> None:
    for page in CHAINS[first]:
        page_runner.run_page(page)


def test_blocks_that_do_not_run_are_few_and_say_what_they_need() -> None:
    idle = {page.name for page in PAGES if any(block.needs for block in blocks_of(page))}
    assert idle == {"README.md", "beyond.md", "certificates.md", "mlflow.md", "serving.md", "traffic.md"}


def test_no_code_hides_in_a_block_without_a_language() -> None:
    for page in (*PAGES, *(ROOT / name for name in ELSEWHERE)):
        content = page.read_text(encoding="utf-8")
        fences = re.findall(r"^ *```(.*)$", content, re.MULTILINE)
        assert "" not in fences[::2], f"{page}: a block without a language"
        assert {block.language for block in blocks_of(page)} <= {*CODE, *NOT_CODE}


def test_a_block_is_run_as_it_is_marked(page_runner: PageRunner) -> None:
    def block(language: str, text: str, **marks: str) -> Block:
        return Block("page.md", 1, language, marks, text)

    page_runner.run(block("yaml", "a: 1\n", title="made/x.yaml"))
    page_runner.run(block("yaml", "b: 2\n", title="add to made/x.yaml"))
    page_runner.run(block("sh", "cat made/x.yaml   # both\n"))
    assert page_runner.output == "a: 1\nb: 2\n"
    page_runner.run(block("python", "import asyncio\nx = await asyncio.sleep(0, 3)\n"))
    page_runner.run(block("python", "assert x == 3\n"))
    for language, text in (
        ("sh", "smallfirst nothing"),
        ("sh", 'pip install "smallfirst[nothing]"'),
        ("sh", "make nothing"),
        ("sh", "cat nothing"),
        ("yaml", "gat: {accuracy_at_least: 0.8}"),
        ("python", "y"),
    ):
        with pytest.raises((AssertionError, NameError, Exception)):
            page_runner.run(block(language, text))
