"""Valid files, small, of every kind that EdgeForge reads: what the fuzzing starts from."""

import json
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from tiny_bundle import byte_tokenizer, make_bundle

from edgeforge.hardware import load_target
from edgeforge.model.architecture import architecture_from_config
from edgeforge.model.checkpoint import open_checkpoint
from edgeforge.model.parity import make_parity, parity_text
from edgeforge.model.safetensors_writer import write_safetensors
from edgeforge.pipeline import scales_file
from edgeforge.planning import make_plan, plan_to_json
from edgeforge.quantization.calibration import Calibration

CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 256,
    "eos_token_id": [257],
    "hidden_act": "silu",
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "model_type": "llama",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 32,
        "rope_type": "llama3",
    },
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vocab_size": 260,
}
GENERATION = {"do_sample": True, "temperature": 0.6, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1}
TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizerFast",
    "add_bos_token": True,
    "bos_token": {"content": "<|im_start|>"},
    "eos_token": "<|im_end|>",
    "chat_template": [{"name": "default", "template": "{{ messages }}"}],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Originals:
    """A checkpoint directory, a `.gguf` file, a bundle, a scales file of the checkpoint, and a plan for it."""

    checkpoint: Path
    gguf: Path
    bundle: Path
    scales: Path
    plan: bytes
    parity: bytes


def make_originals(folder: Path) -> Originals:
    """All of them, in `folder`."""
    directory = folder / "checkpoint"
    _write_checkpoint(directory)
    checkpoint = open_checkpoint(str(directory))
    name = "model.layers.0.self_attn.q_proj.weight"
    inputs = {linear.name: 1.0 for linear in checkpoint.architecture.linears()}
    scales = {name: np.ones(16, np.float32)}
    found = Calibration(inputs=inputs, keys=(1.0,), values=(1.0,), pre_quant_scales=scales, tokens=9)
    scales_file.save(found, folder / "scales.safetensors", fingerprint=checkpoint.fingerprint)
    plan = make_plan(checkpoint.architecture, load_target("cpu"), stored={})
    return Originals(
        checkpoint=directory,
        gguf=_write_gguf(folder / "tiny.gguf"),
        bundle=make_bundle(folder / "bundle"),
        scales=folder / "scales.safetensors",
        plan=json.dumps(plan_to_json(plan)).encode(),
        parity=parity_text(make_parity(checkpoint.tokenizer)).encode(),
    )


def _write_checkpoint(folder: Path) -> None:
    folder.mkdir(parents=True)
    files = {"config.json": CONFIG, "generation_config.json": GENERATION, "tokenizer_config.json": TOKENIZER_CONFIG}
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    shapes = dict(architecture_from_config(CONFIG, GENERATION).tensors())
    layout = [(name, "F32", shape) for name, shape in shapes.items()]
    with write_safetensors(folder / "a.safetensors", layout, metadata={"format": "pt"}) as writer:
        for name, shape in shapes.items():
            writer.write(name, 0, np.full(shape, 0.5, np.float32))
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(shapes, "a.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_gguf(path: Path) -> Path:
    """One layer of 32 channels in float32, with a byte-level vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": 32,
        "feed_forward_length": 32,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    tokens = [*sorted(byte_tokenizer().get_vocab())[30:69], "AB"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["A B"])
    writer.add_bos_token_id(1)
    shapes = {"token_embd": (40, 32), "output": (40, 32), "output_norm": (32,)}
    rows = {"attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32)}
    rows |= {"attn_output": (32, 32), "ffn_gate": (32, 32), "ffn_up": (32, 32), "ffn_down": (32, 32)}
    shapes |= {f"blk.0.{name}": shape for name, shape in rows.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.full(shape, 0.5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
