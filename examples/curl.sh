#!/usr/bin/env bash
# A profile by name in the body, the same in a header, and a schedule of one's own, streamed.
set -euo pipefail
url=${1:-http://127.0.0.1:30000}

curl -si "$url/v1/completions" -H 'content-type: application/json' \
    -d '{"model": "default", "prompt": "Once upon a time", "max_tokens": 24, "custom_params": {"moe_skip": "fast"}}'
echo

curl -s "$url/generate" -H 'content-type: application/json' -H 'x-moe-skip: fast' \
    -d '{"text": "Once upon a time", "sampling_params": {"max_new_tokens": 24}}'
echo

curl -sN "$url/v1/chat/completions" -H 'content-type: application/json' \
    -d '{"model": "default", "stream": true, "max_tokens": 24, "messages": [{"role": "user", "content": "Who are you?"}],
         "custom_params": {"moe_skip": {"prefill": "full", "decode": {"na": 2}}}}'
