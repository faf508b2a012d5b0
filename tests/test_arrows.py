"""The arrows point one way: flows → tasks → spin_core, no two files need each other, and the flow process never loads torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("spin_core", "tasks", "flows")
FORBIDDEN = {"spin_core": {"prefect", "flows", "tasks"}, "tasks": {"flows"}}
# in spin_core, who may not know whom: what is below knows nothing of what is above
STAGES = {"sources", "players", "encoding", "generation", "pairs", "scoring", "training", "selection", "evaluation", "judging", "sft"}
BELOW = {
    "contracts": {"store", "recipe", "lm", *STAGES},
    "recipe": {"store", "lm", *STAGES},
    "store": {"lm", *STAGES},
    "runtime": {"lm", *STAGES},
    "lm": STAGES,
    "tracking": {"store", "recipe", "lm", *STAGES},
    "generation": {"pairs", "scoring", "training", "selection", "evaluation"},
    "training": {"generation", "selection", "evaluation"},
    "selection": {"generation", "pairs", "training", "evaluation"},
    "evaluation": {"generation", "training", "selection"},
    "cluster": STAGES - {"generation", "encoding"},
}
ABOVE = {"campaign", "cluster", "report", "inspect", "official", "export", "chat"}  # nobody below these imports them


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, in functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", FORBIDDEN)
def test_no_import_points_back(room: str) -> None:
    """spin_core must be usable without Prefect."""
    assert [f"{file}:{line} {name}" for file in files(room) for line, name in imports(file) if name.split(".")[0] in FORBIDDEN[room]] == []


def test_rooms_know_only_what_is_below_them() -> None:
    found = []
    for room, forbidden in BELOW.items():
        for file in files(f"spin_core/{room}"):
            for line, name in imports(file):
                parts = name.split(".")
                if parts[0] == "spin_core" and len(parts) > 1 and parts[1] in (forbidden | ABOVE) - {room}:
                    found.append(f"{file.relative_to(ROOT)}:{line} {name}")
    assert found == []


def test_only_the_cluster_room_knows_ray() -> None:
    """Where no cluster is named, everything is as without it."""
    knows = [file for room in ROOMS for file in files(room) if any(name.split(".")[0] == "ray" for _, name in imports(file))]
    assert {file.relative_to(ROOT).parent for file in knows} == {Path("spin_core/cluster")}


def test_no_two_files_need_each_other() -> None:
    """A circle of files cannot be read one after the other, nor tested apart."""
    modules = {}
    for file in (file for room in ROOMS for file in files(room)):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        modules[name.removesuffix(".__init__")] = file
    graph: dict[str, set[str]] = {}
    for module, file in modules.items():
        wanted = {name if name in modules else name.rpartition(".")[0] for _, name in imports(file)}
        package = module if file.name == "__init__.py" else ""
        graph[module] = {name for name in wanted & set(modules) if name not in {module, package}}
    # a file inside a package that others import through its __init__ does not need that __init__
    for module in graph:
        graph[module] -= {parent for parent in graph[module] if module.startswith(f"{parent}.")}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' → '.join(error.args[1])}")


def test_the_flow_process_stays_light() -> None:
    """Crash hooks import the flows in a new process, and a worker runs many flows: neither can pay for torch."""
    heavy = ("torch", "transformers", "vllm", "ray")
    code = f"import sys, flows.campaign, flows.iteration, flows.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
