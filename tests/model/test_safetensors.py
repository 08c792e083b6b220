"""What we write, the safetensors package reads; what it writes, we read; what is damaged is refused in one sentence."""

import json
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edgeforge.errors import UnusableInput
from edgeforge.model.architecture import LlamaArchitecture, architecture_from_config, hf_config
from edgeforge.model.checkpoint import Source, open_checkpoint
from edgeforge.model.positional import PositionalFile, Scratch
from edgeforge.model.safetensors import SafetensorsTensor, open_directory, write_safetensors
from edgeforge.model.safetensors_header import read_header

safetensors_numpy = pytest.importorskip("safetensors.numpy")
safetensors = pytest.importorskip("safetensors")

ARCHITECTURE = architecture_from_config(
    {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 40,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
)
Tensors = dict[str, NDArray[np.generic]]


def random_tensors(architecture: LlamaArchitecture, dtype: type[np.generic] = np.float32) -> Tensors:
    rng = np.random.default_rng(0)
    return {n: rng.standard_normal(s).astype(np.float32).astype(dtype) for n, s in architecture.tensors()}


def save(folder: Path, tensors: Tensors, *, architecture: LlamaArchitecture = ARCHITECTURE) -> Path:
    (folder / "config.json").write_text(json.dumps(hf_config(architecture, dtype="float32")))
    safetensors_numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save_sharded(folder: Path, tensors: Tensors) -> Path:
    (folder / "config.json").write_text(json.dumps(hf_config(ARCHITECTURE, dtype="float32")))
    names = sorted(tensors)
    weight_map = {}
    for shard in range(3):
        file = f"model-0000{shard + 1}-of-00003.safetensors"
        part = {name: tensors[name] for name in names[shard::3]}
        safetensors_numpy.save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("saver", [save, save_sharded])
def test_rows_are_those_that_the_safetensors_package_wrote(
    tmp_path: Path, saver: Callable[[Path, Tensors], Path], dtype: type[np.generic]
) -> None:
    tensors = random_tensors(ARCHITECTURE, dtype)
    checkpoint = open_directory(saver(tmp_path, tensors))
    assert set(checkpoint.names) == set(tensors)
    assert checkpoint.architecture == ARCHITECTURE
    for name, values in tensors.items():
        tensor = checkpoint.tensor(name)
        assert tensor.shape == values.shape
        assert tensor.grid is None
        middle = len(values) // 2
        for start, stop in ((0, len(values)), (middle, middle + 1), (3, 3)):
            rows = tensor.rows(start, stop)
            np.testing.assert_array_equal(rows, values[start:stop].astype(np.float32))
            assert rows.dtype == np.float32
            assert rows.flags.writeable
            assert rows.flags.owndata
    with pytest.raises(ValueError, match="rows 0:41"):
        checkpoint.tensor("model.embed_tokens.weight").rows(0, 41)


def test_every_half_precision_pattern_is_widened_exactly(tmp_path: Path) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    tiled = np.tile(patterns, (12, 1))  # several read blocks
    stored = {"a": tiled.view(ml_dtypes.bfloat16), "b": tiled.view(np.float16)}
    safetensors_numpy.save_file(stored, tmp_path / "x.safetensors")
    file = PositionalFile(tmp_path / "x.safetensors", Scratch())
    for entry in read_header(tmp_path / "x.safetensors").entries:
        tensor = SafetensorsTensor(name=entry.name, shape=entry.shape, dtype=entry.dtype, file=file, start=entry.start)
        rows = tensor.rows(1, len(tiled))
        with np.errstate(invalid="ignore"):  # signalling NaNs
            want = stored[entry.name][1:].astype(np.float32)
        np.testing.assert_array_equal(rows, want)
        if entry.dtype == "BF16":
            np.testing.assert_array_equal(rows.view(np.uint32) >> 16, tiled[1:])


def test_rows_read_from_many_threads_are_the_same(tmp_path: Path) -> None:
    tensors = {"w": np.random.default_rng(0).integers(0, 1 << 16, (600, 4096)).astype(np.uint16)}
    tensors = {"w": (tensors["w"] & 0xBFFF).view(ml_dtypes.bfloat16)}
    safetensors_numpy.save_file(tensors, tmp_path / "x.safetensors")
    entry = read_header(tmp_path / "x.safetensors").entries[0]
    file = PositionalFile(tmp_path / "x.safetensors", Scratch())
    tensor = SafetensorsTensor(name="w", shape=entry.shape, dtype=entry.dtype, file=file, start=entry.start)
    want = tensors["w"].astype(np.float32)
    wrong: list[int] = []

    def read(seed: int) -> None:
        for start in np.random.default_rng(seed).integers(0, 300, 12):
            if not np.array_equal(tensor.rows(start, start + 300), want[start : start + 300]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "U8": np.uint8, "I8": np.int8}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_safetensors_package_reads_what_we_write(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5, unique=True))
    names = [name for name in names if name != "__metadata__" and name.isprintable()] or ["w"]
    tensors: Tensors = {}
    rows = []
    for name in names:
        dtype = data.draw(st.sampled_from(sorted(DTYPES)))
        shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=7))
        seed = data.draw(st.integers(0, 1 << 30))
        tensors[name] = np.random.default_rng(seed).integers(0, 100, shape).astype(DTYPES[dtype])
        rows.append((name, dtype, shape))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        with write_safetensors(path, rows, metadata={"format": "pt"}) as writer:
            for name, values in reversed(tensors.items()):
                half = len(values) // 2
                writer.write(name, half, values[half:])
                writer.write(name, 0, values[:half])
        read = safetensors_numpy.load_file(path)
        assert read.keys() == tensors.keys()
        for name, values in tensors.items():
            assert read[name].dtype == values.dtype
            np.testing.assert_array_equal(read[name], values)
        listed = read_header(path).entries
        assert [entry.name for entry in listed if entry.size_bytes] == [n for n in names if tensors[n].nbytes]


