"""Calibration measures what transformers' modules are given, on text that validation never scores."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from built import transformers_twin

from edgeforge.errors import UnusableInput, UsageError
from edgeforge.hardware import load_target
from edgeforge.model.checkpoint import Checkpoint, open_checkpoint
from edgeforge.model.safetensors import open_directory
from edgeforge.model.safetensors_writer import write_safetensors
from edgeforge.pipeline import calibration as calibrating
from edgeforge.pipeline import scales_file
from edgeforge.pipeline.calibration import check_source, load_or_measure, measure, part_of
from edgeforge.pipeline.calibration_source import default_texts, read_tokens
from edgeforge.planning import BuildPlan, apply_overrides, make_plan
from edgeforge.quantization.calibration import EMPTY, Calibration
from edgeforge.validation import default_texts as scored_texts


def quiet(done: int, total: int) -> None:
    """Progress that nobody watches."""


@pytest.fixture(scope="module")
def checkpoint(stories: Path) -> Checkpoint:
    return open_checkpoint(str(stories))


@pytest.fixture(scope="module")
def measured(checkpoint: Checkpoint) -> Calibration:
    return load_or_measure(checkpoint, None, progress=quiet)


def plan_for(checkpoint: Checkpoint, target: str = "h100", **changes: str) -> BuildPlan:
    return make_plan(checkpoint.architecture, apply_overrides(load_target(target), **changes))  # type: ignore[arg-type]


# what is measured


def their_largest(checkpoint: Checkpoint, ids: np.ndarray) -> tuple[dict[str, float], list[float], list[float]]:
    """max |x| of every torch linear's input, max |k| and |v| of every layer of transformers' cache."""
    import torch

    model, largest = transformers_twin(checkpoint), {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        return lambda module, given: largest.__setitem__(name, float(given[0].abs().max()))

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(keep(f"{name}.weight"))
    with torch.no_grad():
        layers = model(torch.from_numpy(ids), use_cache=True).past_key_values.layers
    return largest, [float(x.keys.abs().max()) for x in layers], [float(x.values.abs().max()) for x in layers]


def test_figures_are_those_of_hooks_on_torch_modules(checkpoint: Checkpoint, measured: Calibration) -> None:
    inputs, keys, values = their_largest(checkpoint, read_tokens(checkpoint, None).ids)
    inputs.pop("lm_head.weight")  # tied: no linear of its own
    assert set(measured.inputs) == set(inputs) == {linear.name for linear in checkpoint.architecture.linears()}
    ours = [*measured.inputs.values(), *measured.keys, *measured.values]
    theirs = [*(inputs[name] for name in measured.inputs), *keys, *values]
    ratio = np.array(ours) / np.array(theirs)
    assert ratio.min() > 1 - 1e-5  # rounded up to bfloat16
    assert ratio.max() <= 1 + 2**-7 + 1e-5


def test_the_head_of_an_untied_model_has_its_figure(stories: Path, tmp_path: Path) -> None:
    untied = untied_copy(stories, tmp_path)
    inputs, *_ = their_largest(untied, read_tokens(untied, None).ids)
    found = measure(untied, read_tokens(untied, None), progress=quiet)
    assert found.inputs["lm_head.weight"] == pytest.approx(inputs["lm_head.weight"], rel=2**-7)


def untied_copy(stories: Path, folder: Path) -> Checkpoint:
    original = open_directory(stories)
    for path in stories.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((stories / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    layout = [(name, "F32", original.tensor(name).shape) for name in original.names]
    head = original.tensor("model.embed_tokens.weight")
    layout.append(("lm_head.weight", "F32", head.shape))
    with write_safetensors(folder / "model.safetensors", layout) as writer:
        for name, _, shape in layout:
            writer.write(name, 0, (head if name == "lm_head.weight" else original.tensor(name)).rows(0, shape[0]))
    return open_directory(folder)


def test_every_figure_is_a_bfloat16(measured: Calibration) -> None:
    figures = np.array([*measured.inputs.values(), *measured.keys, *measured.values], np.float32)
    assert not (figures.view(np.uint32) & 0xFFFF).any()
    assert (figures > 0).all()


def test_linears_that_share_an_input_share_a_figure(measured: Calibration) -> None:
    for name, amax in measured.inputs.items():
        for one, others in (("q_proj", ("k_proj", "v_proj")), ("gate_proj", ("up_proj",))):
            assert all(measured.inputs[name.replace(one, other)] == amax for other in others)


def test_the_text_and_its_length_are_told(checkpoint: Checkpoint, measured: Calibration) -> None:
    assert measured.tokens == 4 * 512
    text = "".join(default_texts()).rstrip("\n")
    assert measured.text_sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_sequences_that_do_not_fit_the_memory_follow_each_other(
    checkpoint: Checkpoint, measured: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrating, "WORKING_BYTES", 1)
    steps: list[tuple[int, int]] = []
    apart = load_or_measure(checkpoint, None, progress=lambda done, total: steps.append((done, total)))
    assert apart == measured
    layers = checkpoint.architecture.num_hidden_layers
    assert steps == [(step, 4 * layers) for step in range(1, 4 * layers + 1)]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_no_figure(stories: Path, measured: Calibration, tmp_path: Path, threads: int) -> None:
    program = (
        "import sys; from pathlib import Path; from edgeforge.model.checkpoint import open_checkpoint;"
        "from edgeforge.pipeline import scales_file; from edgeforge.pipeline.calibration import load_or_measure;"
        "c = open_checkpoint(sys.argv[1]); found = load_or_measure(c, None, progress=lambda done, total: None);"
        "scales_file.save(found, Path(sys.argv[2]), fingerprint=c.fingerprint)"
    )
    path = tmp_path / "scales.safetensors"
    environment = os.environ | {"OPENBLAS_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, "-c", program, str(stories), str(path)], env=environment, check=True)
    assert scales_file.load(path, open_checkpoint(str(stories))) == measured


# the text


def test_calibration_does_not_see_what_validation_scores() -> None:
    """No ten words in a row of one are in the other."""

    def phrases(texts: tuple[str, ...]) -> set[tuple[str, ...]]:
        words = [word.lower() for text in texts for word in text.split()]
        return {tuple(words[i : i + 10]) for i in range(len(words) - 9)}

    assert not phrases(default_texts()) & phrases(scored_texts())


def test_the_own_text_is_long_enough_for_the_largest_vocabulary(test_data: Path) -> None:
    from tokenizers import Tokenizer

    llama3 = Tokenizer.from_file(str(test_data / "tokenizers" / "llama3" / "tokenizer.json"))
    assert len(llama3.encode("".join(default_texts()), add_special_tokens=False).ids) > 4 * 512


def test_sequences_begin_with_bos_and_come_from_all_over_the_text(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tale = tmp_path / "tale.txt"
    tale.write_text("\n".join(f"Lily saw {number} red birds." for number in range(3000)))
    tokens = read_tokens(checkpoint, tale)
    assert tokens.ids.shape == (4, 512)
    assert (tokens.ids[:, 0] == checkpoint.architecture.bos_token_id).all()
    whole = checkpoint.tokenizer.load().encode(tale.read_text(), add_special_tokens=False).ids
    assert tokens.ids[0, 1:].tolist() == whole[:511]
    assert tokens.ids[3, 1:].tolist() == whole[-511:]


def test_a_packed_text_and_json_lines_are_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tale = "Once upon a time, there was a little cat. " * 200
    plain, packed, rows = tmp_path / "tale.txt", tmp_path / "tale.raw.gz", tmp_path / "tale.jsonl"
    plain.write_text(tale)
    packed.write_bytes(gzip.compress(tale.encode()))
    rows.write_text("\n\n".join(json.dumps({"text": part}) for part in (tale[:4000], tale[4000:])))
    first = read_tokens(checkpoint, plain)
    np.testing.assert_array_equal(read_tokens(checkpoint, packed).ids, first.ids)
    assert read_tokens(checkpoint, packed).text_sha256 == first.text_sha256
    assert read_tokens(checkpoint, rows).ids.shape == (4, 512)


def test_messages_are_written_as_the_models_template_has_them(demo_gguf: Path, tmp_path: Path) -> None:
    demo = open_checkpoint(str(demo_gguf))
    messages = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Good morning"}]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps({"messages": messages}) for _ in range(150)))
    ids = read_tokens(demo, path).ids
    tokenizer = demo.tokenizer.load()
    marker = tokenizer.token_to_id("<|im_start|>")
    assert (ids == marker).sum() > 4 * 10
    assert "<|im_start|>user\nHello there<|im_end|>" in tokenizer.decode(ids[0].tolist(), skip_special_tokens=False)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("short.txt", b"Once upon a time", "tokens and 2,044 are needed"),
        ("latin.txt", "Mädchen".encode("latin-1") * 900, "not UTF-8"),
        ("empty.txt", b"  \n", "is empty"),
        ("cut.txt.gz", gzip.compress(b"once " * 5000, mtime=0)[:-20], "not a whole gzip file"),
        ("rows.jsonl", b'{"text": "one"}\n{"prompt": "two"}\n', "line 2 is no JSON object"),
        ("rows.jsonl", b'{"text": "one"\n', "line 1 is no JSON object"),
        ("chat.jsonl", b'{"messages": [{"role": "user", "content": "Hi"}]}\n', "no chat template"),
        ("scales.safetensors", b"Once upon a time", "not a safetensors file"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(
    checkpoint: Checkpoint, tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnusableInput, match=says) as caught:
        load_or_measure(checkpoint, path, progress=quiet)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("value", "layer"), [(np.nan, 2), (3e38, 2)])
def test_activations_that_are_not_finite_name_their_layer(
    stories: Path, tmp_path: Path, value: float, layer: int
) -> None:
    original = open_directory(stories)
    for path in stories.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    layout = [(name, "F32", original.tensor(name).shape) for name in original.names]
    with write_safetensors(tmp_path / "model.safetensors", layout) as writer:
        for name, _, shape in layout:
            rows = original.tensor(name).rows(0, shape[0])
            if name == f"model.layers.{layer}.mlp.gate_proj.weight":
                rows[:, 0] = value
            writer.write(name, 0, rows)
    with pytest.raises(UnusableInput, match=rf"not finite at model\.layers\.{layer}\.mlp\.down_proj"):
        load_or_measure(open_directory(tmp_path), None, progress=quiet)


# the scales file


def saved(calibration: Calibration, checkpoint: Checkpoint, folder: Path) -> Path:
    path = folder / "scales.safetensors"
    scales_file.save(calibration, path, fingerprint=checkpoint.fingerprint)
    return path


def test_what_is_saved_is_loaded(checkpoint: Checkpoint, measured: Calibration, tmp_path: Path) -> None:
    path = saved(measured, checkpoint, tmp_path)
    assert load_or_measure(checkpoint, path, progress=quiet) == measured
    factors = {
        linear.name: np.full(linear.in_features, 0.5, np.float32) for linear in checkpoint.architecture.linears()
    }
    again = scales_file.load(saved(replace(measured, pre_quant_scales=factors), checkpoint, tmp_path), checkpoint)
    assert set(again.pre_quant_scales) == set(factors)
    for name, factor in factors.items():
        np.testing.assert_array_equal(again.pre_quant_scales[name], factor)


def test_the_same_figures_are_the_same_bytes(checkpoint: Checkpoint, measured: Calibration, tmp_path: Path) -> None:
    first = saved(measured, checkpoint, tmp_path).read_bytes()
    assert saved(measured, checkpoint, tmp_path).read_bytes() == first


def test_other_peoples_readers_open_it(checkpoint: Checkpoint, measured: Calibration, tmp_path: Path) -> None:
    numpy_reader = pytest.importorskip("safetensors.numpy")
    found = numpy_reader.load_file(saved(measured, checkpoint, tmp_path))
    assert found["layers.2.k_amax"] == np.float32(measured.keys[2])
    name = "model.layers.0.mlp.down_proj.weight"
    assert found[f"{name}.input_amax"] == np.float32(measured.inputs[name])
    assert len(found) == len(measured.inputs) + 2 * len(measured.keys)


def test_a_file_that_others_wrote_needs_no_metadata(
    checkpoint: Checkpoint, measured: Calibration, tmp_path: Path
) -> None:
    numpy_library = pytest.importorskip("safetensors.numpy")
    figures = numpy_library.load_file(saved(measured, checkpoint, tmp_path))
    path = tmp_path / "theirs.safetensors"
    numpy_library.save_file({name: value.reshape(1) for name, value in figures.items()}, path)
    assert scales_file.load(path, checkpoint) == replace(measured, tokens=0, text_sha256=None)


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({f"{DOWN}.input_amax": None}, f"lacks {DOWN}.input_amax"),
        ({"layers.4.v_amax": None, "layers.4.k_amax": None}, "lacks layers.4.k_amax and 1 more"),
        ({"layers.5.v_amax": np.float32(1)}, "layers.5.v_amax, which is no scale of this model"),
        ({"layers.3.k_amax": np.float32(np.nan)}, "layers.3.k_amax is nan"),
        ({"layers.3.k_amax": np.float32(np.inf)}, "layers.3.k_amax is inf"),
        ({f"{DOWN}.input_amax": np.float32(-1)}, "input_amax is -1.0"),
        ({f"{DOWN}.input_amax": np.ones(2, np.float32)}, r"is F32 \[2\], expected F32 \[\]"),
        ({f"{DOWN}.input_amax": np.float16(1)}, r"is F16 \[\], expected F32"),
        ({f"{DOWN}.pre_quant_scale": np.ones(64, np.float32)}, r"expected F32 \[172\]"),
        ({f"{DOWN}.pre_quant_scale": np.zeros(172, np.float32)}, "pre_quant_scale is 0.0"),
    ],
)
def test_wrong_figures_are_refused_by_name(
    checkpoint: Checkpoint, measured: Calibration, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    numpy_library = pytest.importorskip("safetensors.numpy")
    figures = numpy_library.load_file(saved(measured, checkpoint, tmp_path)) | changes
    path = tmp_path / "wrong.safetensors"
    numpy_library.save_file({name: np.asarray(value) for name, value in figures.items() if value is not None}, path)
    with pytest.raises(UnusableInput, match=says) as caught:
        scales_file.load(path, checkpoint)
    assert caught.value.hint


def test_the_scales_of_another_checkpoint_are_refused(
    checkpoint: Checkpoint, measured: Calibration, tmp_path: Path
) -> None:
    path = tmp_path / "scales.safetensors"
    scales_file.save(measured, path, fingerprint="sha256:other")
    with pytest.raises(UnusableInput, match="another checkpoint"):
        scales_file.load(path, checkpoint)


# what a build may ask for


def test_a_target_without_static_scales_takes_no_calibration(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plans = [plan_for(checkpoint, "cpu")]
    check_source(plans, None, wanted=True, save=None)
    check_source(plans, None, wanted=False, save=None)
    with pytest.raises(UsageError, match="nothing is calibrated"):
        check_source(plans, tmp_path / "tale.txt", wanted=True, save=None)
    with pytest.raises(UsageError, match="nothing is calibrated"):
        check_source(plans, None, wanted=True, save=tmp_path / "scales.safetensors")


def test_a_missing_source_and_an_impossible_destination_are_refused_before_the_work(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    plans = [plan_for(checkpoint, scheme="fp8")]
    with pytest.raises(UnusableInput, match="no calibration text"):
        check_source(plans, tmp_path / "absent.txt", wanted=True, save=None)
    for place in (tmp_path / "scales.json", tmp_path / "absent" / "scales.safetensors"):
        with pytest.raises(UsageError, match="cannot be a scales file"):
            check_source(plans, None, wanted=True, save=place)
    with pytest.raises(UsageError, match="nothing to save"):
        check_source(plans, None, wanted=False, save=tmp_path / "scales.safetensors")


def test_scales_are_left_to_an_engine_only_where_it_finds_them(checkpoint: Checkpoint) -> None:
    check_source([plan_for(checkpoint, scheme="fp8", kv_cache="bf16")], None, wanted=False, save=None)
    check_source([plan_for(checkpoint, scheme="fp8-dynamic", kv_cache="bf16")], None, wanted=False, save=None)
    for changes, says in (
        ({"scheme": "fp8", "kv_cache": "fp8"}, "KV cache in fp8 needs measured scales"),
        ({"scheme": "fp8", "engine": "vllm", "kv_cache": "bf16"}, "scheme fp8 for vLLM needs measured scales"),
        ({"scheme": "w4a8", "kv_cache": "bf16"}, "scheme w4a8 for TensorRT-LLM needs measured scales"),
    ):
        with pytest.raises(UsageError, match=says):
            check_source([smaller_groups(checkpoint, changes)], None, wanted=False, save=None)


def smaller_groups(checkpoint: Checkpoint, changes: dict[str, str]) -> BuildPlan:
    """A plan without the group sizes that stories' rows do not divide by."""
    architecture = replace(checkpoint.architecture, intermediate_size=256)
    return make_plan(architecture, apply_overrides(load_target("h100"), **changes))  # type: ignore[arg-type]


def test_a_target_gets_the_part_it_uses(checkpoint: Checkpoint, measured: Calibration) -> None:
    fp8, graph = plan_for(checkpoint, scheme="fp8"), plan_for(checkpoint, "cpu")
    assert part_of(measured, fp8) is measured
    assert part_of(measured, graph) is EMPTY
    smoothed = replace(measured, pre_quant_scales={DOWN: np.ones(172, np.float32)})
    assert part_of(smoothed, graph) is EMPTY
    assert part_of(smoothed, smaller_groups(checkpoint, {"scheme": "w4a16"})) is smoothed
    with pytest.raises(UnusableInput, match="no place for"):
        part_of(smoothed, fp8)
