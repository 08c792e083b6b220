
# ---- what both builders share ----

say() { printf '%s\n' "$*" >&2; }

# refuse SENTENCE HINT EXIT_CODE
refuse() {
    say "build-on-device: $1"
    say "hint: $2"
    exit "$3"
}

case ${1-} in
    -*)
        say "usage: sh $(basename -- "$0") [FOLDER]"
        say "Builds the engine of the bundle that holds this script into FOLDER/engine; by default BUNDLE-engine/engine."
        if [ "$1" = "-h" ] || [ "$1" = "--help" ]; then exit 0; else exit 2; fi
        ;;
esac

bundle=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
out=${1:-$bundle-engine}
parent=$(CDPATH='' cd -- "$(dirname -- "$out")" 2>/dev/null && pwd) ||
    refuse "there is no folder for $out" "make it first, or name another" 2
out=$parent/$(basename -- "$out")
case $out/ in
    "$bundle"/*) refuse "$out is inside the bundle, which must stay as it is" "name a folder beside it" 2 ;;
esac

# Where the system tells what board it is. Another file can stand in.
device_tree=${EDGEFORGE_DEVICE_TREE:-/proc/device-tree/compatible}

check_gpu() {
    found=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d ' ') || found=
    case $found in
        [0-9]*.[0-9]) ;;
        *)
            # Boards whose nvidia-smi does not know it name their chip in the device tree.
            case $({ tr '\0' ' ' <"$device_tree"; } 2>/dev/null) in
                *tegra234*) found=8.7 ;;
                *tegra264*) found=11.0 ;;
                *) refuse "there is no NVIDIA GPU here: nvidia-smi names none" "run this on the device, and check its driver" 7 ;;
            esac
            ;;
    esac
    [ "$found" = "$capability" ] ||
        refuse "this bundle is for $profile, whose GPU has compute capability $capability, and this one has $found" \
            "run this on a $profile, or build a bundle for this device" 7
}

# package_version PACKAGE PROGRAM: asked of the Python beside the program, without importing the package
package_version() {
    folder=$(dirname -- "$(command -v "$2")")
    for python in "$folder/python3" "$folder/python" python3; do
        if "$python" -c 'import sys; from importlib.metadata import version; print(version(sys.argv[1]))' "$1" 2>/dev/null
        then return 0; fi
    done
    return 0
}

# at_least VERSION LEAST
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

# A build is repeated only where it is of another bundle.
mark=$(sha256sum "$bundle/manifest.json" | cut -d ' ' -f 1)
is_built() { [ -f "$1.of" ] && [ "$(cat "$1.of")" = "$mark" ] && [ -d "$1" ]; }
keep() {
    rm -rf "$1" "$1.of"
    mv "$1.partial" "$1"
    printf '%s\n' "$mark" >"$1.of"
}

check_bundle() {
    (cd "$bundle" && sha256sum --check --quiet --strict SHA256SUMS) >&2 ||
        refuse "the bundle is damaged or not complete" "copy it again" 6
}

# refuse_end PROGRAM EXIT_CODE
refuse_end() {
    if [ "$2" -eq 137 ]; then
        refuse "$1 was killed, as the system does when memory runs out" "close other programs, or add memory" 8
    fi
    refuse "$1 failed with exit code $2" "its log above says why" 7
}

if is_built "$out/engine"; then
    say "The engine of this bundle is there."
    how_to_run
    exit 0
fi

# From here on there is something to take away.
start() {
    mkdir -p "$out"
    trap 'rm -rf "$out/onnx.partial" "$out/engine.partial"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}
