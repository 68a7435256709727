#!/bin/sh
# プログラム(A)、SSH方式: MIntのモジュールが実行する。例: ./module.sh 206000 0.3 235
# Program A, SSH mode: what MInt's module runs. YOUNG_MPA POISSON YIELD_MPA; see ../common/module.sh.
SITE=${SITE:-example-ssh}
export SITE
exec "$(dirname -- "$0")/../common/module.sh" "$@"