def test_the_writer_rounds_float32_to_the_nearest_even(tmp_path: Path) -> None:
    values = np.float32([[1.0, 1.0 + 2**-9, 1.0 + 3 * 2**-9, -0.0]])
    with write_safetensors(tmp_path / "x.safetensors", [("w", "BF16", (1, 4))]) as writer:
        writer.write("w", 0, values)
    read = safetensors_numpy.load_file(tmp_path / "x.safetensors")["w"].astype(np.float32)
    # bfloat16 has 7 fraction bits, so 2**-9 is a quarter of its step: nearest is below, and then above.
    np.testing.assert_array_equal(read, np.float32([[1.0, 1.0, 1.0 + 2**-7, -0.0]]))


def test_a_failed_or_incomplete_write_leaves_nothing(tmp_path: Path) -> None:
    rows = [("w", "F32", (4, 2))]
    with pytest.raises(ValueError, match="missing"), write_safetensors(tmp_path / "a", rows) as writer:
        writer.write("w", 0, np.zeros((3, 2), np.float32))
    with pytest.raises(RuntimeError), write_safetensors(tmp_path / "a", rows):
        raise RuntimeError
    for array in (np.zeros((5, 2), np.float32), np.zeros((4, 3), np.float32), np.zeros((4, 2), np.int8)):
        with pytest.raises(ValueError, match="w"), write_safetensors(tmp_path / "a", rows) as writer:
            writer.write("w", 0, array)
    assert not list(tmp_path.iterdir())


def refused(folder: Path) -> str:
    """The one sentence with which opening `folder` is refused."""
    with pytest.raises(UnusableInput) as caught:
        open_directory(folder)
    assert "\n" not in caught.value.message
    return caught.value.message


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1, exclude_max=True))
def test_a_file_truncated_anywhere_is_refused(fraction: float) -> None:
    with TemporaryDirectory() as name:
        folder = save(Path(name), random_tensors(ARCHITECTURE))
        file = folder / "model.safetensors"
        whole = file.read_bytes()
        file.write_bytes(whole[: int(len(whole) * fraction)])
        assert "model.safetensors" in refused(folder)


