"""ONNX operators as methods on values, so that the decoder in `llama.py` reads like the model.

A thin layer over onnx_ir: each method adds one node and returns its output; scopes give the names. Attributes and
input orders are those of onnxruntime/docs/ContribOperators.md (com.microsoft) and the ONNX operator set 21.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeforge.backends.onnx.layout import Matrix, Slot
from edgeforge.quantization.scheme import HIGH_BITS, LOW_BITS

MICROSOFT = "com.microsoft"
OPSET_IMPORTS = {"": 21, MICROSOFT: 1}
IR_VERSION = 10
DATA_TYPES = {"u8": ir.DataType.UINT8, "f16": ir.DataType.FLOAT16, "f32": ir.DataType.FLOAT, "i64": ir.DataType.INT64}
INT8_ACTIVATIONS = 4
"""MatMulNBits accuracy_level 4: the CPU rounds activations to int8 per block; other devices ignore it."""

Attribute = int | float | str | Sequence[int]


class Graph:
    """A graph under construction."""

    def __init__(self, data_file: str) -> None:
        self._data_file = data_file
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}
        self._scopes: list[str] = []
        self._names: Counter[str] = Counter()
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names of nodes made inside begin with `name`."""
        self._scopes.append(name)
        yield
        self._scopes.pop()

    # the graph's edge

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(DATA_TYPES[dtype]))
        self._inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        value.name, value.shape, value.type = name, ir.Shape(shape), ir.TensorType(DATA_TYPES[dtype])
        self._outputs.append(value)

    def stored(self, slot: Slot, shape: Sequence[int] | None = None) -> ir.Value:
        """An array of the data file; `shape` reads the same bytes in another shape."""
        dims = tuple(shape) if shape is not None else slot.shape
        name = slot.name if dims == slot.shape else f"{slot.name}[{'x'.join(map(str, dims))}]"
        if name not in self._initializers:
            tensor = ir.ExternalTensor(
                self._data_file, slot.offset, slot.size, DATA_TYPES[slot.dtype], shape=ir.Shape(dims), name=name
            )
            self._initialize(name, tensor, dims)
        return self._initializers[name]

    def constant(self, value: int | Sequence[int]) -> ir.Value:
        """A small int64 constant."""
        array = np.asarray(value, np.int64)
        name = "const/" + "_".join(map(str, array.reshape(-1))) + ("" if array.ndim else "_scalar")
        if name not in self._initializers:
            self._initialize(name, ir.Tensor(array, name=name), array.shape)
        return self._initializers[name]

    def number(self, value: float, dtype: str) -> ir.Value:
        """A scalar constant of a float type."""
        name = f"const/{value:g}_{dtype}"
        if name not in self._initializers:
            array = np.asarray(value, {"f16": np.float16, "f32": np.float32}[dtype])
            self._initialize(name, ir.Tensor(array, name=name), ())
        return self._initializers[name]

    def _initialize(self, name: str, tensor: ir.TensorProtocol, dims: Sequence[int]) -> None:
        shape = ir.Shape(dims)
        self._initializers[name] = ir.Value(
            name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor
        )

    def save(self, path: Path, name: str, producer_version: str) -> None:
        """Write the model; the weights stay in the data file beside it."""
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports=OPSET_IMPORTS,
            name=name,
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="edgeforge", producer_version=producer_version)
        path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))

    # operators

    def _op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
    ) -> list[ir.Value]:
        name = "/".join([*self._scopes, op_type])
        self._names[name] += 1
        if self._names[name] > 1:
            name = f"{name}#{self._names[name]}"
        node = ir.node(op_type, inputs, attributes or {}, domain=domain, num_outputs=outputs, name=name)
        for index, value in enumerate(node.outputs):
            value.name = f"{name}:{index}"
        self._nodes.append(node)
        return list(node.outputs)

    def mul(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._op("Mul", [a, b])[0]

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._op("Add", [a, b])[0]

    def subtract(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._op("Sub", [a, b])[0]

    def to_int32(self, x: ir.Value) -> ir.Value:
        return self._op("Cast", [x], {"to": int(ir.DataType.INT32)})[0]

    def sum(self, x: ir.Value, axis: int) -> ir.Value:
        return self._op("ReduceSum", [x, self.constant([axis])], {"keepdims": 0})[0]

    def dimension(self, x: ir.Value, axis: int) -> ir.Value:
        """int64 scalar: the size of `x` along `axis`."""
        shape = self._op("Shape", [x])[0]
        return self._op("Gather", [shape, self.constant(axis)])[0]

    def range(self, count: ir.Value) -> ir.Value:
        """int64 [count]: 0, 1, ... below an int64 scalar."""
        return self._op("Range", [self.constant(0), count, self.constant(1)])[0]

    def tokens_from(self, x: ir.Value, start: ir.Value) -> ir.Value:
        """[B, T, ...] -> [B, T', ...]: the tokens from `start`, int64 [1], on; a negative one counts from the end."""
        stop, axis = self.constant([np.iinfo(np.int64).max]), self.constant([1])
        return self._op("Slice", [x, start, stop, axis])[0]

    def split(self, x: ir.Value, sizes: Sequence[int]) -> list[ir.Value]:
        """[..., sum(sizes)] -> [..., size] for each size."""
        return self._op("Split", [x, self.constant(sizes)], {"axis": -1}, outputs=len(sizes))

    def reshape(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self._op("Reshape", [x, self.constant(shape)])[0]

    def gather(self, table: ir.Value, ids: ir.Value) -> ir.Value:
        return self._op("Gather", [table, ids], {"axis": 0})[0]

    def silu(self, x: ir.Value) -> ir.Value:
        """x * sigmoid(x)."""
        return self._op("QuickGelu", [x], {"alpha": 1.0}, domain=MICROSOFT)[0]

    def rms_norm(self, x: ir.Value, weight: Matrix, epsilon: float) -> ir.Value:
        attributes: dict[str, Attribute] = {"axis": -1, "epsilon": epsilon, "stash_type": 1}
        return self._op("SimplifiedLayerNormalization", [x, self.stored(weight.weight)], attributes)[0]

    def add_rms_norm(
        self, x: ir.Value, residual: ir.Value, weight: Matrix, epsilon: float
    ) -> tuple[ir.Value, ir.Value]:
        """(norm(x + residual), x + residual)."""
        inputs = [x, residual, self.stored(weight.weight)]
        name = "SkipSimplifiedLayerNormalization"
        outputs = self._op(name, inputs, {"epsilon": epsilon}, domain=MICROSOFT, outputs=4)
        outputs[1].name = outputs[2].name = ""
        return outputs[0], outputs[3]

    def matmul_transposed(self, x: ir.Value, weight: ir.Value) -> ir.Value:
        """x [..., K] with weight [N, K] -> [..., N]."""
        return self._op("FusedMatMul", [x, weight], {"transB": 1}, domain=MICROSOFT)[0]

    def matmul_nbits(self, x: ir.Value, matrix: Matrix) -> ir.Value:
        """x [..., K] with a quantized matrix [N, K] -> [..., N]."""
        assert matrix.scales is not None
        if matrix.low is None:
            scales = self.stored(matrix.scales)
            return self._matmul_nbits(x, matrix, matrix.weight, scales, matrix.zero_points, matrix.scheme.bits)
        scales = self.stored(matrix.scales)
        high = self._matmul_nbits(x, matrix, matrix.weight, scales, matrix.zero_points, HIGH_BITS)
        # Both read the high bits' scales; a power of two changes no rounding of x. By another name: where two kernels
        # pack one float16 initializer, onnxruntime 1.32 gives the second what the first has left of it.
        scales = self.stored(matrix.scales, (math.prod(matrix.scales.shape),))
        quarter = self.mul(x, self.number(1 / (1 << LOW_BITS), matrix.scales.dtype))
        low = self._matmul_nbits(quarter, matrix, matrix.low.weight, scales, matrix.low.zero_points, LOW_BITS)
        return self.add(high, low)

    def _matmul_nbits(
        self, x: ir.Value, matrix: Matrix, weight: Slot, scales: ir.Value, zero_points: Slot | None, bits: int
    ) -> ir.Value:
        inputs = [x, self.stored(weight), scales]
        if zero_points is not None:
            inputs.append(self.stored(zero_points))
        attributes: dict[str, Attribute] = {
            "K": matrix.in_features,
            "N": matrix.out_features,
            "bits": bits,
            "block_size": matrix.block_size,
            "accuracy_level": INT8_ACTIVATIONS,
        }
        return self._op("MatMulNBits", inputs, attributes, domain=MICROSOFT)[0]

    def gather_quantized(self, table: Matrix, ids: ir.Value) -> ir.Value:
        """ids [B, T] -> rows of a quantized table [V, D], [B, T, D]; shares the bytes of `matmul_nbits`."""
        assert table.scales is not None and table.scheme.group_size is not None
        rows = (table.out_features, math.prod(table.weight.shape[1:]))
        inputs = [self.stored(table.weight, rows), ids, self.stored(table.scales)]
        if table.zero_points is not None:
            inputs.append(self.stored(table.zero_points))
        attributes: dict[str, Attribute] = {
            "bits": table.scheme.bits,
            "block_size": table.block_size,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        return self._op("GatherBlockQuantized", inputs, attributes, domain=MICROSOFT)[0]

    def attention(
        self,
        qkv: tuple[ir.Value, ir.Value | None, ir.Value | None],
        past: tuple[ir.Value, ir.Value],
        lengths: tuple[ir.Value, ir.Value],
        rotary: tuple[ir.Value, ir.Value] | None,
        heads: tuple[int, int],
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Causal attention: ([B, T, H hd], present key, present value).

        `qkv`: packed [B, T, (H + 2 KV) hd] and two Nones, or three tensors. `lengths`: (total length - 1 of each
        sequence, int32 [B]; the largest total length, int32 scalar). `rotary`: tables to rotate q and k with, if any.
        """
        inputs = [*qkv, *past, *lengths, *(rotary or ())]
        attributes: dict[str, Attribute] = {
            "num_heads": heads[0],
            "kv_num_heads": heads[1],
            "do_rotary": int(rotary is not None),
        }
        output, key, value = self._op("GroupQueryAttention", inputs, attributes, domain=MICROSOFT, outputs=3)
        return output, key, value

    def rotate(self, x: ir.Value, positions: ir.Value, rotary: tuple[ir.Value, ir.Value]) -> ir.Value:
        """Rotary embedding of [B, T, H hd] at `positions`, int64 [B, T]."""
        return self._op("RotaryEmbedding", [x, positions, *rotary], domain=MICROSOFT)[0]
