#!/usr/bin/env bash
# On a machine with a CUDA device: the laws that are skipped elsewhere, then recipes of paper size for a few steps each.
# Under ten minutes; may be stopped at any time: what was measured stands in the JSON.
#
#     tests/gpu/run.sh [FILE.json]          PYTHON=... chooses the interpreter, MINUTES=... the time for the recipes
#
# Without a CUDA device it runs the same recipes with tiny sizes on the CPU, which shows that the script works.
set -u
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
out=${1:-book/results/speed/gpu.json}
export PYTHONPATH="$PWD:$PWD/book${PYTHONPATH:+:$PYTHONPATH}"

laws=skipped
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  if timeout 240 "$python" -m pytest -q -p no:cacheprovider -m cuda tests; then laws=passed; else laws=failed; fi
fi
"$python" -m tests.gpu.recipes --out "$out" --laws "$laws" --minutes "${MINUTES:-5}" || exit 1
[ "$laws" != failed ]
