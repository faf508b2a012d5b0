"""What tests, benches and fault runs share: a tiny random Llama and tokenised rows, made here: no hub, no download."""

from pathlib import Path

import pyarrow as pa

from spin_core.contracts.rows import ENCODED
from spin_core.contracts.tables import TableWriter
from spin_core.encoding.ends import Ends
from spin_core.store import Ref, Spec, Store

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_model(folder: Path) -> None:
    """Fills a folder that from_pretrained loads. Head size 32, as vLLM's CPU attention asks for."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(special + alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>", additional_special_tokens=special[1:2]
    )
    wrapped.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(special) + len(alphabet),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)


def make_encoded(store: Store, rows: int, prompt_tokens: int = 16) -> tuple[Ref, Ref]:
    """A `model` artifact without a model, and an `encoded` one of `rows` train rows: all that a stage of shards looks at."""

    def write(staging: Path) -> None:
        with TableWriter(staging / "train.parquet", ENCODED) as out:
            for start in range(0, rows, 8192):
                numbers = range(start, min(rows, start + 8192))
                content = [{"row_id": f"{n:016x}", "prompt_ids": [3 + n % 7] * prompt_tokens, "real_ids": [4, 2]} for n in numbers]
                out.write(pa.Table.from_pylist(content, schema=ENCODED))
        Ends([2], ["<|im_end|>"], 2).write(staging)

    def no_model(staging: Path) -> None:
        (staging / "config.json").write_text("{}")

    return store.build(Spec("model", 1, {}), no_model), store.build(Spec("encoded", 1, {"rows": rows}), write)
