
# ---- TensorRT Edge-LLM: export the checkpoint to ONNX, then build the engine ----

find_llm_build() {
    for program in "${LLM_BUILD:-llm_build}" "${TENSORRT_EDGELLM:-.}/build/examples/llm/llm_build"; do
        if command -v "$program" >/dev/null 2>&1; then
            llm_build=$(command -v "$program")
            return 0
        fi
    done
    refuse "llm_build of TensorRT Edge-LLM $edge_llm is not here" \
        "build its C++ programs, and name the folder of its sources: TENSORRT_EDGELLM=FOLDER sh $0" 7
}

check_exporter() {
    if ! command -v tensorrt-edgellm-export >/dev/null 2>&1; then
        refuse "tensorrt-edgellm-export is not here" \
            "pip install 'tensorrt-edgellm[export]==$edge_llm.*', or export on another machine and copy the result to $out/onnx" 7
    fi
    version=$(package_version tensorrt-edgellm tensorrt-edgellm-export)
    at_least "${version:-0}" "$edge_llm" ||
        refuse "tensorrt-edgellm ${version:-of an unknown version} is older than $edge_llm, which this checkpoint was made for" \
            "pip install 'tensorrt-edgellm[export]==$edge_llm.*'" 7
}

# Exporting and building each take 3 to 4 bytes per parameter (NVIDIA/TensorRT-Edge-LLM, issue 30).
check_memory() {
    available=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' "${EDGEFORGE_MEMINFO:-/proc/meminfo}")
    needed="$least_mib to $usual_mib MiB for the $parameters parameters of this model, and $available MiB are available"
    if [ "${available:-0}" -lt "$least_mib" ] && [ "${EDGEFORGE_ANY_MEMORY:-}" != 1 ]; then
        refuse "building the engine takes 3 to 4 bytes of memory per parameter: $needed" \
            "close other programs (the desktop: sudo init 3), or take a smaller model; EDGEFORGE_ANY_MEMORY=1 tries it anyway" 8
    fi
    if [ "${available:-0}" -lt "$usual_mib" ]; then say "Memory may run out: the build takes $needed."; fi
}

check_gpu
find_llm_build
has_export=no
if [ -f "$out/onnx/llm/model.onnx" ]; then
    # Without a mark it came from another machine.
    if [ ! -f "$out/onnx.of" ] || is_built "$out/onnx"; then has_export=yes; fi
fi
if [ $has_export = no ]; then check_exporter; fi
check_memory
check_bundle
start

if [ $has_export = no ]; then
    say "Exporting to $out/onnx"
    rm -rf "$out/onnx.partial"
    # shellcheck disable=SC2086 # several words
    tensorrt-edgellm-export "$bundle/model" "$out/onnx.partial" $export_options >&2 ||
        refuse_end tensorrt-edgellm-export $?
    [ -f "$out/onnx.partial/llm/model.onnx" ] ||
        refuse "tensorrt-edgellm-export ended well and left no llm/model.onnx" "use tensorrt-edgellm $edge_llm" 7
    keep "$out/onnx"
fi

say "Building the engine in $out/engine"
rm -rf "$out/engine.partial"
plugin=$(dirname -- "$llm_build")/../../libNvInfer_edgellm_plugin.so
if [ -z "${EDGELLM_PLUGIN_PATH:-}" ] && [ -f "$plugin" ]; then
    EDGELLM_PLUGIN_PATH=$plugin
    export EDGELLM_PLUGIN_PATH
fi
"$llm_build" --onnxDir "$out/onnx/llm" --engineDir "$out/engine.partial" --maxBatchSize "$batch" \
    --maxInputLen "$context" --maxKVCacheCapacity "$context" >&2 || refuse_end llm_build $?
[ -f "$out/engine.partial/llm.engine" ] ||
    refuse "llm_build ended well and left no llm.engine" "use TensorRT Edge-LLM $edge_llm" 7
keep "$out/engine"
how_to_run