def rewrite_header(file: Path, change: Callable[[dict[str, dict[str, object]]], object]) -> None:
    """Change the JSON of a header and leave the data where it is."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


Q0 = "model.layers.0.self_attn.q_proj.weight"
Q1 = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: h[Q0].update(data_offsets=h[Q1]["data_offsets"]), "overlap"),
        (lambda h: h["model.norm.weight"].update(data_offsets=[1 << 40, (1 << 40) + 64]), "model.norm.weight"),
        (lambda h: h[Q0].update(data_offsets=[h[Q0]["data_offsets"][0], h[Q0]["data_offsets"][1] + 1]), Q0),
        (lambda h: h[Q0].update(data_offsets=[-1024, 0]), Q0),
        (lambda h: h[Q0].update(data_offsets=[1024, 0]), Q0),
        (lambda h: h[Q0].update(data_offsets=[0.5, 1024]), Q0),
        (lambda h: h[Q0].update(data_offsets=[0]), Q0),
        (lambda h: h[Q0].update(shape=[16, -16]), Q0),
        (lambda h: h[Q0].update(shape="16"), Q0),
        (lambda h: h[Q0].pop("dtype"), Q0),
        (lambda h: h.update({Q0: 5}), Q0),
        (lambda h: h.pop(Q0), "no tensor"),
    ],
)
def test_a_header_that_does_not_tile_the_file_is_refused(
    tmp_path: Path, change: Callable[[dict[str, dict[str, object]]], object], said: str
) -> None:
    folder = save(tmp_path, random_tensors(ARCHITECTURE))
    rewrite_header(folder / "model.safetensors", change)
    assert said in refused(folder)


@pytest.mark.parametrize(
    "raw",
    [b"", b"short", b"\xff" * 64, struct.pack("<Q", 4) + b"nope", struct.pack("<Q", 2) + b"[]" + b"\0" * 8],
)
def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path, raw: bytes) -> None:
    folder = save(tmp_path, random_tensors(ARCHITECTURE))
    (folder / "model.safetensors").write_bytes(raw)
    assert "model.safetensors" in refused(folder)


def test_a_tensor_listed_twice_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, random_tensors(ARCHITECTURE))
    text = (
        b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    )
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    assert "twice" in refused(folder)


def test_all_missing_and_misshapen_tensors_are_named_at_once(tmp_path: Path) -> None:
    tensors = random_tensors(ARCHITECTURE)
    for name in (Q0, Q1):
        del tensors[name]
    tensors["model.norm.weight"] = np.zeros(17, np.float32)
    message = refused(save(tmp_path, tensors))
    assert all(part in message for part in (Q0, Q1, "model.norm.weight", "[17]", "[16]"))


def test_many_missing_tensors_are_abbreviated(tmp_path: Path) -> None:
    message = refused(save(tmp_path, {"model.norm.weight": np.zeros(16, np.float32)}))
    assert f"and {len(list(ARCHITECTURE.tensors())) - 5} more" in message


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        (Q0.replace("weight", "bias"), np.zeros(16, np.float32), "q_proj.bias"),
        ("model.layers.0.self_attn.q_norm.weight", np.zeros(4, np.float32), "q_norm"),
        (Q0, np.zeros((16, 16), np.int8), "I8"),
        (Q0, np.zeros((16, 16), np.float64), "F64"),
    ],
)
def test_tensors_that_are_no_plain_llamas_are_refused(
    tmp_path: Path, name: str, values: NDArray[np.generic], said: str
) -> None:
    assert said in refused(save(tmp_path, random_tensors(ARCHITECTURE) | {name: values}))


def test_a_tied_model_ignores_lm_head_and_old_buffers_and_an_untied_one_needs_it(tmp_path: Path) -> None:
    tensors = random_tensors(ARCHITECTURE)
    extra = {
        "lm_head.weight": np.ones((40, 16), np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32),
    }
    checkpoint = open_directory(save(tmp_path, tensors | extra))
    assert set(checkpoint.names) == set(tensors)
    untied = architecture_from_config(hf_config(ARCHITECTURE, dtype="float32") | {"tie_word_embeddings": False})
    assert "lm_head.weight" in refused(save(tmp_path, tensors, architecture=untied))


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "c:x", "", 7])
def test_an_index_cannot_reach_out_of_its_folder(tmp_path: Path, shard: object) -> None:
    folder = save_sharded(tmp_path, random_tensors(ARCHITECTURE))
    index = folder / "model.safetensors.index.json"
    changed = json.loads(index.read_text())
    changed["weight_map"][Q0] = shard
    index.write_text(json.dumps(changed))
    assert "plain file name" in refused(folder)


def test_missing_shards_and_missing_files_are_named(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path, random_tensors(ARCHITECTURE))
    for shard in (1, 3):
        (folder / f"model-0000{shard}-of-00003.safetensors").unlink()
    message = refused(folder)
    assert "model-00001-of-00003.safetensors" in message
    assert "model-00003-of-00003.safetensors" in message
    (folder / "model.safetensors.index.json").write_text("{")
    assert "index.json is not valid JSON" in refused(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "weight_map" in refused(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin").touch()
    assert "neither" in refused(folder)
    (folder / "config.json").unlink()
    assert "no config.json" in refused(folder)


def test_a_tensor_in_another_shard_than_the_index_says_is_missing(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path, random_tensors(ARCHITECTURE))
    index = folder / "model.safetensors.index.json"
    changed = json.loads(index.read_text())
    files = sorted(set(changed["weight_map"].values()) - {changed["weight_map"][Q0]})
    changed["weight_map"][Q0] = files[0]
    index.write_text(json.dumps(changed))
    assert f"lacks {Q0}" in refused(folder)


def test_a_file_shortened_after_opening_is_reported(tmp_path: Path) -> None:
    checkpoint = open_directory(save(tmp_path, random_tensors(ARCHITECTURE)))
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(4000)
    last = checkpoint.tensor(checkpoint.names[-1])
    with pytest.raises(UnusableInput, match="shorter"):
        last.rows(0, 2)


def test_the_fingerprint_sees_weights_and_config_but_not_the_path(tmp_path: Path) -> None:
    prints = []
    tensors = random_tensors(ARCHITECTURE)
    for name, scale, eps in (("a", 1, 1e-5), ("b", 1, 1e-5), ("c", 2, 1e-5), ("d", 1, 1e-6)):
        folder = tmp_path / name
        folder.mkdir()
        save(folder, {n: np.float32(scale) * v for n, v in tensors.items()})
        changed = json.loads((folder / "config.json").read_text()) | {"rms_norm_eps": eps}
        (folder / "config.json").write_text(json.dumps(changed))
        prints.append(open_directory(folder).fingerprint)
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    assert all(p.startswith("sha256:") and len(p) == 71 for p in prints)


def test_generation_defaults_notices_and_precision_come_along(tmp_path: Path) -> None:
    tensors = random_tensors(ARCHITECTURE, ml_dtypes.bfloat16)
    tensors[Q0] = tensors[Q0].astype(np.float32)
    folder = save(tmp_path, tensors)
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [3, 4]})
    )
    (folder / "LICENSE.txt").write_bytes(b"the licence")
    checkpoint = open_directory(folder, source=Source(kind="hub", name="a/b"))
    defaults = checkpoint.generation
    assert (defaults.do_sample, defaults.temperature, defaults.top_p, defaults.top_k) == (True, 0.6, 0.9, None)
    assert checkpoint.architecture.eos_token_ids == (3, 4)
    assert checkpoint.notices == {"LICENSE.txt": b"the licence"}
    assert checkpoint.source == Source(kind="hub", name="a/b", precision="BF16, F32")


def test_open_checkpoint_finds_directories_and_names_what_is_missing(tmp_path: Path, stories: Path) -> None:
    assert open_checkpoint(str(stories)).source == Source(kind="directory", precision="F32")
    for reference in (str(tmp_path / "absent"), "no such model", "./a/b", "absent.gguf"):
        with pytest.raises(UnusableInput, match="no model at"):
            open_checkpoint(reference)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UnusableInput, match=r"notes\.txt"):
        open_checkpoint(str(tmp_path / "notes.txt"))
    with pytest.raises(UnusableInput, match=r"no config\.json"):
        open_checkpoint(str(tmp_path))
