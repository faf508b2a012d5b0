"""Evaluators: those that are built in, a user's own, one that a package brings."""

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest

from spin_core.judging import evaluators
from spin_core.judging.evaluators import Answer, Figure, Row, evaluator
from spin_core.judging.figures import read_figures, write_figures
from spin_core.judging.stage import Judge
from spin_core.runtime.errors import BadInput
from spin_core.store import Ref

QUESTION: Any = [{"role": "user", "content": "2 + 2?"}]


def row(*texts: str, greedy: str | None = None, check: Any = None) -> Row:
    answers = [Answer(text, len(text), unfinished=False) for text in texts]
    return Row(QUESTION, "4", check, answers, Answer(greedy, 1, unfinished=False) if greedy else None)


def test_checks_say_nothing_where_no_row_has_one() -> None:
    assert evaluator("checks").judge([row("4")]) == {}
    found = evaluator("checks").judge([row("4", "5", greedy="4", check={"kind": "exact", "value": "4"}), row("4")])
    assert found == {"checks": Figure([0.5, None], "share", "higher"), "greedy": Figure([1.0, None], "share", "higher")}


def write(folder: Path, text: str) -> str:
    (folder / "mine.py").write_text(text)
    return str(folder / "mine.py")


def test_a_users_own_function_scores_answers(tmp_path: Path) -> None:
    file = write(tmp_path, "def short(prompt, answer, real):\n    return None if not answer else len(answer) <= len(real)\n")
    found = evaluator(f"{file}:short").judge([row("4", "four", greedy="4"), row("")])
    assert found == {"short": Figure([0.5, None], "score", "higher"), "short_greedy": Figure([1.0, None], "score", "higher")}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "has no function short"),
        ("import nothing_of_that_name", "cannot be run: ModuleNotFoundError"),
        ("def short(prompt, answer, real):\n    return 1 / 0", "failed on the answer '4': ZeroDivisionError"),
        ("def short(prompt, answer, real):\n    return 'good'", "failed on the answer '4': ValueError"),
    ],
)
def test_a_function_that_cannot_be_used_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        evaluator(f"{write(tmp_path, text)}:short").judge([row("4")])


def test_a_users_file_counts_by_its_content(tmp_path: Path) -> None:
    """An edited function judges again; a moved file does not."""
    some = Ref("prompts", "p", tmp_path)

    def digest(place: str) -> str:
        return Judge(place, 0, some, {"test": (some,)}, some, some).spec().digest

    one = digest(f"{write(tmp_path, 'def f(*a): return 1')}:f")
    (tmp_path / "sub").mkdir()
    assert digest(f"{write(tmp_path / 'sub', 'def f(*a): return 1')}:f") == one
    assert digest(f"{write(tmp_path, 'def f(*a): return 2')}:f") != one
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        digest(f"{tmp_path}/none.py:f")


class Brought:
    needs: ClassVar[Any] = "answers"
    version: ClassVar[int] = 1

    def judge(self, rows: Any) -> dict[str, Figure]:
        return {"brought": Figure([1.0 for _ in rows])}


def test_packages_bring_evaluators(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("theirs", "tests.spin_core.judging.test_evaluators:Brought", evaluators.GROUP)
    monkeypatch.setattr(evaluators, "entry_points", lambda group: [entry] if group == evaluators.GROUP else [])
    monkeypatch.setattr(EntryPoint, "load", lambda self: Brought)
    assert evaluator("theirs").judge([row("4")]) == {"brought": Figure([1.0])}
    with pytest.raises(BadInput, match=r"no evaluator 'thiers'; known are nll, checks, lengths, theirs"):
        evaluator("thiers")


def test_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_figures(tmp_path, "test", ["a", "b"], {"nll": Figure([4.0, 6.0], "nats", "lower", [2.0, 3.0]), "some": Figure([None, 1.0])})
    write_figures(tmp_path, "validation", ["c"], {})
    found = read_figures(tmp_path, "test")
    assert (found["nll"].values_N.tolist(), found["nll"].weights_N.tolist(), found["nll"].better) == ([4.0, 6.0], [2.0, 3.0], "lower")
    assert (found["some"].ids, found["some"].values_N.tolist(), found["some"].weights_N.tolist()) == (["b"], [1.0], [1.0])
    assert read_figures(tmp_path, "validation") == {}
