"""The four commands on the command line: flags with dashes or underscores, as the official scripts spell them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml
from rich.console import Console

from spin_core.cluster.join import address, joined
from spin_core.recipe import DataSettings, GenerationSettings, ModelSettings, Recipe
from spin_core.report.live import bars
from spin_core.runtime import leftovers, process, surroundings
from spin_core.runtime.machine import ThisMachine
from spin_core.store import Store

_PANEL = "The official SPIN scripts' commands"
_SPELLING: dict[str, Any] = {"token_normalize_func": lambda token: token.replace("_", "-")}
_LOOSE: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}

Home = Annotated[str, typer.Option("--home", envvar="SPINFLOW_HOME", help="Where artifacts, logs and models live.")]
OutputDir = Annotated[Path, typer.Option("--output-dir", help="Folder for the result.")]
_DEFAULT_HOME = "~/.spinflow"


def reformat(
    data: Annotated[str, typer.Option(help="Hub id, folder or file.")] = "HuggingFaceH4/ultrachat_200k",
    output_dir: OutputDir = Path("reformatted"),
    split: Annotated[str | None, typer.Option(help="Split to read; by default train.")] = None,
    test_split: Annotated[str | None, typer.Option(help="Split for the test rows; by default some of the train rows.")] = None,
    test_size: Annotated[int, typer.Option(min=1, help="Held-out rows where there is no test split.")] = 500,
    turns: Annotated[Literal["first", "last", "each"], typer.Option(help="Which answers are taken.")] = "first",
    on_bad_row: Annotated[Literal["error", "skip"], typer.Option(help="Stop at a row that cannot be used, or list it.")] = "skip",
    ignore_columns: Annotated[str, typer.Option(help="Columns and fields to leave out, with commas between them.")] = "",
    home: Home = _DEFAULT_HOME,
) -> None:
    """spin/reformat.py: an SFT data set to train_prefs-….parquet and test_prefs-….parquet."""
    from spin_core.official.reformat import reformat as run

    settings = DataSettings(
        name=data,
        split=split,
        turns=turns,
        test_size=test_size,
        on_bad_row=on_bad_row,
        ignore_columns=[name.strip() for name in ignore_columns.split(",") if name.strip()],
    )
    with _session():
        run(_store(home), settings, test_split, output_dir)


def generate(
    model: Annotated[str, typer.Option(help="Hub id or folder.")],
    input_dir: Annotated[str, typer.Option(help="Folder or hub id with the prompts.")],
    output_dir: OutputDir = Path("generated"),
    batch_size: Annotated[int, typer.Option(min=1, help="Accepted; engines fill their own batches, whatever it is.")] = 16,
    data_frac: Annotated[int, typer.Option(min=0, help="Which fraction, from 0.")] = 0,
    frac_len: Annotated[int, typer.Option(min=0, help="Rows of a fraction; 0 is the whole split.")] = 0,
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    world_size: Annotated[int, typer.Option(min=1, help="GPUs that one vLLM engine spans (tensor parallel).")] = 1,
    engine: Annotated[Literal["vllm", "transformers"], typer.Option(help="What samples.")] = "vllm",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 256,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Rows with longer prompts are left out.")] = 512,
    chat_template: Annotated[str | None, typer.Option(help="A .jinja file, or the template, in place of the model's own.")] = None,
    chat_template_kwargs: Annotated[str, typer.Option(help="What the template is called with: '{\"enable_thinking\": false}'.")] = "{}",
    home: Home = _DEFAULT_HOME,
) -> None:
    """spin/generate.py: the model's answers to a fraction of the prompts, as loser_<frac>.jsonl."""
    from spin_core.official.generate import Fraction
    from spin_core.official.generate import generate as run

    recipe = Recipe(
        name="official",
        model=ModelSettings(name=model, chat_template=chat_template, chat_template_kwargs=_mapping(chat_template_kwargs)),
        data=DataSettings(name=input_dir, on_bad_row="skip", max_prompt_tokens=max_prompt_tokens),
        generation=GenerationSettings(engine=engine, max_new_tokens=max_new_tokens, tensor_parallel=world_size),
    )
    store = _store(home)
    with _session(), joined(store, address(None)) as cluster:
        run(store, recipe, Fraction(split, data_frac, frac_len), output_dir, cluster)


def gather(
    input_dir: Annotated[Path, typer.Option(help="Folder with loser_<frac>.jsonl and loser_<frac>_test.jsonl.")],
    num_fracs: Annotated[int, typer.Option(min=1, help="How many fractions there are.")],
    output_dir: OutputDir = Path("synthetic"),
) -> None:
    """spin/convert_data.py: the fractions to train_prefs-….parquet and test_prefs-….parquet."""
    from spin_core.official.gather import gather as run

    with _session():
        run(input_dir, num_fracs, output_dir)


def finetune(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The official flat keys; --key=value after it overrides one.")],
    home: Home = _DEFAULT_HOME,
) -> None:
    """spin/run_spin.py: train on the pairs; the model goes to the file's output_dir."""
    from spin_core.official.config import load
    from spin_core.official.finetune import finetune as run

    store = _store(home)
    with _session(), joined(store, address(None)) as cluster:
        plan = load(config, context.args, (cluster or ThisMachine(store)).device_count)
        run(store, plan, cluster)


def _store(home: str) -> Store:
    store = Store(home)
    surroundings.require_writable(store.home)
    return store


def _mapping(text: str) -> dict[str, Any]:
    """A mapping in YAML or JSON. Raises BadParameter."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise typer.BadParameter('it is not a mapping such as {"enable_thinking": false}')
    return value


@contextmanager
def _session() -> Iterator[None]:
    """Bars while it runs; no child outlives it, whether it ends, fails or is interrupted."""
    console = Console()
    leftovers.guard()

    def leave(_signal: int, _frame: object) -> None:
        process.end_all()
        console.show_cursor()
        print("stopped; run the same command again to continue", file=sys.stderr, flush=True)
        os._exit(130)  # files are whole or as they were, so there is nothing to unwind

    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)
    try:
        with bars(console):
            yield
    finally:
        process.end_all()


def attach(app: typer.Typer) -> None:
    """Adds the commands to the `spinflow` command."""
    for command in (reformat, generate, gather):
        app.command(rich_help_panel=_PANEL, context_settings=_SPELLING)(command)
    app.command(rich_help_panel=_PANEL, context_settings=_LOOSE)(finetune)
