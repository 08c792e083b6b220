"""genai_config.json: what onnxruntime-genai needs beside graph and tokenizer to run the same directory.

Source: onnxruntime-genai src/config.cpp (0.18), and the files its own builder writes.
"""

from collections.abc import Mapping

from edgeforge.model.checkpoint import GenerationDefaults
from edgeforge.planning import BuildPlan

PROVIDER_OPTIONS: Mapping[str, list[dict[str, dict[str, str]]]] = {
    "CPUExecutionProvider": [],
    "CUDAExecutionProvider": [{"cuda": {"enable_cuda_graph": "0"}}],
}


def genai_config(plan: BuildPlan, generation: GenerationDefaults, provider: str, graph_file: str) -> dict[str, object]:
    """The file's content. Sampling defaults are the model authors' own; greedy where they say nothing."""
    a = plan.architecture
    eos = list(a.eos_token_ids)
    special = {
        "bos_token_id": a.bos_token_id,
        "eos_token_id": (eos[0] if len(eos) == 1 else eos) if eos else None,
        "pad_token_id": eos[0] if eos else a.bos_token_id,
    }
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": PROVIDER_OPTIONS[provider]},
        "filename": graph_file,
        "head_size": a.head_dim,
        "hidden_size": a.hidden_size,
        "num_attention_heads": a.num_attention_heads,
        "num_hidden_layers": a.num_hidden_layers,
        "num_key_value_heads": a.num_key_value_heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    return {
        "model": {
            "type": "llama",
            "context_length": plan.target.context,
            "vocab_size": a.vocab_size,
            **{key: value for key, value in special.items() if value is not None},
            "decoder": decoder,
        },
        "search": _search(plan.target.context, generation),
    }


def _search(context: int, generation: GenerationDefaults) -> dict[str, object]:
    search: dict[str, object] = {
        "do_sample": generation.do_sample,
        "temperature": generation.temperature,
        "top_k": generation.top_k,
        "top_p": generation.top_p,
        "repetition_penalty": generation.repetition_penalty,
    }
    defaults: dict[str, object] = {"do_sample": False, "max_length": context, "past_present_share_buffer": True}
    return defaults | {key: value for key, value in search.items() if value is not None}
