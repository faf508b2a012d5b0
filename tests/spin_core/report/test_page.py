"""The campaign's page in a browser, and how large it gets. Without a browser only what needs none is tested."""

import gzip
import json
import random
import re
import tracemalloc
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.browser import Page, browser_program, page_in_browser
from spin_core.report.page.answers import held_out_answers
from spin_core.report.page.write import typeset, write_page
from spin_core.report.results import played_turns, table_of, verdict
from spin_core.store import Store
from tests.campaigns import WORDS, Made, recipe_of, words

EVIL = '</script><script>window.evil = 1</script><img src=x onerror="window.evil = 2">{{ 7 * 7 }} \u2028 😀'
READY = "document.documentElement.dataset.ready === 'yes'"
needs_browser = pytest.mark.skipif(browser_program() is None, reason="no Chromium or Chrome on PATH")


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with page_in_browser() as found:
        yield found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 rows, two iterations; every answer is hostile."""
    made = Made(Store(tmp_path_factory.mktemp("small")), 40, 2, words(12), lambda dice: f"{dice.choice(WORDS)} {EVIL} {dice.choice(WORDS)}")
    return write_page(made.store, made.recipe)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5,000 rows, six players."""
    made = Made(Store(tmp_path_factory.mktemp("large")), 5000, 5, words(20), words(15), samples=1)
    return write_page(made.store, made.recipe)


def unpacked(file: Path) -> list[dict[str, Any]]:
    packed = re.search(r'id="packed">([^<]*)<', file.read_text())
    assert packed
    return [json.loads(line) for line in gzip.decompress(b64decode(packed[1])).decode().split("\n") if line]


def test_the_page_holds_every_answer(small: Path) -> None:
    rows = unpacked(small)
    assert [row["id"] for row in rows] == [f"{number:016x}" for number in range(40)]
    assert all(len(player["d"]) == 2 and EVIL in player["g"] for row in rows for player in row["a"])
    assert all("gsm8k" not in row["f"] for row in rows)
    assert all(len(row["a"]) == len(row["f"]["checks"]) == 3 and len(row["m"]) == 2 for row in rows)


def test_what_is_read_without_javascript_is_escaped(small: Path) -> None:
    """An answer is anybody's text."""
    text = small.read_text()
    assert "window.evil" in text
    assert "<script>window.evil" not in text
    assert "<img src=x" not in text
    assert "7 * 7" in text
    assert text.count("<script") == text.count("</script>") == 5


def test_a_thousand_long_rows_stay_below_3_mb(tmp_path: Path) -> None:
    """Answers of 250 to 350 words of a large vocabulary: all cannot be kept, and the page says what is not."""
    letters = random.Random(1)
    vocabulary = ["".join(letters.choices("aeioubcdfglmnprst", k=letters.randint(2, 11))) for _ in range(8000)]
    weights = [1 / (rank + 3) for rank in range(len(vocabulary))]

    def prose(dice: random.Random) -> str:
        return " ".join(dice.choices(vocabulary, weights, k=dice.randint(250, 350)))

    made = Made(Store(tmp_path), 1000, 3, prose, prose, samples=1)
    file = write_page(made.store, made.recipe)
    assert file.stat().st_size < 3_000_000
    assert "To keep this page small it holds" in file.read_text()
    assert len(unpacked(file)) == 1000


def test_rows_that_a_player_was_not_asked_are_empty(tmp_path: Path) -> None:
    """`data.subset` can differ by iteration; nothing may shift to another row."""
    made = Made(Store(tmp_path), 6, 1)
    turns = played_turns(made.store, made.recipe)
    first = unpacked(write_page(made.store, made.recipe))
    turns = [replace(turn, made={**turn.made, "prompts": made.only([1, 3, 5])}) for turn in turns]
    found = [json.loads(line) for line in gzip.decompress(b64decode(held_out_answers(turns).packed)).split(b"\n") if line]
    assert [row["a"] for row in found] == [row["a"] for row in first[1::2]]


