"""Random Llamas in Hugging Face layout, written by the safetensors package: small, and awkward where formats are."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tiny_bundle import byte_tokenizer

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama:
    """The shape. Every part divides by 4 ranks in whole groups of 128; heads are wider than the hidden size shares."""

    hidden: int = 512
    inner: int = 1024
    layers: int = 2
    heads: int = 8
    kv_heads: int = 4
    width: int = 128
    vocab: int = 512
    tied: bool = False
    dtype: str = "bfloat16"

    def config(self) -> dict[str, object]:
        """As transformers writes it for Llama 3.1, but for the sizes."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "bos_token_id": 256,
            "eos_token_id": 257,
            "head_dim": self.width,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "max_position_embeddings": 512,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 500000.0,
            "tie_word_embeddings": self.tied,
            "torch_dtype": self.dtype,
            "use_cache": True,
            "vocab_size": self.vocab,
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, by name."""
        attention, kv = self.heads * self.width, self.kv_heads * self.width
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for i in range(self.layers):
            layer = f"model.layers.{i}."
            shapes |= {
                f"{layer}input_layernorm.weight": (self.hidden,),
                f"{layer}self_attn.q_proj.weight": (attention, self.hidden),
                f"{layer}self_attn.k_proj.weight": (kv, self.hidden),
                f"{layer}self_attn.v_proj.weight": (kv, self.hidden),
                f"{layer}self_attn.o_proj.weight": (self.hidden, attention),
                f"{layer}post_attention_layernorm.weight": (self.hidden,),
                f"{layer}mlp.gate_proj.weight": (self.inner, self.hidden),
                f"{layer}mlp.up_proj.weight": (self.inner, self.hidden),
                f"{layer}mlp.down_proj.weight": (self.hidden, self.inner),
            }
        shapes["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab, self.hidden)
        return shapes

    def tensors(self, seed: int = 0) -> dict[str, torch.Tensor]:
        """Weights of every size, so that each linear has a largest one of its own; norms far from one.

        None is so small that float16 would round it: ModelOpt's exporter for TensorRT-LLM passes through that.
        """
        random = np.random.default_rng(seed)
        found = {}
        for name, shape in self.shapes().items():
            if len(shape) == 1:
                values = random.uniform(0.3, 1.7, shape)
            else:
                by_row = np.exp(random.normal(0, 0.5, (shape[0], 1)))
                values = random.standard_normal(shape) * by_row / np.sqrt(shape[1])
                values.flat[random.integers(0, values.size, 4)] *= random.uniform(4, 8)
                values[np.abs(values) < 2**-16] = 0
            found[name] = torch.from_numpy(values.astype(np.float32)).to(getattr(torch, self.dtype))
        return found


LLAMA = Llama()


def write_checkpoint(folder: Path, llama: Llama, *, shards: int = 1, seed: int = 0) -> Path:
    """The checkpoint in `folder`; with `shards`, tensors are dealt out in turn, so no block of linears is whole."""
    folder.mkdir(parents=True)
    tensors = llama.tensors(seed)
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata=metadata)
    else:
        files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
        places = {name: files[i % shards] for i, name in enumerate(tensors)}
        for file in files:
            save_file({name: tensors[name] for name in tensors if places[name] == file}, folder / file, metadata)
        size = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(llama.config()))
    byte_tokenizer(llama.vocab).save(str(folder / "tokenizer.json"))
    return folder


def as_floats(tensors: dict[str, torch.Tensor]) -> dict[str, Floats]:
    return {name: tensor.to(torch.float32).numpy() for name, tensor in tensors.items()}
