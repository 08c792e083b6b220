"""The weights in a finished ONNX file, read by the onnx package and the operators' text alone, are the quantizer's.

Nothing of edgeforge's backend is used to read: protobuf, external data offsets, and the arithmetic that
onnxruntime's docs/ContribOperators.md gives for MatMulNBits and GatherBlockQuantized.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from built import Build, all_rows, build_once
from numpy.typing import NDArray

from edgeforge.model.checkpoint import Checkpoint, LazyTensor
from edgeforge.quantization import search
from edgeforge.quantization.scheme import QuantizationScheme, QuantizedTensor, dequantize

DTYPES = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.UINT8: np.uint8,
}


class OnnxFile:
    """A graph and its external data, without onnxruntime and without edgeforge."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.graph = onnx.load(str(path), load_external_data=False).graph
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        self.producers = {output: node for node in self.graph.node for output in node.output}

    def array(self, name: str) -> NDArray[np.generic]:
        tensor = self.initializers[name]
        place = {entry.key: entry.value for entry in tensor.external_data}
        with (self.path.parent / place["location"]).open("rb") as file:
            file.seek(int(place["offset"]))
            content = file.read(int(place["length"]))
        return np.frombuffer(content, DTYPES[tensor.data_type]).reshape(tuple(tensor.dims))

    def nodes(self, *kinds: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self.graph.node if node.op_type in kinds)

    def consumers(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if name in node.input]


def attributes(node: onnx.NodeProto) -> dict[str, int]:
    return {item.name: int(onnx.helper.get_attribute_value(item)) for item in node.attribute}


