"""The residual stream of a bundle's scoring graph, tapped after each decoder layer.

A copy of the graph, in memory, has one more output per layer: x + residual of the norm that comes next, the fourth
output of com.microsoft.SkipSimplifiedLayerNormalization, of which EdgeForge's graphs have two a layer
(`edgeforge.backends.onnx.llama`). The weights stay in the bundle's file. Shape letters: L layers, T tokens, D hidden.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgeforge.runtime.graph import DTYPES, default_threads
from edgeforge.runtime.manifest import ModelRecord
from edgeforge.runtime.model import Model

if TYPE_CHECKING:
    import onnx
    import onnxruntime

NORM = "SkipSimplifiedLayerNormalization"
SUM_OUTPUT = 3  # x + residual
PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}


class UntappableGraph(Exception):
    """Why a graph does not show its residual stream: a sentence."""


def residual_streams(model: Model, ids: Sequence[int]) -> NDArray[np.float32]:
    """float32 [L, T, D]: what flows on after each layer, for ids read from an empty context. UntappableGraph."""
    record = model.manifest.model
    if record.scoring_graph is None:
        raise UntappableGraph("The bundle has no graph whose layers could be looked into.")
    path = model.bundle / record.scoring_graph
    graph, names = tapped(path, record)
    session = _open(graph, path.parent, model.device)
    inputs = {argument.name: argument for argument in session.get_inputs()}
    empty = (1, record.num_key_value_heads, len(ids), record.head_dim)
    feed: dict[str, NDArray[np.generic]] = {
        "input_ids": np.asarray([ids], np.int64),
        "attention_mask": np.ones((1, len(ids)), np.int64),
    }
    for name, argument in inputs.items():
        if name.startswith("past_key_values."):
            feed[name] = np.zeros(empty, DTYPES[argument.type])
    return np.concatenate([np.asarray(each, np.float32) for each in session.run(names, feed)])


def tapped(path: Path, record: ModelRecord) -> "tuple[onnx.ModelProto, list[str]]":
    """The graph with the streams among its outputs, and their names, layer by layer."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False)
    # In order: after each layer's attention, and before the next layer's, the last of which is the final norm.
    norms = [node for node in graph.graph.node if node.op_type == NORM and len(node.output) > SUM_OUTPUT]
    names = [node.output[SUM_OUTPUT] for node in norms][1::2]
    if len(norms) != 2 * record.num_hidden_layers or not all(names):
        raise UntappableGraph(
            f"The graph of backend {record.backend} does not show its residual stream: it has {len(norms)} fused "
            f"norms, not {2 * record.num_hidden_layers}."
        )
    kind = next(each.type.tensor_type.elem_type for each in graph.graph.output if each.name == "logits")
    shape: list[str | int | None] = [1, "sequence", "hidden"]
    graph.graph.output.extend(onnx.helper.make_tensor_value_info(name, kind, shape) for name in names)
    return graph, names


def _open(graph: "onnx.ModelProto", folder: Path, device: str) -> "onnxruntime.InferenceSession":
    """A session over the graph in memory, its weights read from the files in `folder`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = default_threads()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=PROVIDERS[device])
