"""What several commands are called with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file; recipes/demo.yaml is a small one.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, e.g. training.beta=0.2.")]
Home = Annotated[
    str,
    typer.Option(
        "--home",
        envvar="SPINFLOW_HOME",
        metavar="FOLDER|URL",
        help="Where artifacts, logs and models live: a folder, or s3://BUCKET/PREFIX (gs://, az://), of which this machine keeps a cache.",
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show log lines; they are always in <home>/logs/latest/flow.log.")]
LogFormat = Annotated[Literal["text", "json"], typer.Option("--log-format", help="json: a JSON object a line on stderr, and no bars.")]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], typer.Option("--log-level", help="Least severe lines to log.")]
DEFAULT_HOME = "~/.spinflow"

# the panels of --help, in the order in which a person needs them
BEGIN, PLAY, JUDGE, KEEP = "Begin", "Play", "Judge, and go on otherwise", "Take away, and keep house"
