#!/bin/sh
# プログラム(C): 外部計算機で最初に動く、サイトが用意した固定のスクリプト。WebAPI方式でもSSH方式でも同じ。
# Program C: the site's own fixed script, the first thing to run at the site; the same in both modes.
#
#   program_c.sh COMMAND [ARGUMENT]…      カレントディレクトリがジョブの作業場所 / run in the job's working directory
#
# MIntから来るのはコマンド名と引数だけ。ここに無い名前は実行しない。
# MInt sends a command's name and arguments, nothing else. A name that is not in the list below is not run.
set -eu
umask 077
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)

# サイトの設定。任意。例: CCX=/opt/ccx/bin/ccx  TABLE=/secret/curve.csv  PYTHON=/usr/bin/python3.11
# The site's settings, optional: PYTHON (3.9 or later), TABLE (the confidential curve), CCX (the solver).
PATH=${PATH:-/usr/local/bin:/usr/bin:/bin}
PYTHON=python3
TABLE=$here/confidential/hardening_curve.csv
CCX=ccx
if [ -f "$here/site.conf" ]; then . "$here/site.conf"; fi
export PATH TABLE CCX

case ${1:-} in
    plate)
        shift
        exec "$PYTHON" "$here/program_d.py" "$@"
        ;;
    *)
        echo "このサイトが許可していないコマンドです / not a command of this site" >&2
        exit 77
        ;;
esac
