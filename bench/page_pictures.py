"""Pictures of a campaign's page for the docs: `python -m bench.page_pictures RECIPE [--home DIR] [--out docs/images]`.

Writes the page anew and <name>-light.png (verdict and results), <name>-dark.png (the browser of answers) and <name>-phone.png.
Needs Chromium or Chrome.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.browser import page_in_browser
from spin_core.recipe import load_recipe
from spin_core.report.page.write import write_page
from spin_core.store import Store

_READY = "document.documentElement.dataset.ready === 'yes'"
_PLACE = """(() => {{
  const box = document.querySelector('{0}').getBoundingClientRect();
  return {{x: 0, y: Math.max(0, box.top + scrollY - 30), width: innerWidth, height: box.height + 60}};
}})()"""


def take(file: Path, out: Path, name: str) -> list[Path]:
    """The three pictures of a page."""
    out.mkdir(parents=True, exist_ok=True)
    with page_in_browser() as page:
        page.show(file)
        page.until(_READY)
        results: dict[str, Any] = page.run(_PLACE.format("#results"))
        whole = {"x": 0, "y": 0, "width": results["width"], "height": results["y"] + results["height"]}
        made = [page.picture(out / f"{name}-light.png", clip=whole)]
        page.show(file, dark=True)
        page.until(_READY)
        page.run("Object.assign(document.getElementById('sort'), {value: 'most'}).dispatchEvent(new Event('change'))")
        made.append(page.picture(out / f"{name}-dark.png", clip=page.run(_PLACE.format("#answers"))))
        page.show(file, phone=True)
        page.until(_READY)
        made.append(page.picture(out / f"{name}-phone.png"))
        return made


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--home", type=Path, default=Path(".spinflow"))
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    asked = parser.parse_args()
    recipe = load_recipe(asked.recipe)
    for picture in take(write_page(Store(asked.home), recipe), asked.out, recipe.name):
        print(picture)


if __name__ == "__main__":
    main()
