"""An adapter on a stand-in of the hub: it is sent alone, names its base, and loads with the card's code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mini_r1.run.manifest import MANIFEST, seal
from mini_r1.run.run_dir import RunDir

from tests.hub_upload import WritableHub
from tests.publishing.conftest import Run, publish, refusal

BASE = "anna/base"


def adapter(run: RunDir, step: int, base: str | None) -> None:
    """Turn a snapshot into one that peft would save."""
    folder = run.snapshots / f"step-{step}"
    (folder / MANIFEST).unlink()
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    (folder / "README.md").write_text("peft's own")
    seal(folder.rename(folder.with_name(f".step-{step}")), folder, run_id=run.run_id)


def test_an_adapter_names_its_base(hub: WritableHub, made_run: Run) -> None:
    run = made_run((2,), model_name_or_path="Qwen/Qwen2.5-0.5B-Instruct", use_peft=True)
    adapter(run, 2, "Qwen/Qwen2.5-0.5B-Instruct")
    hub.make("Qwen/Qwen2.5-0.5B-Instruct", private=False)
    publish(run)
    files = hub.repos["anna/first"].files("step-2")
    card = files["README.md"].decode()
    assert "base_model: Qwen/Qwen2.5-0.5B-Instruct\n" in card
    assert "library_name: peft\n" in card
    assert "A LoRA adapter of [Qwen/Qwen2.5-0.5B-Instruct]" in card
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "Qwen/Qwen2.5-0.5B-Instruct"


@pytest.mark.parametrize(
    ("recipe", "named"),
    [("builtin:demo", "/home/anna/.cache/demo"), ("/models/base", "/models/base"), ("Qwen/Qwen2.5-0.5B", None)],
)
def test_an_adapter_of_an_unknown_base(hub: WritableHub, made_run: Run, recipe: str, named: str | None) -> None:
    run = made_run((2,), model_name_or_path=recipe, use_peft=True)
    adapter(run, 2, named)
    assert f"step 2 is an adapter, and its base ({named or 'none is named'}) is not on the hub" in refusal(run).message
    assert hub.repos == {}


LOADED_BY_THE_CARD = """
import sys, torch
from huggingface_hub import hf_hub_download
from peft import PeftModel
from transformers import AutoModelForCausalLM
card = open(hf_hub_download("anna/first", "README.md")).read()
exec(card.split("```python")[1].split("```")[0])
base, snapshot = sys.argv[1:]
saved = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), snapshot)
with torch.no_grad():
    bare = AutoModelForCausalLM.from_pretrained(base)(ids).logits
    assert torch.equal(model(ids).logits, saved(ids).logits)
    assert not torch.allclose(model(ids).logits, bare)
print("the same")
"""


@pytest.mark.exhaustive
def test_the_published_adapter_is_the_saved_one(
    hub: WritableHub, made_run: Run, untrained: Path, tmp_path: Path
) -> None:
    """peft fetches it and its base by their names from the stand-in, in another process."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    hub.make(BASE, private=False, **{path.name.replace(".", "__"): path.read_bytes() for path in untrained.iterdir()})
    model = AutoModelForCausalLM.from_pretrained(untrained)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    tuned.peft_config["default"].base_model_name_or_path = BASE
    run = made_run((2,), model_name_or_path=BASE, use_peft=True, max_completion_length=4)
    scratch = (run.snapshots / "step-2").rename(run.snapshots / ".step-2")
    for name in (MANIFEST, "config.json", "generation_config.json", "model.safetensors"):
        (scratch / name).unlink(missing_ok=True)
    tuned.save_pretrained(scratch)
    seal(scratch, run.snapshots / "step-2", run_id=run.run_id)
    publish(run)
    assert "adapter_model.safetensors" in hub.repos["anna/first"].files()
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    code = [sys.executable, "-c", LOADED_BY_THE_CARD, str(untrained), str(run.snapshots / "step-2")]
    done = subprocess.run(code, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.split("\n")[-2:] == ["the same", ""], done.stderr
