"""NVIDIA ModelOpt's own scales and packers on one matrix, run in a process of their own:

    python modelopt_codes.py IN.npz OUT.npz

IN holds float32 `weights`, a matrix's `amax`, and `int4_scales` of someone else's. OUT holds, format by format, what
ModelOpt makes of them. The process is for what ModelOpt's import does to torch and the warnings.
"""

import sys

import numpy as np
import torch
from modelopt.torch.export import quant_utils
from modelopt.torch.quantization.config import QuantizerAttributeConfig
from modelopt.torch.quantization.nn import TensorQuantizer
from modelopt.torch.quantization.qtensor import NVFP4QTensor


def e4m3_scale(amax: torch.Tensor, axis: int | None) -> torch.Tensor:
    quantizer = TensorQuantizer(QuantizerAttributeConfig(num_bits=(4, 3), axis=axis))
    quantizer.amax = amax
    return quant_utils.get_scaling_factor(quantizer)


def main(source: str, target: str) -> None:
    given = np.load(source)
    w, amax = torch.from_numpy(given["weights"]), torch.from_numpy(given["amax"])
    tensor_scale = e4m3_scale(amax, None).squeeze()
    channel_scales = e4m3_scale(w.abs().amax(dim=1, keepdim=True), 0)
    group = w.shape[1] // given["int4_scales"].shape[1]
    group_scales = quant_utils.get_scaling_factor_from_weight(w, group)
    nvfp4, block_scales, nvfp4_scale = NVFP4QTensor.quantize(w, 16, None, amax / (6.0 * 448.0))
    made = {
        "fp8_scale": tensor_scale,
        "fp8": quant_utils.to_quantized_weight(w, tensor_scale, "fp8").view(torch.uint8),
        "channel_scales": channel_scales,
        "channel": quant_utils.to_quantized_weight(w, channel_scales, "fp8_pc_pt").view(torch.uint8),
        "int4_scales": group_scales,
        "int4": quant_utils.pack_int4_in_uint8(w, group_scales, group),
        "int4_of_given_scales": quant_utils.pack_int4_in_uint8(w, torch.from_numpy(given["int4_scales"]), group),
        "nvfp4": nvfp4._quantized_data,
        "nvfp4_block_scales": block_scales.view(torch.uint8),
        "nvfp4_scale": nvfp4_scale,
    }
    np.savez(target, **{name: tensor.numpy() for name, tensor in made.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
