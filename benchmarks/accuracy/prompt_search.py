"""The search for a prompt of the demo's large model, as a user runs it: what was tried, what it brought, what it took.

    python -m benchmarks.accuracy.prompt_search FOLDER     # FOLDER keeps every answer, so that it goes on when called again

Qwen2.5-Coder-1.5B (Q4_K_M, llama.cpp) answers, and proposes its own instructions. The prompt of the demo and the best one found are
then asked 60 calibration rows, which the search has not seen.
"""

from __future__ import annotations

import os
import sys
from datetime import date
from pathlib import Path

from benchmarks.paths import RESULTS, ROOT
from smallfirst.data.dataset import sample_rows
from smallfirst.improvement.prompt_search.asking import Asking
from smallfirst.improvement.prompt_search.search import PromptOptions, tune_prompt
from smallfirst.project.project import Project
from smallfirst.project.prompt_file import Prompt
from smallfirst.project.task_file import read_task_file
from smallfirst.stats.intervals import paired_score_interval, wilson

ROWS, MAX_REQUESTS, CHECK_ROWS = 40, 240, 60

HEAD = """# A prompt search on the demo

`python -m benchmarks.accuracy.prompt_search`, {date}, 2 shared cores (Zen 5), 24 GB. Qwen2.5-Coder-1.5B (Q4_K_M, llama.cpp)
answers and proposes; 14 labels; prompts are compared on {n} selection rows; at most {most} requests. Intervals are 95 % (Wilson; paired
difference: Tango).

```text
{found}
```

On {check} calibration rows that the search has not seen: {before} right before, {after} with the best prompt, difference {difference}.

Its instructions:

```text
{told}
```
"""


def right(asking: Asking, project: Project, prompt: Prompt) -> list[bool]:
    """Return for each check row whether the answer under a prompt is right."""
    rows = sample_rows(project.rows.calibration, CHECK_ROWS).examples
    answers = asking.answer(prompt, rows)
    parsed = [project.task.parse(answer.answer) if answer else None for answer in answers]
    return [
        project.task.score(row.golds, said) >= project.task.pass_score for row, said in zip(rows, parsed, strict=True)
    ]


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1]).resolve()
    os.environ.setdefault("SMALLFIRST_HOME", str(folder))
    project = Project.read(read_task_file(ROOT / "examples" / "claims_desk"))
    options = PromptOptions(out=folder / "prompt.yaml", rows=ROWS, nearest=(0,), max_requests=MAX_REQUESTS)
    found = tune_prompt(project, options)
    asking = Asking(project, max_requests=2 * CHECK_ROWS, max_usd=None)
    try:
        before, after = (right(asking, project, trial.prompt) for trial in (found.before, found.chosen))
    finally:
        asking.close()
    gained, lost = (sum(a > b for a, b in zip(*pair, strict=True)) for pair in ((after, before), (before, after)))
    text = HEAD.format(
        date=date.today().isoformat(),
        n=found.search.n_rows,
        most=MAX_REQUESTS,
        found="\n".join(found.in_words),
        check=len(before),
        before=wilson(sum(before), len(before)),
        after=wilson(sum(after), len(after)),
        difference=paired_score_interval(gained, lost, len(before)),
        told=found.chosen.prompt.instructions,
    )
    (RESULTS / "prompt_search.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
