"""What tells the sides apart without reading, against values worked out by hand."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from spin_core.contracts.rows import IDS
from spin_core.encoding.ends import Ends
from spin_core.pairs.shortcuts import Shortcuts, auc, speller, token_auc

ENDS = Ends([2], ["<|im_end|>"], 2)


def measured(real: list[list[int]], generated: list[list[int]], block: int = 1000) -> Shortcuts:
    found = Shortcuts(ENDS)
    for start in range(0, len(real), block):
        found.add(pa.array(real[start : start + block], IDS), pa.array(generated[start : start + block], IDS))
    return found


def test_auc_by_hand() -> None:
    """Human 1 and 3 against sampled 2 and 3: of the four duels human wins one (3 > 2) and ties one (3 = 3)."""
    assert auc(Counter({1: 1, 3: 1}), Counter({2: 1, 3: 1})) == 1.5 / 4
    assert auc(Counter({5: 7}), Counter({5: 3})) == 0.5
    assert auc(Counter({5: 7}), Counter({4: 3})) == 1.0
    assert auc(Counter(), Counter({4: 3})) == 0.5


def test_tokens_are_scored_by_the_other_half() -> None:
    """Human answers end in 8 always, sampled ones in 8 or 9 half and half: 9 scores 1/6, 8 scores 5/8; human wins half, ties half."""
    half = (Counter({8: 4}), Counter({8: 2, 9: 2}))
    assert token_auc((half, half)) == 0.5 * 1 + 0.5 * 0.5
    apart = (Counter({8: 4}), Counter({9: 4}))
    assert token_auc((apart, apart)) == 1.0


def test_tokens_that_occur_once_tell_nothing() -> None:
    """Scored by their own counts, any small data would be told apart by them."""
    numbers = iter(range(100, 1000))
    sides = [[[next(numbers), 2] for _ in range(40)] for _ in range(2)]
    assert measured(*sides).aucs()["first_token"] == 0.5
    rng = np.random.default_rng(0)
    random = [[[int(token), 2] for token in rng.integers(3, 13, 500)] for _ in range(2)]
    assert measured(*random).aucs()["first_token"] < 0.56


def test_each_figure_by_hand() -> None:
    """24 pairs: human answers are whole and 3 tokens long; half of the sampled ones are cut at 4 tokens, the others as the human."""
    human = [[5, 6, 2]] * 24
    sampled = [[5, 6, 7, 7], [5, 6, 7, 7], [5, 6, 2], [5, 6, 2]] * 6
    assert measured(human, sampled).aucs() == {"first_token": 0.5, "last_token": 0.75, "length": 0.75, "unfinished": 0.75}


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_how_pairs_come_changes_nothing(block: int) -> None:
    rng = np.random.default_rng(1)
    sides = [[[*rng.integers(2, 6, rng.integers(1, 9)).tolist()] for _ in range(50)] for _ in range(2)]
    assert measured(*sides, block).aucs() == measured(*sides).aucs()


def test_a_warning_names_the_cause(tiny_model: Path) -> None:
    """Phi-3's case: human answers end in one end of turn, sampled ones in another token."""
    human = [[40 + i % 9, 50, 2] for i in range(30)]
    sampled = [[40 + i % 9, 50, 60] for i in range(30)]
    spell = speller(str(tiny_model))
    warnings = measured(human, sampled).warnings(spell)
    assert [warning.split(" alone")[0] for warning in warnings] == ["last token", "unfinished"]
    ends = f"most sampled answers end in {spell(60)!r} (100%), most human ones end in '<|im_end|>' (100%)"
    assert warnings[0].startswith(f"last token alone tells the sides apart (AUC 1.00): {ends}; look at generation.max_new_tokens")
    assert "100% of the sampled answers are cut at the limit, 0% of the human ones" in warnings[1]
    assert measured(human[:10], sampled[:10]).warnings(spell) == [], "ten pairs say little"
    assert measured(human, human).warnings(spell) == []
    longer = [[*ids[:-1], *[70 + i % 5] * 9, 2] for i, ids in enumerate(human)]
    assert "half of the human answers have up to 3 tokens, half of the sampled ones up to 12" in measured(human, longer).warnings(spell)[0]


def test_a_token_without_a_tokenizer_file_is_its_number(tmp_path: Path) -> None:
    assert speller(str(tmp_path))(7) == "token 7"
