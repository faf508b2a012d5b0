"""Loading a model so that every weight comes from the file: nothing is filled in, nothing is left over.

transformers starts what is missing at random and goes on; a wrapper's prefix on every name then gives a model that has learned
nothing, in silence. Here its report decides.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spin_core.players.files import header, read_json, weight_files
from spin_core.runtime.errors import BadInput

# buffers that older versions saved and newer ones compute: left over, but nothing was learned in them
_COMPUTED = re.compile(r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|position_ids|masked_bias|causal_mask|rope_freqs\.weight)$")
_MASK = re.compile(r"(^|\.)(attn|attention|self_attention|self_attn)\.bias$")  # a causal mask where it has four axes
_OURS_TO_RAISE = (errno.ENOSPC, errno.EIO, errno.EMFILE, errno.ENOMEM)
_WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "pretrained_model.", "base_model.model.", "model.model.", "policy.")
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def load_model(folder: Path, where: str, dtype: Any = "auto") -> Any:
    """The model of a whole folder, on the CPU, in eval mode, every weight from its files; BadInput where one is not."""
    from transformers import AutoModelForCausalLM

    config = load_config(folder, where)
    options = {"config": config, "dtype": dtype, "use_safetensors": True, "local_files_only": True, "ignore_mismatched_sizes": True}
    model, report = _try(where, lambda: AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options))
    masks = {name for file in weight_files(folder) for name, entry in header(file).items() if len(entry["shape"]) == 4}
    require_complete(model, report, where, masks)
    _untie_where_two(model)
    return model


def load_gguf(file: Path, where: str) -> Any:
    """The fp32 model of a GGUF file, its rounded weights unpacked; BadInput for weights that are missing or left over."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    options = {"gguf_file": file.name, "dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    model, report = _try(where, lambda: AutoModelForCausalLM.from_pretrained(file.parent, output_loading_info=True, **options))
    require_complete(model, report, where)
    model.hf_quantizer = None  # save_pretrained refuses a model that still carries its quantizer
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def load_config(folder: Path, where: str) -> Any:
    """The config with a padding id that the embedding has: transformers cannot even build a model with another."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    raw = read_json(folder / "config.json")
    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING:
        code = raw.get("auto_map")
        what = "is Python code of its own (auto_map), which is not run here" if code else "is not one that transformers knows"
        raise BadInput(f"the model {where}: its architecture {kind!r} {what}", remedy="name a model of an architecture of transformers")
    config: Any = _try(where, lambda: AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BadInput(
            f"the model {where} is a {kind}, which transformers does not load as a language model of text alone",
            remedy="name the text model that it was made from, or one that has AutoModelForCausalLM",
        )
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        pad, rows = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
        if pad is not None and rows is not None and not 0 <= pad < rows:
            part.pad_token_id = None
    if hasattr(config, "auto_map"):  # names files that the artifact has not
        del config.auto_map
    return config


def load_tokenizer(folder: Path, where: str, **options: Any) -> Any:
    """The tokenizer of a folder or GGUF file; BadInput where it has none that can be read."""
    from transformers import AutoTokenizer

    return _try(
        where, lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options), "tokenizer of "
    )


def require_complete(model: Any, report: dict[str, Any], where: str, masks: Iterable[str] = ()) -> None:
    """BadInput unless transformers' report says that file and model have the same weights.

    Tied weights count as present, and buffers that are computed anyway as absent, by transformers' own rules and those above.
    `masks` are the names of the file's tensors with four axes: no weight has as many.
    """
    order = {name: number for number, name in enumerate(model.state_dict())}
    missing = sorted(report["missing_keys"], key=lambda name: order.get(name, len(order)))
    known = {name for name in report["unexpected_keys"] if _COMPUTED.search(name) or (_MASK.search(name) and _ends(name, masks))}
    unexpected = sorted({*report["unexpected_keys"]} - known)
    wrong = [f"{name} is {list(found)} in the file and {list(asked)} in the model" for name, found, asked in report["mismatched_keys"]]
    if not (missing or unexpected or wrong):
        return
    parts = [f"{len(missing)} of {len(order)} weights are missing, first {missing[0]}"] if missing else []
    parts += [f"{len(wrong)} have another shape, first {sorted(wrong)[0]}"] if wrong else []
    parts += [f"{len(unexpected)} are left over, first {unexpected[0]}"] if unexpected else []
    raise BadInput(
        f"the model {where} is not a whole {type(model).__name__}: {'; '.join(parts)}", remedy=_remedy(missing, unexpected, order)
    )


def _ends(name: str, masks: Iterable[str]) -> bool:
    return any(name.endswith(mask) or mask.endswith(name) for mask in masks)


def _remedy(missing: list[str], unexpected: list[str], order: dict[str, int]) -> str:
    for prefix in _WRAPPERS:
        if unexpected and all(name.startswith(prefix) for name in unexpected) and unexpected[0].removeprefix(prefix) in order:
            return f"a wrapper left {prefix!r} before the names: save the model that it wraps, or take the prefix off"
    if missing and not unexpected and all("lm_head" in name or "embed_out" in name for name in missing):
        return "the head is not there: save the …ForCausalLM, or set tie_word_embeddings in config.json where it is the embedding"
    if unexpected and not missing:
        return "mend config.json (number of layers, architecture), or take what is left over out of the file"
    return "check that config.json belongs to these weights, and that all files are there"


def _untie_where_two(model: Any) -> None:
    """Says in the config that head and embedding differ, where they do: vLLM goes by the config, transformers by the weights."""
    import torch

    text, head = model.config.get_text_config(), model.get_output_embeddings()
    if head is not None and text.tie_word_embeddings and not torch.equal(head.weight, model.get_input_embeddings().weight):
        model.config.tie_word_embeddings = text.tie_word_embeddings = False


def ids_of_generation(folder: Path | None, model: Any) -> Any:
    """A generation config with the ids of `generation_config.json` (or of config.json) and nothing else.

    What a model's authors advise about sampling never matters here: the recipe says how answers are drawn. Where an answer
    ends does matter. Ids that the embedding has no row for can never be drawn, and are left out.
    """
    from transformers import GenerationConfig

    file = folder / "generation_config.json" if folder else None
    raw = read_json(file) if file and file.is_file() else {}
    text, own = model.config.get_text_config(), model.generation_config
    count = model.get_input_embeddings().weight.shape[0]
    ids: dict[str, Any] = {}
    for name in _IDS:
        found = next((value for value in (raw.get(name), getattr(own, name, None), getattr(text, name, None)) if value is not None), None)
        kept = [i for i in (found if isinstance(found, list) else [found]) if isinstance(i, int) and 0 <= i < count]
        ids[name] = (kept if len(kept) > 1 else kept[0]) if kept else None
    return GenerationConfig(**ids)


def _try(where: str, load: Any, what: str = "model ") -> Any:
    """What `load` returns; what it raises about the files as one line. A full disk or no memory is not the user's input."""
    from safetensors import SafetensorError

    try:
        return load()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, AssertionError, SafetensorError) as error:
        if (isinstance(error, OSError) and error.errno in _OURS_TO_RAISE) or "allocate memory" in str(error):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadInput(f"the {what}{where} cannot be loaded: {reason}", remedy="check model.name and its files") from None
    except Exception as error:  # the tokenizers' library raises this class itself
        if type(error) is not Exception:
            raise
        raise BadInput(f"the {what}{where} cannot be loaded: {' '.join(str(error).split())[:300]}", remedy="download it again") from None
