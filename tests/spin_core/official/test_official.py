"""The official commands on official files: each does what the script does, and what it got wrong does not happen."""

import errno
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from spin_core.contracts.rows import row_id
from spin_core.contracts.tables import read_rows
from spin_core.official import commands
from spin_core.official.config import load
from spin_core.official.finetune import OfficialPairs
from spin_core.official.gather import gather
from spin_core.official.generate import Fraction, FractionPrompts
from spin_core.official.model_folder import copy_model
from spin_core.recipe.training import LoraSettings
from spin_core.runtime.errors import BadInput
from spin_core.runtime.launcher import Launcher
from spin_core.store import Store
from tests.stages import import_model

OFFICIAL = {  # configs/config.yaml of uclaml/SPIN, in full
    "model_name_or_path": "alignment-handbook/zephyr-7b-sft-full",
    "dataset_mixer": {"UCLA-AGI/SPIN_iter0": 1.0},
    "dataset_splits": ["train", "test"],
    "preprocessing_num_workers": 12,
    "bf16": True,
    "beta": 0.1,
    "do_eval": False,
    "evaluation_strategy": "no",
    "eval_steps": 100,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": True,
    "hub_model_id": "zephyr-7b-spin",
    "learning_rate": 5.0e-7,
    "log_level": "info",
    "logging_steps": 10,
    "lr_scheduler_type": "linear",
    "max_length": 1024,
    "max_prompt_length": 512,
    "num_train_epochs": 3,
    "optim": "rmsprop",
    "output_dir": "outputs",
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 4,
    "push_to_hub": False,
    "save_strategy": "epoch",
    "save_total_limit": None,
    "seed": 42,
    "warmup_ratio": 0.1,
}


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def line(number: int, generated: str = "", names: tuple[str, str] = ("real", "generated")) -> str:
    sides = (turns(f"q{number}", f"a{number}"), turns(f"q{number}", generated or f"\n g{number}"))
    return json.dumps(dict(zip(names, sides, strict=True)))


def spinflow(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=280)


def config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (OFFICIAL | changes).items() if value is not ...}))
    return path


