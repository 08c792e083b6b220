"""The three graphs are valid ONNX, keep onnxruntime-genai's contract, and read one data file within its bounds."""

from itertools import pairwise
from pathlib import Path

import onnx
import pytest
from built import Build
from onnx import TensorProto, helper

BUILDS = ["stories_f32", "stories_int4", "demo_int4"]
LOGITS = {"model.onnx": 1, "scoring.onnx": "sequence_length", "runtime.onnx": "logits_length"}
GRAPHS = list(LOGITS)


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest) -> Build:
    found: Build = request.getfixturevalue(request.param)
    return found


def model(build: Build, name: str) -> onnx.ModelProto:
    return onnx.load(str(build.bundle / "model" / name), load_external_data=False)


def shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("name", GRAPHS)
def test_onnx_accepts_the_graph(build: Build, name: str) -> None:
    """The checker passes, but for onnxruntime's own norm, which it keeps in ONNX's domain."""
    checked = model(build, name)
    for node in checked.graph.node:
        if node.op_type == "SimplifiedLayerNormalization":
            node.domain = "com.microsoft"
    for tensor in list(checked.graph.initializer):
        if tensor.data_location == TensorProto.EXTERNAL:  # as inputs: where their bytes are is the next test's
            checked.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
            checked.graph.initializer.remove(tensor)
    onnx.checker.check_model(checked)


@pytest.mark.parametrize("name", GRAPHS)
def test_inputs_and_outputs_are_those_that_genai_feeds(build: Build, name: str) -> None:
    a, graph = build.checkpoint.architecture, model(build, name).graph
    inputs = {value.name: value for value in graph.input}
    outputs = {value.name: value for value in graph.output}
    caches = [f"{i}.{part}" for i in range(a.num_hidden_layers) for part in ("key", "value")]
    asked = {"logits_from"} if name == "runtime.onnx" else set()
    assert set(inputs) == {"input_ids", "attention_mask", *asked, *(f"past_key_values.{cache}" for cache in caches)}
    assert set(outputs) == {"logits", *(f"present.{cache}" for cache in caches)}
    assert inputs["input_ids"].type.tensor_type.elem_type == TensorProto.INT64
    assert shape(inputs["attention_mask"]) == ["batch_size", "total_sequence_length"]
    for cache in caches:
        past, present = inputs[f"past_key_values.{cache}"], outputs[f"present.{cache}"]
        assert shape(past) == ["batch_size", a.num_key_value_heads, "max_sequence_length", a.head_dim]
        assert past.type == present.type  # one buffer, bound as both
    assert shape(outputs["logits"]) == ["batch_size", LOGITS[name], a.vocab_size]


@pytest.mark.parametrize("name", GRAPHS)
def test_every_array_lies_in_the_data_file_and_none_overlap(build: Build, name: str) -> None:
    items = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.UINT8: 1}
    ranges = set()
    for tensor in model(build, name).graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            assert len(tensor.raw_data) < 64, tensor.name
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert place["location"] == "model.onnx.data"
        size = items[tensor.data_type]
        for dim in tensor.dims:
            size *= dim
        assert int(place["length"]) == size, tensor.name
        ranges.add((int(place["offset"]), int(place["offset"]) + size))
    # The same range may be read twice, in two shapes (a tied embedding); two ranges never share a byte.
    ordered = sorted(ranges)
    for (_, stop), (start, _) in pairwise(ordered):
        assert stop <= start
    assert ordered[-1][1] == (build.bundle / "model" / "model.onnx.data").stat().st_size


def test_all_graphs_read_the_same_bytes(build: Build) -> None:
    def places(name: str) -> dict[str, list[tuple[str, str]]]:
        initializers = model(build, name).graph.initializer
        return {t.name: [(e.key, e.value) for e in t.external_data] for t in initializers if t.external_data}

    assert places("model.onnx") == places("scoring.onnx") == places("runtime.onnx")


def test_a_layer_is_as_few_nodes_as_onnxruntime_has_fusions_for(demo_int4: Build) -> None:
    """q, k, v one matmul with attention's rotary inside; gate and up one; every addition in a norm."""
    counts: dict[str, int] = {}
    for node in model(demo_int4, "model.onnx").graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    layers = demo_int4.checkpoint.architecture.num_hidden_layers
    assert counts["MatMulNBits"] == 4 * layers + 1
    assert counts["GroupQueryAttention"] == layers
    assert counts["SkipSimplifiedLayerNormalization"] == 2 * layers
    assert counts["SimplifiedLayerNormalization"] == 1
    assert counts["GatherBlockQuantized"] == 1
    assert "RotaryEmbedding" not in counts
    assert "MatMul" not in counts


def test_heads_too_narrow_for_the_operator_rotate_outside_of_it(stories_f32: Build) -> None:
    nodes = model(stories_f32, "model.onnx").graph.node
    assert sum(node.op_type == "RotaryEmbedding" for node in nodes) == 2 * 5


@pytest.mark.parametrize("name", GRAPHS)
def test_names_are_unique_and_tell_where_a_node_belongs(build: Build, name: str) -> None:
    nodes = model(build, name).graph.node
    assert len({node.name for node in nodes}) == len(nodes)
    attention = [node.name for node in nodes if node.op_type == "GroupQueryAttention"]
    assert [found.split("/")[0] for found in attention] == [f"layers.{i}" for i in range(len(attention))]


def test_no_path_of_the_machine_is_in_a_graph(build: Build, tmp_path: Path) -> None:
    for name in GRAPHS:
        content = (build.bundle / "model" / name).read_bytes()
        assert str(Path.home()).encode() not in content or Path.home() == Path("/")
        assert tmp_path.parent.name.encode() not in content