def test_it_says_what_the_terminal_says(tmp_path: Path) -> None:
    """Verdict, table, warnings, shortcuts, stages: whoever is sent the page has nothing else."""
    made = Made(Store(tmp_path), 40, 2, warning="the margin comes from <pushing> sampled answers down")
    turns, text = played_turns(made.store, made.recipe), write_page(made.store, made.recipe).read_text()
    said = verdict(turns, made.recipe.stop)
    assert typeset(said[0].partition(" (")[0]) in text
    for line in said[1:]:
        assert typeset(line) in text
    for row in table_of(turns, made.recipe.stop):
        for cell in row.cells.values():
            assert cell.value in text
            assert typeset(cell.moved) in text
    assert "iteration 1: the margin comes from &lt;pushing&gt; sampled answers down" in text
    assert "0.93 △" in text  # a shortcut that wins the game
    assert "finished: 2 iterations" in text
    assert "40 steps, 2.00 pairs a second, β 0.1" in text
    assert "Found done, from an iteration before: read the data" in text


def test_a_campaign_without_a_finished_iteration_has_a_page(tmp_path: Path) -> None:
    text = write_page(Store(tmp_path), recipe_of(2)).read_text()
    assert "No iteration is finished yet." in text
    assert "name: made" in text


def test_words_are_set_as_in_print() -> None:
    found = typeset("θ_12 is best: NLL -0.283 ± 0.056 (gpt-4, 2026-11-29)")
    assert found == "θ₁₂ is best: NLL −0.283\u00a0±\u00a00.056 (gpt-4, 2026-11-29)"


@needs_browser
@pytest.mark.parametrize(("dark", "phone"), [(False, False), (True, False), (False, True)])
def test_it_opens_without_a_complaint(page: Page, small: Path, dark: bool, phone: bool) -> None:
    """No error, nothing loaded, nothing run that an answer brought, nothing wider than the screen."""
    page.show(small, dark=dark, phone=phone)
    page.until(READY)
    assert page.problems == []
    assert page.requests == [small.resolve().as_uri()]
    assert page.run("window.evil === undefined && document.querySelectorAll('main img').length === 0")
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.run("document.querySelector('#detail').textContent.includes('</script>')") or phone
    ground = page.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(18, 22, 27)" if dark else "rgb(255, 255, 255)")


