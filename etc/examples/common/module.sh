#!/bin/sh
# プログラム(A)の本体: 入力を作り、外部計算機に頼み、結果を待って受け取る。webapi/module.sh と ssh/module.sh から呼ばれる。
# The body of program A: writes the input, has it computed outside, waits, takes the result. Called by webapi/ and ssh/module.sh.
#
#   SITE=… common/module.sh YOUNG_MPA POISSON YIELD_MPA
#
# 環境変数 / environment:
#   SITE        外部計算機の識別子 / the site's name (required)
#   SPOOL       MInt側のスプール / the spool; 無ければ SPOOL_URL と SPOOL_TOKEN / otherwise SPOOL_URL and SPOOL_TOKEN (@FILE)
#   SPOOLCTL    spoolctl のパス / path of spoolctl
#   PYTHON      Python 3.9以降 / 3.9 or later
# 終了コード: ジョブの結果そのまま (0 成功, 1 失敗, …)。 / Exit code: the job's.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
[ $# -eq 3 ] || { echo "usage: module.sh YOUNG_MPA POISSON YIELD_MPA" >&2; exit 2; }
: "${SITE:?}" "${PYTHON:=python3}" "${SPOOLCTL:=$here/../../../tools/spoolctl}"

# 1. 入力 / the input: 材料の三つの値 / three material values
"$PYTHON" "$here/plate.py" --young-mpa "$1" --poisson "$2" --yield-mpa "$3" >material.txt

# 2. 外部計算 / the step outside: --wait で終わりを待ち、--into で結果をここに置く / waits, and puts what came back here
if [ -n "${SPOOL:-}" ]; then
    set -- --spool "$SPOOL"
else
    set -- --url "${SPOOL_URL:?SPOOL or SPOOL_URL}" --token "${SPOOL_TOKEN:?}"
fi
exec "$SPOOLCTL" "$@" submit --site "$SITE" --command plate --arg material.txt --in material.txt \
    --out '*.dat' --out '*.frd' --wait --into .
