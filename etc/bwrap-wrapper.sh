#!/bin/sh
# bwrap-wrapper.sh - a wall around one command, by bubblewrap(1); for a [command NAME] of agent.ini:
#
#   wrapper = /etc/mint-spool/bwrap-wrapper.sh --ro /opt/solver --ro /data/confidential --hide {base} {work} --
#
#   bwrap-wrapper.sh [--net] [--ro PATH]... [--hide PATH] WORK -- COMMAND [ARGUMENT]...
#
# The command sees /usr, a few files of /etc and each PATH after --ro, all read-only; an empty /tmp and /dev/shm of its own; and
# WORK, the only place that keeps what it writes. It sees nothing else: no home, no agent.ini, no token, no other job. It has
# no network (--net: the host's), no process but its own, no capability and no way to more rights. --hide empties a folder
# that may lie beneath a --ro one: the agent's base. When the command ends, all that it has started ends.
#
# The wall falls with bwrap, and bwrap with the runner's supervisor (--die-with-parent). That one is nobody's child: the agent
# may stop and start meanwhile. A TERM is for the command alone, which may clean up; bwrap waits for it.
#
# Needs bubblewrap 0.4 or later and coreutils 8.31 or later; for an ordinary user, user namespaces. Install it where only root
# can write.

set -eu

die() {
    printf 'bwrap-wrapper: %s\n' "$1" >&2
    exit 126
}

usage() {
    die "$1; usage: bwrap-wrapper.sh [--net] [--ro PATH]... [--hide PATH] WORK -- COMMAND [ARGUMENT]..."
}

need() {
    case $1 in
        /*) [ -e "$1" ] || die "there is no $1" ;;
        *) usage "'$1' is not an absolute path" ;;
    esac
}

# A shell has one list only: what bwrap is told is put behind the words that are still to be read, and counted.
net=no hide= told=0
while :; do
    case ${1-} in
        --net)
            net=yes
            shift
            ;;
        --ro)
            [ -z "$hide" ] || usage "--ro comes before --hide, lest it show what is hidden"
            need "${2-}"
            set -- "$@" --ro-bind "$2" "$2"
            told=$((told + 3))
            shift 2
            ;;
        --hide)
            [ -z "$hide" ] || usage "--hide is given twice"
            need "${2-}"
            hide=$2
            set -- "$@" --tmpfs "$2"
            told=$((told + 2))
            shift 2
            ;;
        *) break ;;
    esac
done

need "${1-}"
work=$1
[ "${2-}" = -- ] || usage "'--' is missing behind $work"
shift 2
left=$(($# - told))
[ "$left" -gt 0 ] || usage "there is no command"
case $1 in *=*) die "'$1': env(1) would take a command with = in its name for a variable" ;; esac
command -v bwrap >/dev/null || die "there is no bwrap; install bubblewrap"

set -- "$@" --bind "$work" "$work" --chdir "$work" --remount-ro /
told=$((told + 7))
# Only now: the path to WORK had to be made in it.
[ -z "$hide" ] || { set -- "$@" --remount-ro "$hide" && told=$((told + 2)); }
# Ignored here, so that bwrap outlives a TERM to the whole group; given back to the command.
trap '' HUP INT TERM
set -- "$@" -- /usr/bin/env --default-signal=HUP,INT,TERM
told=$((told + 3))
while [ "$left" -gt 0 ]; do
    set -- "$@" "$1"
    shift
    left=$((left - 1))
done

# What programs look up, and nothing secret.
etc='ld.so.cache ld.so.conf ld.so.conf.d alternatives passwd group nsswitch.conf localtime fonts'
[ "$net" = no ] || etc="$etc resolv.conf hosts services ssl pki ca-certificates"
for name in $etc; do
    [ ! -e "/etc/$name" ] || set -- --ro-bind "/etc/$name" "/etc/$name" "$@"
done
# Folders, or links into /usr.
for path in /bin /sbin /lib /lib32 /lib64 /libx32; do
    if [ -h "$path" ]; then
        set -- --symlink "$(readlink "$path")" "$path" "$@"
    elif [ -d "$path" ]; then
        set -- --ro-bind "$path" "$path" "$@"
    fi
done
set -- --ro-bind /usr /usr --proc /proc --dev /dev --tmpfs /tmp "$@"
[ "$net" = no ] || set -- --share-net "$@"
exec bwrap --unshare-all --die-with-parent --cap-drop ALL "$@"
