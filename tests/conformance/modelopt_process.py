"""NVIDIA ModelOpt's own quantizer and exporters, run in a process of their own:

    python modelopt_process.py CHECKPOINT OUT SCHEME...

The process is for what ModelOpt's import does to transformers, torch and the warnings. SCHEME-awq searches scales for
the input channels; SCHEME alone takes largest magnitudes and rounds to the nearest. All in float32. It writes, for each
scheme, OUT/SCHEME/unified and OUT/SCHEME/trtllm-TPxPP; and OUT/amax.json: the largest magnitude of each linear's input
and of each layer's keys and values on the tokens that it was calibrated with, which are there too.
OUT/w4a16/packed.safetensors has what its packer makes of the scales in OUT/w4a16-scales.safetensors.
"""

import copy
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import modelopt.torch.quantization as mtq
import numpy as np
import torch
import transformers
from modelopt.torch.export import export_hf_checkpoint, export_tensorrt_llm_checkpoint
from modelopt.torch.export.quant_utils import pack_int4_in_uint8
from safetensors.torch import load_file, save_file

CONFIGS = {
    "fp8": mtq.FP8_DEFAULT_CFG,
    "fp8-dynamic": mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG,
    "w4a16": mtq.INT4_AWQ_CFG,
    "w4a8": mtq.W4A8_AWQ_BETA_CFG,
    "nvfp4": mtq.NVFP4_DEFAULT_CFG,
}
MAPPINGS: dict[str, tuple[tuple[int, int], ...]] = dict.fromkeys(("fp8", "w4a16", "w4a8"), ((1, 1), (4, 1), (2, 2)))
MAPPINGS |= {"w4a16-awq": ((4, 1),), "w4a8-awq": ((2, 2),)}  # searched for each anew, which takes seconds
FUSED = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))
GROUP_SIZE = 128
TOKENS = np.random.default_rng(5).integers(0, 256, (2, 64))


def quantized(checkpoint: str, scheme: str) -> torch.nn.Module:
    """The model with ModelOpt's quantizers, calibrated; an FP8 cache where ModelOpt's config for the scheme has one."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    config = copy.deepcopy(CONFIGS[scheme.removesuffix("-awq")])
    config["algorithm"] = {"method": "awq_lite", "alpha_step": 0.5} if scheme.endswith("-awq") else "max"
    entries = config["quant_cfg"]
    for entry in entries:
        steps = entry.get("cfg")
        for step in steps if isinstance(steps, list) else [steps]:
            if step and step.get("num_bits") == 4:
                step["block_sizes"][-1] = GROUP_SIZE
    if scheme == "fp8":
        config["quant_cfg"] = [*entries, *mtq.FP8_KV_CFG["quant_cfg"]]

    def calibrate(model: torch.nn.Module) -> None:
        with torch.no_grad():
            model(torch.from_numpy(TOKENS))

    model = mtq.quantize(model, config, calibrate)
    if scheme == "fp8":  # for every other format the exporter does this itself
        share_scales(model)
    return model


def share_scales(model: torch.nn.Module) -> None:
    for layer in model.get_submodule("model.layers"):
        for names in FUSED:
            quantizers = [layer.get_submodule(name).weight_quantizer for name in names]
            largest = torch.stack([quantizer.amax for quantizer in quantizers]).max()
            for quantizer in quantizers:
                quantizer.amax = largest


def magnitudes(model: torch.nn.Module) -> Mapping[str, object]:
    inputs, keys, values = {}, [], []
    for i, layer in enumerate(model.get_submodule("model.layers")):
        keys.append(layer.self_attn.k_bmm_quantizer.amax.item())
        values.append(layer.self_attn.v_bmm_quantizer.amax.item())
        for name in (*FUSED[0], "self_attn.o_proj", *FUSED[1], "mlp.down_proj"):
            inputs[f"model.layers.{i}.{name}.weight"] = layer.get_submodule(name).input_quantizer.amax.item()
    return {"inputs": inputs, "keys": keys, "values": values, "tokens": TOKENS.tolist()}


def pack(checkpoint: str, out: Path) -> None:
    """Its int4 packer, from scales that somebody else chose."""
    weights = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).state_dict()
    scales = load_file(out / "w4a16-scales.safetensors")
    packed = {name: pack_int4_in_uint8(weights[name], scales[name], GROUP_SIZE) for name in scales}
    save_file(packed, out / "w4a16" / "packed.safetensors")


def main(checkpoint: str, out: Path, schemes: list[str]) -> None:
    for scheme in schemes:
        for tp, pp in MAPPINGS.get(scheme, ()):
            model = quantized(checkpoint, scheme)
            if (scheme, tp, pp) == ("fp8", 1, 1):
                (out / "amax.json").write_text(json.dumps(magnitudes(model)))
            with torch.inference_mode():
                export_tensorrt_llm_checkpoint(
                    model,
                    "llama",
                    torch.float32,
                    export_dir=out / scheme / f"trtllm-{tp}x{pp}",
                    inference_tensor_parallel=tp,
                    inference_pipeline_parallel=pp,
                )
        model = quantized(checkpoint, scheme)
        with torch.inference_mode():
            export_hf_checkpoint(model, dtype=torch.float32, export_dir=out / scheme / "unified")
    pack(checkpoint, out)


if __name__ == "__main__":
    torch.set_num_threads(1)  # matrices this small are slower on more
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