@pytest.mark.long
def test_a_turn_with_the_four_commands(tmp_path: Path, tiny_model: Path) -> None:
    """The official README's steps 1, 1.5 and 2, with its flags and underscores, on a tiny model."""
    rows = [{"messages": turns(f"What comes after {i}?", f"It is {i + 1}.")} for i in range(24)]
    (tmp_path / "sft.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"messages": []}])))
    home = ("--home", str(tmp_path / "home"))

    done = spinflow(tmp_path, "reformat", "--data", "sft.jsonl", "--output_dir", "data", "--test_size", "4", *home)
    assert done.returncode == 0, done.stderr
    assert "1 left out (1 no answer)" in done.stdout
    assert [len(read_rows(tmp_path / "data" / f"{side}_prefs-00000-of-00001.parquet")) for side in ("train", "test")] == [20, 4]

    common = (
        "--model",
        str(tiny_model),
        "--input_dir",
        "data",
        "--output_dir",
        "generated/iter0",
        "--batch_size",
        "16",
        "--world_size",
        "1",
    )
    limits = ("--engine", "transformers", "--max_new_tokens", "12", *home)
    done = spinflow(tmp_path, "generate", *common, "--data_frac", "1", "--frac_len", "12", *limits)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "generated" / "iter0"
    assert [file.name for file in folder.iterdir()] == ["loser_1.jsonl"]
    assert len((folder / "loser_1.jsonl").read_text().splitlines()) == 8
    (folder / "loser_0.jsonl").write_text("\n".join(map(line, range(12))))  # of the official script: text, and no tokens
    (folder / "loser_0_test.jsonl").write_text("\n".join(map(line, range(12, 16))))

    done = spinflow(tmp_path, "gather", "--num_fracs", "2", "--input_dir", "generated/iter0", "--output_dir", "new_data/iter0")
    assert done.returncode == 0, done.stderr
    pairs = read_rows(tmp_path / "new_data" / "iter0" / "train_prefs-00000-of-00001.parquet")
    assert {row_id(pair["real"]) for pair in pairs} == {pair["row_id"] for pair in pairs}
    assert len(pairs) == 20

    changes = {"num_train_epochs": 1, "max_length": 524, "learning_rate": 1e-3, "bf16": False, "output_dir": "outputs/iter0"}
    path = config(tmp_path, model_name_or_path=str(tiny_model), dataset_mixer={"new_data/iter0": 1.0}, **changes)
    done = spinflow(tmp_path, "finetune", str(path), "--per_device_train_batch_size=4", *home)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "20 pairs, 8 of them with the tokens that were sampled" in done.stdout.replace("\n", " ")
    assert "5 steps" in done.stdout
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoModelForCausalLM.from_pretrained(tmp_path / "outputs" / "iter0").num_parameters() > 0
    assert AutoTokenizer.from_pretrained(tmp_path / "outputs" / "iter0").eos_token == "<|im_end|>"


def test_published_pairs_are_mixed(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of one data set and all of another; the same prompt may be in both, with the answers of two opponents."""
    monkeypatch.chdir(tmp_path)
    for name, names, count in (("iter0", ("real", "generated"), 8), ("iter1", ("chosen", "rejected"), 6)):
        (tmp_path / name).mkdir()
        for side in ("train", "test"):
            rows = [json.loads(line(i, f"{name} {i}", names)) for i in range(count)]
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / name / f"{side}_prefs-00000-of-00001.parquet")
    mixer = {"iter0": 0.5, "iter1": 1.0}
    plan = load(config(tmp_path, model_name_or_path=str(tiny_model), dataset_mixer=mixer), [], devices=1)
    store = Store(tmp_path / "home")
    found = Launcher(store).build(OfficialPairs(plan, import_model(store, plan.recipe.model), store))
    assert found.facts["message"] == "10 pairs, 0 of them with the tokens that were sampled"
    pairs = read_rows(found.path / "train_prefs-00000-of-00001.parquet")
    assert [pair["iteration"] for pair in pairs] == [0] * 4 + [1] * 6
    assert len({(pair["row_id"], pair["iteration"]) for pair in pairs}) == 10
    assert all(pair["generated_ids"][-1] == pair["real_ids"][-1] == 2 for pair in pairs)  # both ended, so both have an EOS


def test_pairs_that_bring_their_ids_are_trained_on_exactly_those(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a template renders today: the tokens that the engine saw and gave are what p_θ is about. Text only is rendered."""
    monkeypatch.chdir(tmp_path)
    own = {"prompt_ids": [9, 8, 7], "real_ids": [50, 51, 2], "generated_ids": [60, 61], "finish_reason": "length"}
    rows = [json.loads(line(i, f"g{i}")) | own for i in range(4)]
    rows[1]["real"] = turns("q1", "It ends in <|im_end|>.")  # text that no rendering would take: it needs none
    rows[2] |= {"generated_ids": [50, 51], "finish_reason": None}  # differs from the human side in what ends it: no pair
    rows[3] |= {"generated_ids": None}  # its ids are not all there, so it is rendered
    rows += [json.loads(line(4, "It ends in <|im_end|>.")), json.loads(line(5, "g5")) | own | {"real_ids": [50, 9999]}]
    (tmp_path / "iter0").mkdir()
    for side in ("train", "test"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "iter0" / f"{side}_prefs-00000-of-00001.parquet")
    changes = {"model_name_or_path": str(tiny_model), "dataset_mixer": {"iter0": 1.0}}
    store = Store(tmp_path / "home")
    strict = load(config(tmp_path, **changes), [], devices=1)
    model = import_model(store, strict.recipe.model)
    with pytest.raises(
        BadInput, match=r"iter0 row 5: generated: turn 2 \(assistant\) has the control token <\|im_end\|>.*on_bad_row: skip"
    ):
        Launcher(store).build(OfficialPairs(strict, model, store))
    plan = load(config(tmp_path, **changes, on_bad_row="skip"), [], devices=1)
    found = Launcher(store).build(OfficialPairs(plan, model, store))
    pairs = read_rows(found.path / "train_prefs-00000-of-00001.parquet")
    assert [{name: pair[name] for name in own} for pair in pairs[:2]] == [own, own]
    assert pairs[2]["prompt_ids"] != own["prompt_ids"]
    assert len(pairs) == 3
    assert "3 pairs, 2 of them with the tokens that were sampled" in found.facts["message"]
    assert {
        "with the same answer on both sides": 1,
        "with a control token in the text": 1,
        "with tokens of another model": 1,
    }.items() <= found.facts.items()
    assert set(found.facts["shortcuts"]) == {"first_token", "last_token", "length", "unfinished"}


def test_the_official_template_keys_reach_the_recipe(tmp_path: Path) -> None:
    plan = load(config(tmp_path, chat_template="{{ messages }}", chat_template_kwargs={"enable_thinking": False}), [], devices=1)
    assert plan.recipe.model.chat_template == "{{ messages }}"
    assert plan.recipe.model.chat_template_kwargs == {"enable_thinking": False}


def test_fractions_are_those_of_the_official_shuffle() -> None:
    """A folder may hold fractions of both projects: they must be cut from one order, and leave no row out."""
    import datasets

    shuffled = datasets.Dataset.from_list([{"n": i} for i in range(103)]).shuffle(seed=42)["n"]
    assert Fraction("train", 0, 0).indices(103) == list(shuffled)
    parts = [Fraction("train", number, 20).indices(103) for number in range(6)]
    assert [n for part in parts for n in part] == list(shuffled)
    assert len(parts[-1]) == 3


def test_a_fraction_of_prompts(tmp_path: Path) -> None:
    """System messages and earlier turns stay; a row that is there twice is answered once; a fraction beyond the end is told."""
    talk = [{"role": "system", "content": "s"}, *turns("q", "a"), *turns("r", "b")]
    rows = [{"real": talk, "generated": talk}, *(json.loads(line(i)) for i in (1, 2, 2))]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "train_prefs-00000-of-00001.parquet")
    store = Store(tmp_path / "home")
    prompts = Launcher(store).build(FractionPrompts(str(tmp_path / "data"), Fraction("train", 0, 0), store))
    assert {len(row["real"]) for row in read_rows(prompts.path / "train.parquet")} == {2, 5}
    assert (prompts.facts["rows"], prompts.facts["train"]) == (4, 3)
    with pytest.raises(BadInput, match=r"has 4 train rows, none in fraction 2; the last fraction is 1"):
        Launcher(store).build(FractionPrompts(str(tmp_path / "data"), Fraction("train", 2, 2), store))


def test_gather_reads_official_files(tmp_path: Path) -> None:
    """Both spellings of the columns; a fraction that was appended to twice counts once; held-out prompts are not trained on."""
    other = json.dumps({"real": turns("q9", "another"), "generated": turns("q9", "g")})  # of a prompt that is held out
    (tmp_path / "loser_0.jsonl").write_text("\n".join([line(0), line(1), line(0), line(1), line(2, "a2 ")]) + "\n")
    (tmp_path / "loser_1.jsonl").write_text("\n".join([line(3, names=("chosen", "rejected")), other]) + "\n")
    (tmp_path / "loser_0_test.jsonl").write_text(line(9) + "\n")
    (tmp_path / "loser_1_test.jsonl").write_text(line(10) + "\n")
    counts = gather(tmp_path, 2, tmp_path / "out")
    assert counts == {
        "train": 3,
        "test": 2,
        "copies of a row": 2,
        "with the same answer on both sides": 1,
        "with a held-out prompt": 1,
    }
    rows = read_rows(tmp_path / "out" / "train_prefs-00000-of-00001.parquet")
    assert [row["generated"][1]["content"] for row in rows] == ["g0", "g1", "g3"]
    import datasets

    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train")  # as mix_datasets of the official trainer does
    assert loaded[0]["real"] == turns("q0", "a0")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: (f / "loser_1.jsonl").unlink(), r"loser_1\.jsonl of 3 fractions are missing.*--data-frac"),
        (lambda f: (f / "loser_0_test.jsonl").unlink(), r"no loser_0_test\.jsonl"),
        (lambda f: (f / "loser_2.jsonl").write_text(line(2)[:-5]), "is cut off in its last line"),
        (lambda f: (f / "loser_2.jsonl").write_text(line(2, names=("a", "b")) + "\n"), "row 1: "),
        (lambda f: (f / "loser_0.jsonl").write_text('{"real": [], "generated": []}\n'), "row 1: real does not end in an answer"),
    ],
)
def test_gather_names_what_is_wrong(tmp_path: Path, harm: Any, says: str) -> None:
    """A fraction that is missing in silence is a model that was trained on less than its owner thinks."""
    for number in range(3):
        (tmp_path / f"loser_{number}.jsonl").write_text(line(number) + "\n")
    (tmp_path / "loser_0_test.jsonl").write_text(line(9) + "\n")
    harm(tmp_path)
    with pytest.raises(BadInput, match=says):
        gather(tmp_path, 3, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_the_official_config_means_what_it_says(tmp_path: Path) -> None:
    plan = load(config(tmp_path), ["--num_train_epochs=6", "--output-dir=elsewhere"], devices=8)
    training = plan.recipe.training
    assert (training.pairs_per_step, training.tokens_per_micro_batch, training.epochs) == (64, 8 * 1024, 6)
    assert (training.learning_rate, training.beta, training.optimizer, training.schedule) == (5e-7, 0.1, "rmsprop", "linear")
    assert (training.warmup_ratio, training.gradient_checkpointing, training.precision, training.seed) == (0.1, True, "auto", 42)
    assert (plan.recipe.data.max_prompt_tokens, plan.recipe.generation.max_new_tokens) == (512, 256)
    assert (plan.mixer, plan.split, plan.output_dir) == ({"UCLA-AGI/SPIN_iter0": 1.0}, "train", Path("elsewhere"))
    assert "hub_model_id" in plan.unused


def test_a_revision_stays_text(tmp_path: Path) -> None:
    path = config(tmp_path)
    path.write_text(path.read_text() + "model_revision: 0123456\n")
    assert load(path, [], devices=1).recipe.model.revision == "0123456"
    plan = load(path, ["--model_revision=123e4567", "--learning_rate=5e-6", "--bf16=no"], devices=1)
    assert (plan.recipe.model.revision, plan.recipe.training.learning_rate, plan.recipe.training.precision) == ("123e4567", 5e-6, "fp32")


def test_the_official_lora_keys_are_a_lora_group(tmp_path: Path) -> None:
    keys = {"lora_r": 8, "lora_alpha": 4, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "v_proj"]}
    assert load(config(tmp_path, **keys), [], devices=1).recipe.training.lora is None
    assert set(keys) <= set(load(config(tmp_path, **keys), [], devices=1).unused)
    plan = load(config(tmp_path, use_peft=True, load_in_4bit=True, **keys), [], devices=1)
    lora = plan.recipe.training.lora
    assert lora is not None
    assert (lora.r, lora.alpha, lora.target_modules, lora.quantize) == (8, 4.0, ["q_proj", "v_proj"], "4bit")
    assert not set(keys) & set(plan.unused)
    plan = load(config(tmp_path, use_peft=True, lora_target_modules=["all-linear"]), [], devices=1)
    assert plan.recipe.training.lora == LoraSettings()


