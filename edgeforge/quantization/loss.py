"""What a rounded matrix costs its layer's output, from the inputs' Gram matrix alone: no forward pass.

    || X W^T - X V^T ||^2 = tr((W - V) G (W - V)^T)        G = X^T X

X float32 [T, K] are the inputs met on calibration text; G, the Hessian of the layer's loss up to a factor, is all that
GPTQ, AWQ and the bit budget ever need of them.
"""

import numpy as np
import torch

from edgeforge.quantization.scheme import QuantizedTensor, dequantize


def output_loss(weights: torch.Tensor, rounded: torch.Tensor, gram: torch.Tensor) -> float:
    """tr((W - V) G (W - V)^T) of [N, K] matrices and a Gram matrix [K, K], all float32 on one device."""
    return float(row_losses(weights, rounded, gram).sum(dtype=torch.float64))


def row_losses(weights: torch.Tensor, rounded: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """The same, of each row: float32 [N]."""
    change = weights - rounded
    return (change @ gram).mul_(change).sum(dim=1)


def values(tensor: QuantizedTensor, device: torch.device) -> torch.Tensor:
    """What the codes stand for, float32 [N, K] on `device`."""
    return torch.from_numpy(np.ascontiguousarray(dequantize(tensor))).to(device)
