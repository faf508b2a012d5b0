"""What is asked of the nodes, and what is said of those that could never hold it."""

import pytest

from spin_core.cluster import room
from spin_core.cluster.room import Need, Node, Nodes, widest
from spin_core.runtime.devices import never
from spin_core.runtime.errors import SpinflowError

GIB = 2**30
TWO = [Node(8, 100 * GIB), Node(4, 1000 * GIB)]


def of(*nodes: Node) -> Nodes:
    found = Nodes(lambda: False)
    found._nodes, found._seen = list(nodes), float("inf")
    return found


def test_engines_are_as_many_as_fit() -> None:
    """One too many would be killed by the kernel, with the one beside it."""
    assert Need(1).fits(TWO) == 12
    assert Need(2).fits(TWO) == 6
    assert Need(1, 30 * GIB).fits(TWO) == 3 + 4
    assert Need(8, 101 * GIB).fits(TWO) == 0  # the GPUs are here, the memory is there
    assert Need(5, wide=True).fits(TWO) == 2
    assert widest([8, 8, 4]) == (2, 8)


def test_a_wait_without_hope_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says what, where, and the remedy. A cluster without any node yet is not without hope."""
    monkeypatch.setattr(room, "_HOPE_S", -1.0)

    def waits(need: Need, *nodes: Node) -> None:
        of(*nodes).hoped("an engine", need, never, "add memory")()

    with pytest.raises(SpinflowError) as told:
        waits(Need(1, 40 * GIB), Node(8, 30 * GIB), Node(1, 20 * GIB))
    assert str(told.value) == (
        "an engine needs 1 GPU and 40.0 GiB of memory, and no node has: the best of 2 has 8 GPUs and 30.0 GiB of memory; add memory"
    )
    with pytest.raises(SpinflowError, match="an engine needs 16 GPUs, and all nodes together have 12; add memory"):
        waits(Need(16, wide=True), *TWO)
    waits(Need(16))
    waits(Need(1, 40 * GIB), *TWO)
