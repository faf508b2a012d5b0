"""From the hub: exactly the files of the commit that an import reads, refused by name before gigabytes come."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.hub import Hub

ROOT = Path(__file__).parents[3]
CODE = """
import json, sys
from pathlib import Path
from spin_core.players.hub import adapter_folder, download
from spin_core.players.stage import Import
from spin_core.recipe import ModelSettings
from spin_core.runtime.errors import SpinflowError
for name in sys.argv[1:]:
    try:
        commit = Import(ModelSettings(name=name), Path("."))._commit()
        found = {"files": sorted(p.name for p in download(name, commit).iterdir())}
        print(json.dumps(found | {"spec": Import(ModelSettings(name=name), Path(".")).spec().params}))
    except SpinflowError as error:
        print(json.dumps({"error": str(error)}))
"""


def ask(hub: Hub, home: Path, *names: str) -> list[dict[str, Any]]:
    """In a process of its own: the client reads its settings when it is imported."""
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", CODE, *names], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_files_of_other_formats_stay_there(tmp_path: Path) -> None:
    hub = Hub()
    whole = {"config.json": b"{}", "model.safetensors": b"12", "tokenizer.json": b"{}", "README.md": b"", "modeling.py": b"1/0"}
    copies = {"pytorch_model.bin": b"x", "model.onnx": b"x", "onnx/model.safetensors": b"x", "consolidated.safetensors": b"x"}
    hub.add("models", "org/whole", whole | copies)
    hub.add("models", "org/pickle", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "org/whole"}
    hub.add("models", "org/adapter", {"adapter_config.json": json.dumps(adapter).encode(), "adapter_model.safetensors": b"12"})
    with hub.serving():
        found, pickle, merged = ask(hub, tmp_path, "org/whole", "org/pickle", "org/adapter")
    assert found["files"] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert "pickled weights (.bin)" in pickle["error"]
    assert not [path for path in hub.asked if ".bin" in path or ".onnx" in path or ".py" in path]
    base = hub.repositories["models/org/whole"].branches["main"]
    assert merged["spec"]["base"] == {"hub": "org/whole", "commit": base}
