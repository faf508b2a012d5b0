"""The axes of the curves."""

import pytest

from spin_core.report.draw.curves import _held_out_panel


@pytest.mark.parametrize(
    ("unit", "values", "has", "has_not"),
    [("share", (1.0, 1.0), "100%", "110%"), ("share", (0.0, 0.1), "0%", "-"), ("score", (0.9, 1.0), "1", "%")],
)
def test_no_axis_goes_where_no_value_can(unit: str, values: tuple[float, float], has: str, has_not: str) -> None:
    figures = {number: {"value": value, "low": None, "high": None, "prompts": 9} for number, value in enumerate(values)}
    labels = _held_out_panel("figure", unit, figures, 1, set(), 1).svg.split("<text")
    said = [label.partition(">")[2].partition("<")[0] for label in labels[1:]]
    assert any(label == has for label in said), said
    assert not any(has_not in label for label in said if "θ" not in label), said
