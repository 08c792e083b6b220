"""A random Llama of 57 MB in two shards, written without torch: large enough for blocks and for fetching ahead."""

import json
from pathlib import Path

import numpy as np
from tiny_bundle import byte_tokenizer

from edgeforge.model.architecture import architecture_from_config
from edgeforge.model.safetensors_writer import write_safetensors

CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 256,
    "eos_token_id": 257,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "max_position_embeddings": 256,
    "model_type": "llama",
    "num_attention_heads": 16,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 4096,
}


def write_sharded(folder: Path) -> Path:
    """The checkpoint in `folder`, bfloat16, each shard's tensors in alphabetical order as transformers writes them."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "LICENSE").write_text("Do what you like.\n")
    byte_tokenizer(4096).save(str(folder / "tokenizer.json"))
    shapes = sorted(architecture_from_config(CONFIG, {}).tensors())
    names = [f"model-{i}-of-2.safetensors" for i in (1, 2)]
    weight_map = {name: names["layers.1" in name or name.startswith("model.norm")] for name, _ in shapes}
    random = np.random.default_rng(7)
    for shard in names:
        held = [(name, "BF16", shape) for name, shape in shapes if weight_map[name] == shard]
        with write_safetensors(folder / shard, held, metadata={"format": "pt"}) as writer:
            for name, _, shape in held:
                writer.write(name, 0, random.standard_normal(shape, np.float32) * np.float32(0.02))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def weights_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