def unsigned_codes(packed: NDArray[np.generic], bits: int) -> NDArray[np.int32]:
    """[N, bytes] -> [N, bytes * 8 / bits], the low-order bits first."""
    if bits == 8:
        return packed.astype(np.int32)
    assert bits in (2, 4)
    parts = [packed.astype(np.int32) >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(len(packed), -1)


def block_weights(
    file: OnnxFile, weight: str, scales: str, zero_points: str | None, bits: int, block_size: int
) -> NDArray[np.float64]:
    """[N, blocks * block_size], exact: (code - zero point) * scale, the zero point 2^(bits-1) where none is given."""
    stored = file.array(weight)
    codes = unsigned_codes(stored.reshape(len(stored), -1), bits)
    per_block = file.array(scales).astype(np.float32).reshape(len(stored), -1)
    blocks = per_block.shape[1]
    assert codes.shape[1] == blocks * block_size
    if zero_points:
        packed = file.array(zero_points)
        zeros = unsigned_codes(packed.reshape(len(stored), -1), bits)[:, :blocks]
    else:
        zeros = np.full((len(stored), blocks), 2 ** (bits - 1), np.int32)
    steps = codes.reshape(len(stored), blocks, block_size) - zeros[:, :, None]
    return (steps * per_block[:, :, None].astype(np.float64)).reshape(len(stored), -1)


def added_offsets(file: OnnxFile, node: onnx.NodeProto) -> NDArray[np.float32] | None:
    """The matrix [N, G] that multiplies the activations' group sums in the Add after a MatMulNBits, if there is one."""
    consumers = file.consumers(node.output[0])  # none: it is the graph's output
    if [consumer.op_type for consumer in consumers] != ["Add"]:
        return None
    (consumer,) = consumers
    other = file.producers[next(name for name in consumer.input if name != node.output[0])]
    if other.op_type != "FusedMatMul" or file.producers[other.input[0]].op_type != "ReduceSum":
        return None
    assert attributes(other)["transB"] == 1
    return file.array(other.input[1]).astype(np.float32)


def added_product(file: OnnxFile, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The MatMulNBits whose product is added to that of `node`, if there is one."""
    consumers = file.consumers(node.output[0])
    if [consumer.op_type for consumer in consumers] != ["Add"] or consumers[0].input[0] != node.output[0]:
        return None
    other = file.producers[consumers[0].input[1]]
    return other if other.op_type == "MatMulNBits" else None


def factor(file: OnnxFile, name: str) -> float:
    """What the input of a matmul was multiplied with."""
    tensor = file.initializers[file.producers[name].input[1]]
    return float(onnx.numpy_helper.to_array(tensor))


def own_weights(file: OnnxFile, node: onnx.NodeProto) -> NDArray[np.float64]:
    """float64 [N, K] of a MatMulNBits alone."""
    a = attributes(node)
    zero_points = node.input[3] if len(node.input) > 3 else None
    weights = block_weights(file, node.input[1], node.input[2], zero_points, a["bits"], a["block_size"])
    assert weights.shape[0] == a["N"]
    return weights[:, : a["K"]]


def matmul_weights(file: OnnxFile) -> Iterator[NDArray[np.float32]]:
    """The weight matrix [N, K] of every matmul with stored weights, in the graph's order."""
    for node in file.nodes("MatMulNBits", "FusedMatMul"):
        if node.input[1] not in file.initializers:
            continue
        if node.op_type == "FusedMatMul":
            if file.producers[node.input[0]].op_type != "ReduceSum":  # else it is a MatMulNBits' offsets
                yield file.array(node.input[1]).astype(np.float32)
            continue
        a = attributes(node)
        if a["bits"] == 2:  # it belongs to the one before
            continue
        weights = own_weights(file, node)
        second = added_product(file, node)
        if second is not None:
            assert file.producers[second.input[0]].input[0] == node.input[0]
            weights = weights + own_weights(file, second) * factor(file, second.input[0])
        offsets = added_offsets(file, node)
        weights = weights.astype(np.float32)
        if offsets is not None:
            weights = weights + np.repeat(offsets, a["K"] // offsets.shape[1], axis=1)
        yield weights


def embedding_weights(file: OnnxFile) -> NDArray[np.float32]:
    """[V, D] of the one gather that input_ids index."""
    (node,) = (node for node in file.nodes("GatherBlockQuantized", "Gather") if node.input[1] == "input_ids")
    if node.op_type == "Gather":
        return file.array(node.input[0]).astype(np.float32)
    a = attributes(node)
    assert (a["gather_axis"], a["quantize_axis"]) == (0, 1)
    zero_points = node.input[3] if len(node.input) > 3 else None
    weights = block_weights(file, node.input[0], node.input[2], zero_points, a["bits"], a["block_size"])
    return weights.astype(np.float32)


def intended(tensor: LazyTensor, scheme: QuantizationScheme) -> NDArray[np.float32]:
    """What the scheme makes of all rows: the checkpoint's own codes where it holds them on that grid, else rounded."""
    rows = tensor.shape[0]
    if scheme.is_float:
        float_type = np.float16 if scheme.bits == 16 else np.float32
        return tensor.rows(0, rows).astype(float_type).astype(np.float32)
    grid = tensor.grid
    if (
        grid is not None
        and (grid.bits, grid.group_size) == (scheme.bits, scheme.group_size)
        and (scheme.offset or (scheme.symmetric and not grid.offset))
    ):
        stored = tensor.stored_codes(0, rows)
        assert stored is not None
        offsets = stored.offsets
        if offsets is not None and scheme.scale_dtype == "f16":
            offsets = offsets.astype(np.float16).astype(np.float32)
        return dequantize(QuantizedTensor(scheme=scheme, codes=stored.codes, scales=stored.scales, offsets=offsets))
    return dequantize(search.quantize(tensor.rows(0, rows), scheme))


def intended_matmuls(
    checkpoint: Checkpoint, schemes: Mapping[str, QuantizationScheme]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every matmul of the decoder in the order of the computation, q, k, v and gate, up as one."""
    a = checkpoint.architecture

    def of(*names: str) -> tuple[str, NDArray[np.float32]]:
        return names[0], np.concatenate([intended(checkpoint.tensor(name), schemes[name]) for name in names])

    for i in range(a.num_hidden_layers):
        layer = f"model.layers.{i}"
        yield of(*(f"{layer}.self_attn.{part}_proj.weight" for part in "qkv"))
        yield of(f"{layer}.self_attn.o_proj.weight")
        yield of(f"{layer}.mlp.gate_proj.weight", f"{layer}.mlp.up_proj.weight")
        yield of(f"{layer}.mlp.down_proj.weight")
    yield of("model.embed_tokens.weight" if a.tie_word_embeddings else "lm_head.weight")


def assert_the_file_holds_what_was_meant(build: Build) -> None:
    checkpoint, schemes = build.checkpoint, build.plan.schemes
    files = [OnnxFile(build.bundle / "model" / graph) for graph in ("model.onnx", "scoring.onnx")]
    found = [matmul_weights(file) for file in files]
    for name, meant in intended_matmuls(checkpoint, schemes):
        for file, weights in zip(files, found, strict=True):
            np.testing.assert_array_equal(next(weights), meant, err_msg=f"{file.path.name}: {name}")
    assert [next(weights, None) for weights in found] == [None, None]
    table = intended(checkpoint.tensor("model.embed_tokens.weight"), schemes["model.embed_tokens.weight"])
    for file in files:
        np.testing.assert_array_equal(embedding_weights(file), table)
        assert_norms(file, checkpoint)


def assert_norms(file: OnnxFile, checkpoint: Checkpoint) -> None:
    layers = [f"model.layers.{i}." for i in range(checkpoint.architecture.num_hidden_layers)]
    parts = ("input_layernorm.weight", "post_attention_layernorm.weight")
    names = [layer + part for layer in layers for part in parts] + ["model.norm.weight"]
    norms = [file.array(node.input[1]) for node in file.nodes("SimplifiedLayerNormalization")]
    norms += [file.array(node.input[2]) for node in file.nodes("SkipSimplifiedLayerNormalization")]
    for norm, name in zip(norms, names, strict=True):
        np.testing.assert_array_equal(norm, all_rows(checkpoint, name).astype(norm.dtype), err_msg=name)


@pytest.mark.slow
def test_the_demo(demo_int4: Build) -> None:
    carried = [scheme for scheme in demo_int4.plan.schemes.values() if scheme.offset]
    assert len(carried) == 210  # its linears keep the GGUF's own codes
    assert_the_file_holds_what_was_meant(demo_int4)


@pytest.mark.slow
def test_the_demo_for_a_gpu(demo_gguf: Path, tmp_path: Path) -> None:
    assert_the_file_holds_what_was_meant(build_once(tmp_path, "demo", target="rtx4090"))


def test_carried_codes_are_the_original_weights(demo_int4: Build) -> None:
    """No second rounding: what the file holds is what ggml's own dequantizer gives, to float32's last bits."""
    file = OnnxFile(demo_int4.bundle / "model" / "model.onnx")
    checkpoint = demo_int4.checkpoint
    _, o, gate_up, down = (next(weights) for weights in [matmul_weights(file)] for _ in range(4))
    layer = "model.layers.0"
    for got, names in (
        (o, ["self_attn.o_proj"]),
        (gate_up, ["mlp.gate_proj", "mlp.up_proj"]),
        (down, ["mlp.down_proj"]),
    ):
        original = np.concatenate([all_rows(checkpoint, f"{layer}.{name}.weight") for name in names])
        np.testing.assert_allclose(got, original, rtol=0, atol=2e-7 * np.abs(original).max())


def test_the_fp32_model(stories_int4: Build) -> None:
    assert {scheme.bits for scheme in stories_int4.plan.schemes.values()} == {4, 8}
    assert_the_file_holds_what_was_meant(stories_int4)


@pytest.mark.parametrize("target", ["cpu", "rtx4090"])
@pytest.mark.parametrize(
    ("scheme", "group_size", "symmetric"),
    [
        ("w4a16", 128, True),
        ("w4a16", 128, False),
        ("w4a16", 32, True),
        ("w4a16", 32, False),
        ("w8a16", 64, True),
        ("w8a16", 64, False),
        ("f16", None, None),
        ("f32", None, None),
    ],
)
def test_every_scheme_of_the_fp32_model(
    stories: Path, tmp_path: Path, target: str, scheme: str, group_size: int | None, symmetric: bool | None
) -> None:
    build = build_once(tmp_path, str(stories), target=target, scheme=scheme, group_size=group_size, symmetric=symmetric)
    assert_the_file_holds_what_was_meant(build)


@pytest.mark.parametrize("activations", ["f32", "f16"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 128])
def test_six_bits_of_the_fp32_model(
    stories: Path, tmp_path: Path, group_size: int, symmetric: bool, activations: str
) -> None:
    target = tmp_path / "target.toml"
    target.write_text(f'extends = "cpu"\nactivations = "{activations}"\nkv_cache = "{activations}"\n')
    build = build_once(
        tmp_path, str(stories), target=str(target), scheme="w6a16", group_size=group_size, symmetric=symmetric
    )
    assert {scheme.bits for scheme in build.plan.schemes.values()} == {6, 8}
    assert_the_file_holds_what_was_meant(build)
