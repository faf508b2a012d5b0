"""The child of `spinflow check` that asks vLLM itself: its parser reads the command line, its registry the model. No engine starts."""

from __future__ import annotations

from typing import Any, NoReturn

from spin_core.runtime.errors import BadInput
from spin_core.runtime.process import job_main

_KEYS = "mend generation.engine_args"


def _work(job: dict[str, Any]) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    def refuse(message: str) -> NoReturn:
        raise BadInput(f"vLLM does not take its arguments: {' '.join(message.split())[:300]}", remedy=_KEYS)

    parser: Any = make_arg_parser(FlexibleArgumentParser())  # type: ignore[no-untyped-call]
    parser.error = refuse
    arguments = AsyncEngineArgs.from_cli_args(parser.parse_args(["--model", job["model"], *job["arguments"]]))
    try:
        arguments.create_model_config()
    except (ValueError, RuntimeError, KeyError, AttributeError, ImportError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BadInput(f"vLLM does not take the model: {reason}", remedy="take engine: transformers, or a model that vLLM knows") from None


if __name__ == "__main__":
    job_main(_work)
