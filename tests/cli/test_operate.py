"""Shell completion."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from fixtures.cli import call

from smallfirst.cli.main import main


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_this_program(shell: str) -> None:
    script = call("completion", shell).stdout
    assert f"_SMALLFIRST_COMPLETE={shell}_complete" in script


def test_verbs_and_options_are_completed() -> None:
    def completed(words: str) -> list[str]:
        asked = {"_SMALLFIRST_COMPLETE": "fish_complete", "COMP_WORDS": words, "COMP_CWORD": words.split(" ")[-1]}
        lines = CliRunner(env=asked).invoke(main, prog_name="smallfirst").output.splitlines()
        return [line.removeprefix("plain,").partition("\t")[0] for line in lines]

    assert completed("smallfirst pro") == ["promote"]
    assert completed("smallfirst gate --js") == ["--json"]