def test_the_batch_counts_the_devices_of_every_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch` of theirs multiplies by all processes; ours would train in half the batch on two machines."""
    seen: list[int] = []
    monkeypatch.setattr(
        "spin_core.official.finetune.finetune", lambda store, plan, cluster: seen.append(plan.recipe.training.pairs_per_step)
    )
    monkeypatch.setattr("spin_core.official.commands._session", nullcontext)
    joined = [nullcontext(), nullcontext(SimpleNamespace(device_count=6))]
    monkeypatch.setattr("spin_core.official.commands.joined", lambda store, address: joined.pop(0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "none-0,none-1")
    context = SimpleNamespace(args=["--per_device_train_batch_size=4", "--gradient_accumulation_steps=2"])
    for _ in range(2):
        commands.finetune(context, config(tmp_path), tmp_path / "home")  # type: ignore[arg-type]
    assert seen == [4 * 2 * 2, 4 * 2 * 6]


def folder_of(path: Path, **files: str) -> Path:
    for name, text in files.items():
        file = path / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def test_the_output_folder_holds_one_model(tmp_path: Path) -> None:
    """Shards, an index or an adapter of an older, larger model would be loaded with the new one, or instead of it."""
    old = {"config.json": "old", "model-00001-of-00002.safetensors": "old", "model-00002-of-00002.safetensors": "old"}
    old |= {"model.safetensors.index.json": "old", "pytorch_model.bin": "old", "adapter_config.json": "old", "added_tokens.json": "old"}
    old |= {"adapter__adapter_model.safetensors": "old", "adapter__adapter_config.json": "old", ".model.safetensors.4711": "killed"}
    users = {"README.md": "mine", "notes.txt": "mine", "my_head.safetensors": "mine", "runs__log.json": "mine", "eval.json": "mine"}
    new = {"config.json": "new", "model.safetensors": "new", "tokenizer.json": "new", "MANIFEST.json": "{}"}
    out = folder_of(tmp_path / "out", **old, **users)
    copy_model(folder_of(tmp_path / "new", **new), out)
    found = {str(file.relative_to(out)): file.read_text() for file in out.rglob("*") if file.is_file()}
    assert found == {name.replace("__", "/"): text for name, text in users.items()} | {
        "config.json": "new",
        "model.safetensors": "new",
        "tokenizer.json": "new",
    }
    assert not (out / "adapter").exists()
    copy_model(folder_of(tmp_path / "lora", **new, **{"adapter__adapter_config.json": "new"}), out)
    assert (out / "adapter" / "adapter_config.json").read_text() == "new"


def test_a_copy_that_fails_is_not_half_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed or out of space while the weights are copied, the folder is what it was; afterwards no config says that it is whole."""
    old = folder_of(tmp_path / "out", **{"config.json": "old", "model-00001-of-00001.safetensors": "old"})
    new = folder_of(tmp_path / "new", **{"config.json": "new", "model.safetensors": "new"})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copy", full)
        with pytest.raises(BadInput, match="No space left on device; mend it"):
            copy_model(new, old)
    assert {file.name: file.read_text() for file in old.iterdir()} == {"config.json": "old", "model-00001-of-00001.safetensors": "old"}
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(BadInput):
            copy_model(new, old)
    assert not (old / "config.json").exists()
    copy_model(new, old)
    assert {file.name for file in old.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"betta": 1}, r"unknown key betta; did you mean beta\?"),
        ({"use_peft": True}, "use_peft needs lora_target_modules"),
        ({"use_peft": True, "lora_target_modules": ["q_proj"], "lora_dropout": 0.05}, "lora_dropout=0.05 is not supported"),
        ({"use_peft": True, "lora_target_modules": "q_proj"}, "lora_target_modules: .*got 'q_proj'"),
        ({"use_peft": True, "lora_target_modules": ["q_proj"], "lora_r": 0}, "lora_r: .*got 0"),
        ({"use_peft": True, "lora_target_modules": [1]}, "lora_target_modules: .*valid string"),
        ({"load_in_4bit": True}, "load_in_4bit needs use_peft"),
        ({"load_in_8bit": True}, "load_in_8bit=True is not supported"),
        ({"learning_rate": "fast"}, "learning_rate: .*got 'fast'"),
        ({"num_train_epochs": 0}, "num_train_epochs: .*got 0"),
        ({"loss_type": "corr_clip"}, "loss_type: .*got 'corr_clip'"),
        ({"optim": "lion_32bit"}, "optim: .*got 'lion_32bit'"),
        ({"dataset_mixer": {"x": 2.0}}, "dataset_mixer must name"),
        ({"dataset_splits": ["test"]}, "dataset_splits must name one train split"),
        ({"model_name_or_path": ...}, "model_name_or_path is missing"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be"),
        ({"max_length": 512}, "max_length: "),
    ],
)
def test_config_mistakes_are_one_line_that_names_the_key(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        load(config(tmp_path, **changes), [], devices=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("reformat", "--data", "./none", "--output_dir", "out"), "./none does not exist"),
        (
            ("gather", "--num_fracs", "2", "--input_dir", "none", "--output_dir", "out"),
            "loser_0.jsonl and 1 more of 2 fractions are missing",
        ),
        (("finetune", "none.yaml"), "none.yaml does not exist"),
        (("generate", "--model", "./none", "--input_dir", "none/", "--output_dir", "out"), "none/ does not exist"),
    ],
)
def test_mistakes_at_the_terminal_are_one_line(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = spinflow(tmp_path, *arguments, *(() if arguments[0] == "gather" else ("--home", "home")))
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))
