"""`spinflow init`: looks at a model and a data set, writes a commented recipe for them, and checks it."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from spin_core.contracts.tables import iter_tables
from spin_core.inspect.check import check
from spin_core.inspect.proposal import Seen, propose, width_and_layers
from spin_core.inspect.rates import weights_of
from spin_core.inspect.recipe_text import TEMPLATE, Looked, recipe_text
from spin_core.inspect.surroundings import require_home
from spin_core.players.files import read_json
from spin_core.players.limits import positions, rows, text_part
from spin_core.players.stage import Import
from spin_core.recipe import DataSettings, ModelSettings, load_recipe
from spin_core.runtime import devices, process
from spin_core.runtime.errors import BadInput
from spin_core.runtime.launcher import Launcher
from spin_core.runtime.memory import available_memory
from spin_core.sources.locate import locate
from spin_core.sources.pins import on_hub
from spin_core.sources.readers import Reader
from spin_core.sources.shapes import shape_of
from spin_core.sources.stage import Prompts
from spin_core.store import Ref, Store
from spin_core.store.files import replace_text


def init(store: Store, model: str, data: str, out: Path | None, console: Console) -> bool:
    """Writes the recipe and checks it; whether it is ready. Raises BadInput where model or data cannot be used at all."""
    model, data = _whole(model), _whole(data)
    name = _name(model, data)
    file = out or Path(f"{name}.yaml")
    if file.suffix not in {".yaml", ".yml"}:
        raise BadInput(f"{file} is no name of a recipe", remedy="let it end in .yaml")
    if file.exists():
        raise BadInput(f"{file} is there already", remedy="name another file as the third argument, or remove it")
    require_home(store.home)
    looked = _look(store, model, data)
    replace_text(file, recipe_text(name, model, data, looked, propose(looked.seen)))
    recipe = load_recipe(file)
    console.print(f"wrote {file}: read its comments; what it could not decide stands at its end", soft_wrap=True)
    return check(store, recipe, console)


def _look(store: Store, model: str, data: str) -> Looked:
    on = Launcher(store, "init")
    settings, prompts = _prompts(on, data)
    start = on.build(Import(ModelSettings(name=model), store.home))
    template = _has_template(start.path)
    if not template:
        start = on.build(Import(ModelSettings(name=model, chat_template=TEMPLATE), store.home))
    rendered = _rendered(store, start, prompts)
    if "prompt" not in rendered:
        raise BadInput(f"no row of {data} can be rendered for {model}: {rendered['why']}", remedy="mend the rows, or take another model")
    config = text_part(read_json(start.path / "config.json"))
    width, layers = width_and_layers(config)
    gpus = devices.visible()
    totals = [device.total for device in gpus if device.total]
    memory = float(min(totals)) if totals else float(available_memory())
    usable = round(prompts.facts["train"] * (1 - rendered["refused"] / rendered["rows"])) + prompts.facts["test"]
    parameters, most = weights_of(start), positions(read_json(start.path / "config.json"))
    vocabulary = rows(start.path) or 32000
    lengths = rendered["prompt"], rendered["answer"]
    seen = Seen(parameters, width, layers, vocabulary, most, memory, bool(totals), usable, *lengths)
    gib = memory / 2**30
    where = f"{len(gpus)} x {gpus[0].name or gpus[0].model}, {gib:.0f} GiB" if totals else f"no GPU, {gib:.0f} GiB free"
    more, checks = _talks(prompts)
    return Looked(seen, settings, template, _shape(settings, store.home), prompts.facts, rendered, more, checks, where)


def _prompts(on: Launcher, data: str) -> tuple[DataSettings, Ref]:
    """Every row that can be used, with the settings that they took."""
    settings = DataSettings(name=data, test_size=1, on_bad_row="skip")
    try:
        return settings, on.build(Prompts(settings, on.store.home))
    except BadInput as error:
        if "on_truncated=keep" not in str(error):
            raise
    settings = settings.model_copy(update={"on_truncated": "keep"})
    return settings, on.build(Prompts(settings, on.store.home))


def _rendered(store: Store, model: Ref, prompts: Ref) -> dict[str, Any]:
    report = store.home / f".init-{model.digest}.json"
    job = {"model": str(model.path), "prompts": str(prompts.path), "out": str(report)}
    try:
        process.run_job("spin_core.inspect.init_job", job, store.log_path(f"init-{model.digest}"), name="counting tokens")
        found: dict[str, Any] = json.loads(report.read_text())
        return found
    finally:
        report.unlink(missing_ok=True)


def _has_template(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (config.is_file() and bool(read_json(config).get("chat_template")))


def _talks(prompts: Ref) -> tuple[float, bool]:
    """The share of rows with more than one question, and whether rows carry checks; of the first thousands."""
    some = next(iter_tables(prompts.path / "train.parquet", ["real", "check"])).to_pylist()
    return sum(len([turn for turn in row["real"] if turn["role"] == "user"]) > 1 for row in some) / len(some), bool(some[0]["check"])


def _shape(settings: DataSettings, home: Path) -> str:
    """What the first rows look like; empty where they are not at hand."""
    if settings.name == "demo" or settings.name.startswith("pypi:") or on_hub(settings.name):
        return ""
    found = (shape_of(row) for row in islice(Reader(locate(settings, home), settings), 20))
    return next((shape for shape in found if shape), "")


def _whole(name: str) -> str:
    """A path that holds from every folder; anything else as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() and name != "demo" else name


def _name(model: str, data: str) -> str:
    parts = [re.sub(r"[^a-z0-9]+", "-", Path(part).name.lower().split(".")[0]).strip("-") for part in (model, data)]
    return "-".join(part for part in parts if part)[:63].strip("-") or "mine"
