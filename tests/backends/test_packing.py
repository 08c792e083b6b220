"""Packing has an inverse, is the bit order of the operator's text, and onnxruntime reads the weights that we meant.

Source of the order: onnxruntime docs/ContribOperators.md, com.microsoft.MatMulNBits ("B ... is stored as uint8_t with
shape [N, k_blocks, blob_size]", low-order bits first; a uint8 zero_points "has the same packing method as input B,
[N * CeilDiv(n_blocks_per_col * bits, 8)]") and GatherBlockQuantized.
"""

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgeforge.backends.onnx.packing import pack, pad_to_blocks, split, unpack
from edgeforge.quantization.rtn import quantize
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor, dequantize


def codes_strategy(bits: int) -> st.SearchStrategy[NDArray[np.int8]]:
    half = 2 ** (bits - 1)
    shape = st.tuples(st.integers(1, 5), st.integers(1, 70))
    return arrays(np.int8, shape, elements=st.integers(-half, half - 1))


@pytest.mark.parametrize("bits", [2, 4, 8])
@given(data=st.data())
def test_unpack_is_the_inverse_of_pack(bits: int, data: st.DataObject) -> None:
    codes = data.draw(codes_strategy(bits))
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (codes.shape[0], -(-codes.shape[1] * bits // 8))
    np.testing.assert_array_equal(unpack(packed, bits, codes.shape[1]), codes)


@given(data=st.data())
def test_six_bits_are_four_and_two(data: st.DataObject) -> None:
    """c - z = 4 (h - z_h) + (l - z_l), and both parts fit their bits."""
    codes = data.draw(codes_strategy(6))
    (high, low), (high_zero, low_zero) = split(codes), split(codes[::-1, ::-1].copy())
    for part, bits in ((high, 4), (low, 2)):
        np.testing.assert_array_equal(unpack(pack(part, bits), bits, part.shape[1]), part)
    got = 4 * (high.astype(int) - high_zero) + (low.astype(int) - low_zero)
    np.testing.assert_array_equal(got, codes.astype(int) - codes[::-1, ::-1])


def pack_bit_by_bit(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Bit b of unsigned code k goes to bit (k * bits + b) of the row, counted from the low end of its first byte."""
    n, k = codes.shape
    row_bytes = -(-k * bits // 8)
    packed = np.zeros((n, row_bytes), np.uint8)
    for row in range(n):
        for column in range(row_bytes * 8 // bits):
            # A filler is the code of zero, so that a reader who looks at it sees a zero.
            unsigned = (int(codes[row, column]) if column < k else 0) + 2 ** (bits - 1)
            for bit in range(bits):
                place = column * bits + bit
                packed[row, place // 8] |= (unsigned >> bit & 1) << place % 8
    return packed


@pytest.mark.parametrize("bits", [2, 4, 8])
@given(data=st.data())
def test_bytes_are_those_of_the_operators_text(bits: int, data: st.DataObject) -> None:
    codes = data.draw(codes_strategy(bits))
    np.testing.assert_array_equal(pack(codes, bits), pack_bit_by_bit(codes, bits))


@pytest.mark.parametrize("bits", [4, 8])
def test_memory_order_is_nothing_to_the_packer(bits: int) -> None:
    codes = np.random.default_rng(0).integers(-8, 8, (6, 10)).astype(np.int8)
    np.testing.assert_array_equal(pack(np.asfortranarray(codes), bits), pack(codes, bits))
    np.testing.assert_array_equal(pack(codes[:, ::2], bits), pack(codes[:, ::2].copy(), bits))


def test_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="3-bit"):
        pack(np.zeros((1, 8), np.int8), 3)


@pytest.mark.parametrize(("k", "block", "padded"), [(172, 32, 192), (64, 32, 64), (1, 16, 16), (172, 128, 256)])
def test_a_short_last_block_is_filled_with_the_code_of_zero(k: int, block: int, padded: int) -> None:
    codes = np.full((2, k), 5, np.int8)
    got = pad_to_blocks(codes, block)
    assert got.shape == (2, padded)
    np.testing.assert_array_equal(got[:, :k], codes)
    assert not got[:, k:].any()


# what onnxruntime makes of our bytes


def run(node_inputs: dict[str, NDArray[np.generic]], op: str, feed: str, **attributes: int) -> NDArray[np.float32]:
    """One com.microsoft node on the CPU; every input but `feed` is an initializer, as in a real graph."""
    kinds = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT, "int64": TensorProto.INT64}

    def kind(array: NDArray[np.generic]) -> int:
        return int(kinds[array.dtype.name])

    node = helper.make_node(op, list(node_inputs), ["y"], domain="com.microsoft")
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    constants = [
        helper.make_tensor(name, kind(array), array.shape, array.tobytes(), raw=True)
        for name, array in node_inputs.items()
        if name != feed
    ]
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(feed, kind(node_inputs[feed]), node_inputs[feed].shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {feed: node_inputs[feed]})[0])


def random_tensor(n: int, k: int, bits: int, group_size: int, *, symmetric: bool) -> QuantizedTensor:
    scheme = QuantizationScheme(name=f"w{bits}a16", bits=bits, group_size=group_size, symmetric=symmetric)
    # A bias, so that zero points are far from the middle.
    return quantize(np.random.default_rng(k + bits).standard_normal((n, k)).astype(np.float32) + 0.5, scheme)


def packed_arrays(tensor: QuantizedTensor) -> dict[str, NDArray[np.generic]]:
    assert tensor.scheme.group_size is not None
    arrays: dict[str, NDArray[np.generic]] = {
        "weight": pack(pad_to_blocks(tensor.codes, tensor.scheme.group_size), tensor.scheme.bits),
        "scales": tensor.scales,
    }
    if tensor.zero_points is not None:
        arrays["zero_points"] = pack(tensor.zero_points, tensor.scheme.bits)
    return arrays


def matmul_nbits(x: NDArray[np.float32], tensor: QuantizedTensor, accuracy_level: int) -> NDArray[np.float32]:
    n, k = tensor.codes.shape
    bits, size = tensor.scheme.bits, tensor.scheme.group_size
    assert size is not None
    packed = packed_arrays(tensor)
    packed["weight"] = packed["weight"].reshape(n, tensor.scheme.groups(k), size * bits // 8)
    attributes = {"K": k, "N": n, "bits": bits, "block_size": size, "accuracy_level": accuracy_level}
    return run({"x": x} | packed, "MatMulNBits", "x", **attributes)


CASES = [(64, 32), (64, 64), (172, 32), (172, 64), (172, 128), (40, 64), (8, 16), (576, 64)]


@pytest.mark.parametrize(("k", "group_size"), CASES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_onnxruntime_dequantizes_to_the_same_floats(bits: int, symmetric: bool, k: int, group_size: int) -> None:
    """Its own dequantization, seen through the identity matrix at accuracy_level 0, equals ours to the last bit."""
    tensor = random_tensor(24, k, bits, group_size, symmetric=symmetric)
    got = matmul_nbits(np.eye(k, dtype=np.float32), tensor, accuracy_level=0)
    np.testing.assert_array_equal(got, dequantize(tensor).T)


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_onnxruntimes_int8_kernels_multiply_with_the_same_weights(bits: int, symmetric: bool, tokens: int) -> None:
    """At accuracy_level 4, as in our graphs: only the activations' rounding to int8 is between the two."""
    tensor = random_tensor(40, 172, bits, 32, symmetric=symmetric)
    x = np.random.default_rng(0).standard_normal((tokens, 172)).astype(np.float32)
    got, want = matmul_nbits(x, tensor, accuracy_level=4), x @ dequantize(tensor).T
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()


@pytest.mark.parametrize(("k", "group_size"), [(64, 32), (64, 64), (576, 64), (128, 128), (48, 16)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_onnxruntime_gathers_the_same_rows(bits: int, symmetric: bool, k: int, group_size: int) -> None:
    tensor = random_tensor(50, k, bits, group_size, symmetric=symmetric)
    ids = np.array([[3, 49, 0], [7, 3, 3]])
    packed = packed_arrays(tensor)
    inputs = {"weight": packed.pop("weight"), "ids": ids} | packed
    attributes = {"bits": bits, "block_size": group_size, "gather_axis": 0, "quantize_axis": 1}
    got = run(inputs, "GatherBlockQuantized", "ids", **attributes)
    np.testing.assert_array_equal(got, dequantize(tensor)[ids])
