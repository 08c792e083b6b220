"""Pure functions on arrays: float32 weights in, a neutral `QuantizedTensor` out."""
