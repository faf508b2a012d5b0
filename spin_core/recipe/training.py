"""How the main player is trained: the recipe's group `training`. "Paper" is arXiv 2401.01335."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from spin_core.recipe.group import Group
from spin_core.recipe.identity import Speed
from spin_core.recipe.losses import LOSSES, LossName, needs, trl_lacks


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
    beta: Beta = "auto"
    """Regularisation λ (paper: 0.1, and 5.0 in its last iteration). `auto` takes 3 / (mean negative log-likelihood of the human answers
    under θ_t, nats an answer), within 0.1 … 5: it asks for as much as these answers have to give, and keeps what earlier iterations
    won where 0.1 does not (docs/proof.md)."""
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
    history_weight: float = Field(0.0, ge=0.0, le=100.0)
    """Weight of the loss of history pairs, in which the answer of θ_t is preferred over a carried one of an older player (paper: 0; T-SPIN,
    arXiv 2601.08198, against θ_0's): each pair that `carry_over` brings gets one more, which with `group_rows` costs no token."""
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
    report_to: Annotated[list[Literal["tensorboard", "wandb", "trackio", "mlflow"]], Speed] = Field([])
    """Where else the metrics of every step go; the package must be installed. Settings are the package's own."""
    seed: int = Field(0, ge=0)
    """Order of the pairs."""
    start: Literal["previous", "initial"] = "previous"
    """previous trains on from θ_t (paper); initial trains θ_0 anew on the pairs of this iteration and of all earlier ones, with their
    reference log-probs under θ_0."""
    choose_epoch: bool = False
    """Keep one model an epoch, and go on with the one that is best on the validation rows, as `line_search` has it; needs
    `data.validation_size`. False takes the last (paper)."""
    validate_steps: int | None = Field(None, ge=1)
    """Steps between looks at the validation pairs in training: loss, margin and accuracy. None never looks; needs `start: previous`."""
    early_stop: int | None = Field(None, ge=1)
    """End an iteration's training after so many looks without a lower loss, and go on with the model of the lowest one."""
    line_search: list[Annotated[float, Field(gt=0.0, le=1.0)]] | Literal["auto"] = "auto"
    """Steps γ: of the models θ_t + γ(θ − θ_t) between θ_t and the trained θ, go on with the one that is best on the validation rows: with
    the lowest NLL, or, where rows carry checks, with most samples that would be the human answer, of those whose NLL is not worse for sure.
    0 (nothing was won) and 1 always take part. auto takes [0.25, 0.5, 0.75] where there are such rows (`data.validation_size`), else
    none; [] takes γ = 1 (paper)."""

    @model_validator(mode="after")
    def _looks_that_can_be_had(self) -> Self:
        if self.early_stop and not self.validate_steps:
            raise ValueError("early_stop counts looks at the validation pairs: set validate_steps")
        if self.validate_steps and (self.start == "initial" or self.backend == "trl"):
            raise ValueError("validate_steps works with start: previous and backend: packed")
        return self

    @model_validator(mode="after")
    def _losses_that_are_defined(self) -> Self:
        if self.label_smoothing and not LOSSES[self.loss].smooths:
            smooth = ", ".join(name for name, loss in LOSSES.items() if loss.smooths)
            raise ValueError(f"label_smoothing works with loss: {smooth}, not {self.loss}")
        if self.dpop_lambda != type(self).model_fields["dpop_lambda"].default and self.loss != "dpop":
            raise ValueError(f"dpop_lambda works with loss: dpop, not {self.loss}")
        if self.history_weight and self.loss == "dpop":
            raise ValueError("history_weight: loss: dpop would hold sampled answers up, dpop_lambda times as hard; take another loss")
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
    def gammas(self) -> list[float]:
        """The steps of the line search; none where `auto` is not spelled out, see `Recipe.at`."""
        return [] if self.line_search == "auto" else self.line_search

    @property
    def chooses(self) -> bool:
        """Whether the next player is chosen on validation rows."""
        return self.choose_epoch or bool(self.gammas)

    @property
    def keeps_identical(self) -> bool:
        """Whether pairs whose two answers are the same tokens are trained on: where the loss has a gradient on them."""
        return "identical" in needs(self.loss, self.sft_weight)
