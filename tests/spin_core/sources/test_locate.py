"""What `data.name` means, and which files are a split."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spin_core.recipe import DataSettings
from spin_core.runtime.errors import BadInput
from spin_core.sources.locate import Source, files_of_split, locate, pick_split
from spin_core.sources.readers import Reader


def folder(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("[]")
    return tmp_path


@pytest.mark.parametrize(
    ("files", "split", "found"),
    [
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test.parquet"], None, 2),
        (["train_sft-0.parquet", "train_gen-0.parquet", "test_sft-0.parquet"], "train_sft", 1),
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], "test", 1),
        (["test_prefs-00000-of-00001.parquet", "train_prefs-00000-of-00001.parquet"], "test", 1),
        (["a.jsonl", "b.jsonl", "sub/c.jsonl"], None, 3),
        (["train/data-00000-of-00001.arrow", "train/dataset_info.json", "train/state.json", "dataset_dict.json"], None, 1),
        ([".cache/train.json", "README.md", "train.csv"], None, 1),
    ],
)
def test_a_folder_has_splits(tmp_path: Path, files: list[str], split: str | None, found: int) -> None:
    assert len(files_of_split(folder(tmp_path, *files), split)) == found


@pytest.mark.parametrize(
    ("names", "split", "says"),
    [
        (["test", "dev"], None, "has no split train; set data.split to one of dev, test"),
        (["train", "test"], "validation", "no split validation"),
        (["train_sft", "train_gen"], None, "several splits train"),
    ],
)
def test_an_unknown_split_is_named(names: list[str], split: str | None, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        pick_split(names, split, "here")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nowhere", "does not exist"),
        ("nowhere.jsonl", "does not exist"),
        ("/no/such/folder", "does not exist"),
        ("text.txt", "the format of .* is not known; known are .json, .jsonl"),
        ("empty", "holds no data file"),
    ],
)
def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str) -> None:
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=says):
        locate(DataSettings(name=name), tmp_path)


def test_the_identity_is_that_of_the_content(tmp_path: Path) -> None:
    """A moved file is the same data; a changed one is not."""
    (tmp_path / "a.json").write_text("[1]")
    (tmp_path / "b.json").write_text("[1]")
    identities = [locate(DataSettings(name=str(tmp_path / name)), tmp_path).identity for name in ("a.json", "b.json")]
    (tmp_path / "b.json").write_text("[2]")
    identities.append(locate(DataSettings(name=str(tmp_path / "b.json")), tmp_path).identity)
    assert identities[0] == identities[1] != identities[2]


def test_a_hub_id_is_not_taken_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows stream from one commit. The hub is not reached in this test: its client and `datasets` are stood in for."""
    import huggingface_hub

    asked: list[Any] = []

    class Api:
        def dataset_info(self, name: str, revision: str | None) -> Any:
            asked.append((name, revision))
            return SimpleNamespace(sha="c0ffee")

    def load(name: str, config: str | None, **options: Any) -> list[dict[str, str]]:
        asked.append((name, config, options))
        return [{"prompt": "q", "response": "a"}]

    hub = SimpleNamespace(get_dataset_split_names=lambda *_, **__: ["train_sft", "test_sft", "train_gen"], load_dataset=load)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setitem(sys.modules, "datasets", hub)  # type: ignore[arg-type]
    settings = DataSettings(name="HuggingFaceH4/ultrachat_200k", revision="v1", config="default", split="train_sft")
    source = locate(settings, tmp_path)
    assert source == Source("HuggingFaceH4/ultrachat_200k", commit="c0ffee", config="default")
    assert list(Reader(source, settings)) == [{"prompt": "q", "response": "a"}]
    options = {"split": "train_sft", "revision": "c0ffee", "streaming": True}
    assert asked == [("HuggingFaceH4/ultrachat_200k", "v1"), ("HuggingFaceH4/ultrachat_200k", "default", options)]
    plain = locate(DataSettings(name="HuggingFaceH4/ultrachat_200k"), tmp_path)
    assert plain.identity != source.identity, "another configuration has other rows"
    with pytest.raises(BadInput, match=r"data\.config: demo is no hub data set"):
        locate(DataSettings(name="demo", config="main"), tmp_path)
