"""What the pages say is there, is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")} - {ROOT / "docs/log.md"})  # the log tells of what is gone, too
ELSEWHERE = ("spin/", "convert_data.py", "convert_hf_to_gguf.py", "mine.py", "my_")  # of other repositories, and a reader's own


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    names = {name for code in re.findall(r"`([^`\n]+)`", page.read_text()) for name in re.findall(r"(?<![\w.-])[\w/]+\.py\b", code)}
    tree = [
        str(file.relative_to(ROOT))
        for room in ("spin_core", "flows", "tasks", "deployments", "bench", "tests")
        for file in (ROOT / room).rglob("*.py")
    ]
    gone = sorted(name for name in names if not name.startswith(ELSEWHERE) and not any(f"/{file}".endswith(f"/{name}") for file in tree))
    assert gone == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
