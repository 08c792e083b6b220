
# ---- TensorRT-LLM up to 1.2.1: build the engines of all ranks ----

# TRTLLM_BUILD can name another program, or a container: "docker run --rm --gpus all -v /data:/data IMAGE trtllm-build".
check_builder() {
    if [ -n "${TRTLLM_BUILD:-}" ]; then return 0; fi
    TRTLLM_BUILD=trtllm-build
    if ! command -v trtllm-build >/dev/null 2>&1; then
        refuse "trtllm-build is not here" \
            "install tensorrt-llm==$newest in an environment of its own, or set TRTLLM_BUILD='docker run --rm --gpus all -v $parent:$parent $image trtllm-build'" 7
    fi
    version=$(package_version tensorrt-llm trtllm-build)
    if [ -z "$version" ]; then
        say "The version of trtllm-build is not known; $oldest to $newest can build this."
    elif ! at_least "$version" "$oldest" || ! at_least "$newest" "${version%%[!0-9.]*}"; then
        refuse "this is TensorRT-LLM $version, and engines are built with $oldest to $newest" \
            "install tensorrt-llm==$newest in an environment of its own" 7
    fi
}

check_gpu
check_builder
check_bundle
start

say "Building the engine in $out/engine"
rm -rf "$out/engine.partial"
# shellcheck disable=SC2086 # several words each
$TRTLLM_BUILD --checkpoint_dir "$bundle/model" --output_dir "$out/engine.partial" $build_options >&2 ||
    refuse_end trtllm-build $?
rank=0
while [ $rank -lt "$ranks" ]; do
    [ -f "$out/engine.partial/rank$rank.engine" ] ||
        refuse "trtllm-build ended well and left no rank$rank.engine" "use TensorRT-LLM $newest" 7
    rank=$((rank + 1))
done
keep "$out/engine"
how_to_run
