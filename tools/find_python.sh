#!/usr/bin/env bash
# Prints the path of a Python that can hold the project (3.11 to 3.13, with venv and pip), or says in one line why there is none.
# Usage: find_python.sh [PYTHON]   (PYTHON: the only one to try)
set -euo pipefail

check='
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit("is Python %d.%d" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError:
    sys.exit("has no venv module (on Debian: apt-get install python3-venv)")
print(sys.executable)
'

rejected=()
named=$#
[ "$named" -gt 0 ] || set -- python3.11 python3.12 python3.13 python3 python
for name in "$@"; do
    if ! command -v "$name" >/dev/null; then
        [ "$named" -eq 0 ] || rejected+=("no $name")
        continue
    fi
    # A pyenv shim of a version that is not active is on PATH and fails.
    if answer=$("$name" -c "$check" 2>&1); then
        echo "$answer"
        exit 0
    fi
    case $answer in
        is\ Python* | has\ no*) rejected+=("$name $answer") ;;
        *) rejected+=("$name does not start") ;;
    esac
done
listed=$(IFS=';'; echo "${rejected[*]-}")
echo "error: needs Python 3.11, 3.12 or 3.13 with the venv module; found: ${listed:-none}. Install one, or name it: make install PYTHON=/path/to/python3.11" >&2
exit 1