@needs_browser
def test_the_switch_overrides_the_system(page: Page, small: Path) -> None:
    page.show(small)
    page.until(READY)
    grounds = []
    for _ in range(3):
        page.run("document.getElementById('theme').click()")
        grounds.append(page.run("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(18, 22, 27)", "rgb(255, 255, 255)"]  # light, dark, the system's


@needs_browser
def test_the_keyboard_is_enough(page: Page, small: Path) -> None:
    page.show(small)
    page.until(READY)
    number = "document.querySelector('#list [aria-selected=true]').dataset.number"
    for key in "jjjk":
        page.press(key)
    assert page.run(number) == "2"
    page.press("/")
    assert page.run("document.activeElement.id") == "query"
    page.press("j")  # now a letter
    assert page.run("document.getElementById('query').value") == "j"
    page.press("Escape")
    page.run("document.getElementById('list').focus()")
    page.press("End")
    assert page.problems == []
    assert page.run("document.activeElement.id") == "list"


@needs_browser
def test_a_phone_reads_one_row_at_a_time(page: Page, small: Path) -> None:
    page.show(small, phone=True)
    page.until(READY)
    shown = "getComputedStyle(document.getElementById('detail')).display"
    assert page.run(shown) == "none"
    page.run("document.querySelector('#list .row').click()")
    assert page.run(shown) == "block"
    page.run("document.querySelectorAll('.steps button')[2].click()")
    assert page.run("document.querySelector('#list [aria-selected=true]').dataset.number") == "1"
    page.run("document.querySelectorAll('.steps button')[0].click()")
    assert page.run(shown) == "none"


@needs_browser
def test_filters_say_what_the_figures_say(page: Page, small: Path) -> None:
    """From θ_0 to θ_2 by checks, counted here from what the page was given."""
    page.show(small)
    page.until(READY)
    page.run("Object.assign(document.getElementById('new'), {value: 2}).dispatchEvent(new Event('change'))")
    moved = [row["f"]["checks"][2] - row["f"]["checks"][0] for row in unpacked(small)]
    for kind, expected in (("won", sum(m > 0 for m in moved)), ("lost", sum(m < 0 for m in moved)), ("all", 40)):
        page.run(f"document.querySelector('[data-kind={kind}]').click()")
        assert page.run("document.getElementById('hits').textContent") == f"{expected} of 40"


@needs_browser
def test_marks_change_no_answer(page: Page, small: Path) -> None:
    """Without what is struck out it is the player's answer, without what is added its opponent's."""
    page.show(small)
    page.until(READY)
    read = """[...document.querySelectorAll('.side')].map((side) => ['del', 'ins'].map((tag) => {
      const text = side.querySelector('p.text').cloneNode(true);
      text.querySelectorAll(`${tag}, .tag`).forEach((part) => part.remove());
      return text.textContent;
    }))"""
    marked = 0
    for row in unpacked(small)[:12]:
        (first, _), *others = page.run(read)
        assert first == row["a"][0]["d"][0]
        for player, (now, before) in enumerate(others, start=1):
            assert now == row["a"][player]["d"][0]
            assert before in {row["a"][player - 1]["d"][0], now}  # not marked at all where little is in common
            marked += now != before
        page.press("j")
    assert marked > 12


@needs_browser
def test_five_thousand_rows_are_filtered_within_100_ms(page: Page, large: Path) -> None:
    """Typed letter by letter and switched, layout included; only what is seen is drawn."""
    page.show(large)
    page.until(READY)
    measure = """(() => {
      const query = document.getElementById('query'), took = [];
      const time = (act) => {
        const start = performance.now();
        act();
        document.getElementById('list').getBoundingClientRect();  // laid out
        took.push(performance.now() - start);
      };
      const type = (text) => { query.value = text; query.dispatchEvent(new Event('input')); };
      for (const text of ['m', 'ma', 'margin learns', 'zzz', '']) time(() => type(text));
      for (const kind of ['won', 'lost', 'changed', 'all']) time(() => document.querySelector(`[data-kind=${kind}]`).click());
      const sort = document.getElementById('sort');
      for (const { value } of sort.options) time(() => { sort.value = value; sort.dispatchEvent(new Event('change')); });
      return took;
    })()"""
    took = [min(times) for times in zip(*(page.run(measure) for _ in range(5)), strict=True)]  # other processes take their share
    assert max(took) < 100, took
    assert page.run("document.querySelectorAll('#list .row').length") < 40
    page.run("document.getElementById('list').scrollTop = 1e9")
    page.until("[...document.querySelectorAll('#list .row')].some((row) => row.dataset.number === '4999')")
    assert page.problems == []


@needs_browser
def test_it_reads_without_javascript(page: Page, small: Path) -> None:
    """Verdict, table, pictures and a few answers, in a browser that runs no script at all."""
    page.show(small, script=False)
    page.call("Emulation.setScriptExecutionDisabled", value=False)  # of the page's own: it ran none when it was read
    assert page.run("document.getElementById('browser').hidden && !document.getElementById('samples').hidden")
    assert page.run("document.querySelectorAll('svg.chart').length") > 12
    assert "is best" in page.run("document.querySelector('h1').innerText")
    assert page.run("document.querySelectorAll('.sample').length") == 1


def test_answers_are_read_along(tmp_path: Path) -> None:
    """Packing holds a few rows of each file, never all texts."""
    made = Made(Store(tmp_path), 1000, 2, words(40), words(200))
    turns = played_turns(made.store, made.recipe)
    tracemalloc.start()
    held_out_answers(turns)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    texts = 1000 * 3 * 3 * 200 * 5  # bytes of three players' three answers
    assert peak < texts, peak
