#!/usr/bin/env bash
# Run once by the platform, which has unpacked the zip into /autograder/source.
# AUTOGRADER names another place, PYTHON another Python (to try it).
set -eu
cd "${AUTOGRADER:-/autograder}/source"
python="${PYTHON:-}"
[ -n "$python" ] || apt-get update
for version in 3.13 3.12 3.11; do
    [ -n "$python" ] && break
    apt-get install -y "python$version" "python$version-venv" && python="python$version"
done
"$python" -m venv venv
# The build without CUDA is a tenth of the size; if it cannot be had, the next line takes the other.
torch="$(grep ^torch== project/requirements.txt)"
venv/bin/pip install --quiet "$torch" --index-url https://download.pytorch.org/whl/cpu || true
venv/bin/pip install --quiet -r project/requirements.txt
