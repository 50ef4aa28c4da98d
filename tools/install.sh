#!/usr/bin/env bash
# Makes or updates the environment: virtual environment, the locked packages, this project (editable), patches.
#   VENV    folder of the environment (default .venv)
#   PYTHON  interpreter to build it with (default: the first that fits)
# MOE_OPT_PLATFORM and MOE_OPT_FREE_GB override what is found out about the machine, for tests.
# The stamp is written last, so an interrupted run is completed by the next one.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly UV_VERSION=0.13.9 NEEDED_GB=14
readonly root=$PWD
venv=${VENV:-.venv}
case $venv in /*) ;; *) venv=$root/$venv ;; esac
readonly venv stamp=$venv/.moe-opt-stamp unfinished=$venv/.moe-opt-unfinished

say() { echo "install: $*"; }
fail() { echo "install: error: $*" >&2; exit 1; }

version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

# What the environment was made from: any change of it, or of the place of this checkout, calls for an update.
# Patches are hashed by content, with their names.
key() {
    { echo "$root $1"
      cat requirements.lock pyproject.toml setup.py tools/install.sh
      tail -n +1 patches/series patches/checksums.json patches/*.patch 2>/dev/null || true; } | sha256sum | cut -d' ' -f1
}

platform=${MOE_OPT_PLATFORM:-$(uname -s) $(uname -m)}
case $platform in
    "Linux x86_64") ;;
    "Linux aarch64") say "note: Linux aarch64 is not tested; one package (llguidance) is built from source and needs a Rust compiler" ;;
    *) fail "runs on Linux x86_64 (and aarch64, untested), where SGLang's packages exist; this is $platform" ;;
esac

current=""
[ -x "$venv/bin/python" ] && current=$(version_of "$venv/bin/python" || true)
if [ -n "$current" ] && [ -x "$venv/bin/moe-opt" ] && [ ! -e "$unfinished" ] \
    && [ "$(cat "$stamp" 2>/dev/null || true)" = "$(key "$current")" ]; then
    say "up to date: $venv (Python $current)"
    exit 0
fi

SECONDS=0
if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv" 2>/dev/null)" ]; then
    fail "$venv exists and is not a virtual environment; move it away or set VENV="
fi
case $current in
    "" | 3.11.* | 3.12.* | 3.13.*) ;;
    *) fail "$venv is a Python $current environment, 3.11 to 3.13 is needed; remove it (rm -rf $venv) and run this again" ;;
esac
python=$(tools/find_python.sh ${PYTHON:+"$PYTHON"})

if ! compgen -G "$venv/lib/python3*/site-packages/sglang-*.dist-info" >/dev/null; then
    place=$venv
    while [ ! -d "$place" ]; do place=$(dirname "$place"); done
    free=${MOE_OPT_FREE_GB:-$(($(df -Pk "$place" | awk 'NR == 2 { print $4 }') / 1048576))}
    [ "$free" -ge "$NEEDED_GB" ] || fail "needs $NEEDED_GB GB free at $place for SGLang and its CUDA packages; $free GB are free"
    say "SGLang, its CUDA packages and the tools go to $venv: about 11 GB and, on a fast line, 3-4 minutes"
fi

if [ -z "$current" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "virtual environment with $python (Python $(version_of "$python"))"
    "$python" -m venv --clear "$venv"
    current=$(version_of "$venv/bin/python")
fi
# A run cut off while it copied a package leaves one that looks installed.
reinstall=()
if [ -e "$unfinished" ]; then
    say "the last run was cut off: installing every package again"
    reinstall=(--reinstall)
fi
rm -f "$stamp"
touch "$unfinished"

if [ "$("$venv/bin/uv" --version 2>/dev/null | cut -d' ' -f2)" != "$UV_VERSION" ]; then
    say "uv $UV_VERSION"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
fi

# Packages are hard-linked from uv's cache. Who has no such cache gets none: it would hold another name of 10 GB.
# The one used meanwhile is kept when the run is cut off, so that the next one need not download everything again.
own_cache=""
if [ -z "${UV_CACHE_DIR:-}" ] && [ ! -d "${XDG_CACHE_HOME:-$HOME/.cache}/uv" ]; then
    own_cache=$venv/.uv-cache
    export UV_CACHE_DIR=$own_cache
fi
export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300} UV_LINK_MODE=${UV_LINK_MODE:-hardlink}
quiet=()
[ -t 2 ] || quiet=(--quiet)

say "packages of requirements.lock ($(grep -c '^[a-z]' requirements.lock) entries)"
"$venv/bin/uv" pip install "${quiet[@]}" --python "$venv/bin/python" "${reinstall[@]}" -r requirements.lock
say "sglang-moe-opt from $root (editable)"
"$venv/bin/uv" pip install "${quiet[@]}" --python "$venv/bin/python" --no-deps --no-build-isolation --reinstall-package sglang-moe-opt -e .
patched=$("$venv/bin/moe-opt" patch apply)
say "patches: $patched"
say "bytecode of what a server imports"
env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" -c \
    'import sglang.srt.entrypoints.http_server, sglang.srt.managers.scheduler, sglang.srt.models.deepseek_v2' >/dev/null

[ -z "$own_cache" ] || rm -rf "$own_cache"
rm -f "$unfinished"
key "$current" >"$stamp.new"
mv "$stamp.new" "$stamp"
say "done in ${SECONDS} s: $venv/bin/moe-opt"
