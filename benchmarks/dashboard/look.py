"""Look at the page of a running endpoint as people do: desktop, phone and dark; axe-core, width, bytes, time to the figures.

    SMALLFIRST_KEY=sf-… python -m benchmarks.dashboard.look http://127.0.0.1:8000 FOLDER --task banking --ask "where is my card"

Writes a picture of every tab in every look into FOLDER and prints the table of `benchmarks/results/page.md`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}
LOOKS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "phone": PHONE,
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "dark phone": {**PHONE, "color_scheme": "dark"},
}
TURNS = 5


def tabs(task: str) -> dict[str, tuple[str, str]]:
    """Return by name the address of a tab and what is there once it is filled."""
    return {
        "watch": ("#/watch?task=&range=24h", ".cards"),
        "watch a task": (f"#/watch?task={task}&range=24h", ".cards"),
        "mark": ("#/queue", ".card"),
        "try": ("#/try", ".ask"),
    }


def ask(page: Page, text: str, task: str) -> None:
    page.get_by_label("Ask").select_option(task)
    page.get_by_label("Request").fill(text)
    page.keyboard.press("Control+Enter")
    page.locator(".answer, .problem").first.wait_for()


def look(page: Page, picture: Path) -> tuple[list[str], int, int, bool]:
    """Return axe's violations, what it passed, what it leaves to a person, and whether the page fits the screen."""
    page.screenshot(path=picture, full_page=True)
    found = Axe().run(page).response
    broken = [f"{one['id']} ({len(one['nodes'])})" for one in found["violations"]]
    fits = page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    return broken, len(found["passes"]), len(found["incomplete"]), fits


def seconds(page: Page, url: str, filled: str) -> float:
    """Return how long it takes from the address to the figures."""
    page.goto("about:blank")
    began = time.perf_counter()
    page.goto(url)
    page.locator(filled).first.wait_for()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--ask", required=True)
    wanted = parser.parse_args()
    wanted.folder.mkdir(parents=True, exist_ok=True)
    key = os.environ.get("SMALLFIRST_KEY", "")
    print(
        "| look | tab | axe-core: violations | rules passed | left to a person | fits the screen |\n|---|---|---|---|---|---|"
    )
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, settings in LOOKS.items():
            context = browser.new_context(**settings)
            context.add_init_script(f"sessionStorage.setItem('smallfirst.key', {key!r})")
            page = context.new_page()
            for tab, (address, filled) in tabs(wanted.task).items():
                seconds(page, f"{wanted.url}/{address}", filled)
                if tab == "try":
                    ask(page, wanted.ask, wanted.task)
                broken, passed, left, fits = look(page, wanted.folder / f"{tab} {name}.png".replace(" ", "-"))
                print(
                    f"| {name} | {tab} | {', '.join(broken) or 'none'} | {passed} | {left} | {'yes' if fits else 'no'} |"
                )
            context.close()
        page = browser.new_page()
        page.add_init_script(f"sessionStorage.setItem('smallfirst.key', {key!r})")
        sizes: list[int] = []
        page.on("response", lambda response: sizes.append(len(response.body())) if response.ok else None)
        print()
        for tab, (address, filled) in tabs(wanted.task).items():
            sizes.clear()
            took = [seconds(page, f"{wanted.url}/{address}", filled) for _ in range(TURNS)]
            kib = sum(sizes) / TURNS / 1024
            print(
                f"{tab}: {statistics.median(took):.2f} s ({min(took):.2f} to {max(took):.2f}, {TURNS} turns), {kib:.0f} KiB"
            )
        browser.close()


if __name__ == "__main__":
    main()
