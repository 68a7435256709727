#!/bin/sh
# runner.sh - runs the command of one job folder: at most once, detached, and able to say at any time what became of it.
#
# A job folder is driven by files alone. `sh runner.sh VERB JOBDIR...` may be called by anyone, at any time, after any
# restart and any number of times at once; nothing but the folder is remembered between two calls. All of this script is
# POSIX sh with setsid, find, sha256sum, sync and the usual small tools, on Linux (/proc). It never evaluates what it
# reads, and it is installed at the site or sent by the program itself, never taken from a job folder.
#
# It reads    in/             inputs
#             run/argv/000... one raw argument per file, digits of equal width; nothing is stripped or added
#             run/env/NAME    one raw value per file; set on top of the environment the runner was started with
#             run/wall_time_s whole seconds after which the command is ended; optional, no limit without it
#             run/grace_s     whole seconds between TERM and KILL; optional, 10
# It writes   work/           a copy of in/; the command runs here and finds this path in CALC_DIR
#             log/            stdout.txt and stderr.txt of the command, runner.log of the runner
#             run/started/    the latch: whoever makes it may start or withdraw the job, nobody else ever
#             run/supervisor  "PID STARTTIME BOOTID" of the process that waits for the command
#             run/pid         the same of the command, which leads a session of its own
#             run/started_at, run/finished_at     seconds since 1970
#             run/exit        the shell's exit status, 0..255; the command has ended when, and only when, this is here
#             run/spawn_failed, run/wall_time_hit, run/cancel     present or not
# Each file but the latch is replaced whole: a reader sees the old contents or the new. What decides (the latch, exit,
# cancel) is synced before it counts, and so are work/ and log/ before run/exit.
#
# Verbs       prepare JOBDIR              in/ copied to work/ (never by hard link), which appears complete or not at all
#             start JOBDIR                the command is started, unless it ever was or was canceled; prints the status
#             status JOBDIR...            one line each: absent | new | canceled | starting | running pid=N started_at=N |
#                                         exited exit=N started_at=N finished_at=N [spawn_failed=1] [wall_time=1]
#                                         [cancel=1] | lost why=reboot|vanished
#             wait SECONDS JOBDIR...      the same lines, as soon as one is neither starting nor running
#             cancel JOBDIR               never started if it was not; else TERM, grace, KILL to its whole session
#             sums JOBDIR SUBDIR          sha256sum of each file below SUBDIR, then `other ./PATH` for what is no file
#             version
# Exit codes  0 fine, 2 usage, 1 anything else, with one line on stderr that names the folder and what to do.
#
# Why the command is started at most once
#
#   Permission passes through run/started/, always by one atomic act:
#     mkdir run/started          one caller wins; before it tries, it leaves .starter.* with its own triple beside it
#     .starter.* -> started/by   the winner's triple; now a supervisor may be spawned
#     by -> launched             the command's own process, after writing run/pid and before it becomes the command
#     by -> withdrawn            cancel came first
#     by -> abandoned            all that could have gone on were found dead
#   There is one `by` and a rename can be done once, so of launched, withdrawn and abandoned exactly one ever exists, and
#   what was called `canceled` or `lost` cannot start afterwards, however late a frozen process wakes up.
#   Without `launched` the command never ran. With it, it may have, and only run/exit says how it ended.
#
# Alive means pid, start time and boot id, and not a zombie. A process is looked for in the order in which each hands
# over to the next (starter, supervisor, command; and command, supervisor, run/exit at the end), so that a job between
# two hands is not taken for lost.
#
# Known limits: a command that calls setsid itself leaves the session, and with it the reach of cancel. What it leaves
# running in its session when it ends by itself is not touched. Between the last look at a process and its signal lie
# some microseconds in which its pid could be reused: sh has no pidfd. Names of variables here begin with ms_ because a
# shell exports a variable that came with the environment, and the command's environment must arrive unchanged.

umask 077

ms_nl='
'
ms_cr=$(printf '\r')
ms_digits=0123456789
ms_letters=abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_

# ---- Messages, naps and clocks

die() {
    printf '%s\n' "$(printf '%s' "runner: $1" | tr '\n\r' '??')" >&2
    exit "${2:-1}"
}

usage() {
    die "$1; usage: sh runner.sh prepare|start|status|cancel JOBDIR, wait SECONDS JOBDIR..., sums JOBDIR SUBDIR, version" 2
}

# One line in runner.log, which is the stderr of the internal verbs.
log() {
    printf '%s %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$1" >&2
}

# Any text as one harmless line.
tame() {
    printf '%s' "$1" | LC_ALL=C tr -c 'A-Za-z0-9_./=-' '?'
}

# POSIX sleep takes whole seconds only.
nap() {
    sleep "$1" 2>/dev/null || sleep 1
}

# Polling: quick in the first two seconds, then cheaper; ms_naps counts the rounds.
nap_longer() {
    ms_naps=$((ms_naps + 1))
    if [ "$ms_naps" -le 40 ]; then nap 0.05
    elif [ "$ms_naps" -le 100 ]; then nap 0.1
    elif [ "$ms_naps" -le 160 ]; then nap 0.3
    else nap 1; fi
}

# ms_now: hundredths of a second since boot. Not the wall clock, which may jump.
clock() {
    read -r ms_up ms_rest </proc/uptime
    ms_now=$((${ms_up%.*} * 100 + 1${ms_up#*.} - 100))   # the 1 keeps "08" from being octal
}

# ---- Small files

is_whole() {
    case $1 in
        '' | *[!$ms_digits]* | ??????????* | 0?*) return 1 ;;
    esac
}

# ms_value: the first line of a file; fails if there is none.
read_line() {
    ms_value=
    { read -r ms_value <"$1"; } 2>/dev/null || [ -n "$ms_value" ]
}

read_whole() {
    read_line "$1" && is_whole "$ms_value"
}

# A sync that takes a path where it can; an old one syncs everything.
flush() {
    sync "$1" 2>/dev/null || sync
}

# run/NAME replaced by VALUE. `note` for what a power cut may take, `record` for what it may not.
note() {
    printf '%s\n' "$2" >"$ms_run/.$1.$$" && mv -f "$ms_run/.$1.$$" "$ms_run/$1"
}

record() {
    printf '%s\n' "$2" >"$ms_run/.$1.$$" && flush "$ms_run/.$1.$$" &&
        mv -f "$ms_run/.$1.$$" "$ms_run/$1" && flush "$ms_run"
}

# ---- Processes

# ms_state, ms_pgrp, ms_session, ms_ticks of a process. Its name may hold blanks, newlines and parentheses, so only what
# follows the last one counts.
read_process() {
    ms_stat=
    while IFS= read -r ms_piece || [ -n "$ms_piece" ]; do
        ms_stat="$ms_stat $ms_piece"
    done <"/proc/$1/stat" || return 1
    take_stat ${ms_stat##*) }
} 2>/dev/null

# $1 is field 3 of proc(5).
take_stat() {
    [ $# -ge 20 ] || return 1
    ms_state=$1 ms_pgrp=$3 ms_session=$4 ms_ticks=${20}
}

ms_boot_now=
read_line /proc/sys/kernel/random/boot_id && ms_boot_now=$ms_value

# ms_pid, ms_start, ms_boot out of a file; anything else than two numbers and a word is no triple. A pid below 2 would
# mean something else to kill.
read_triple() {
    { read -r ms_pid ms_start ms_boot ms_rest <"$1"; } 2>/dev/null || return 1
    is_whole "$ms_pid" && [ "$ms_pid" -gt 1 ] && [ -n "$ms_boot" ] || return 1
    case $ms_start in '' | *[!$ms_digits]*) return 1 ;; esac
}

alive_in() {
    read_triple "$1" && [ "$ms_boot" = "$ms_boot_now" ] || return 1
    read_process "$ms_pid" && [ "$ms_ticks" = "$ms_start" ] || return 1
    case $ms_state in Z | X | x) return 1 ;; esac
}

# ms_me: the triple of this very process.
know_myself() {
    read_process $$ || die "cannot read /proc/$$/stat; this needs Linux with /proc mounted"
    ms_me="$$ $ms_ticks $ms_boot_now"
}

# ---- Status

enter() {
    case $1 in
        /*) ms_dir=$1 ;;
        *) usage "'$1' is not an absolute path" ;;
    esac
    while [ "$ms_dir" != "${ms_dir%/}" ]; do ms_dir=${ms_dir%/}; done
    ms_run=$ms_dir/run ms_latch=$ms_dir/run/started
}

enter_existing() {
    enter "$1"
    [ -d "$ms_dir" ] || die "$ms_dir: no such folder; make the job folder first"
}

say() {
    ms_word=$1 ms_line=$1${2:+ $2}
}

# ms_word and ms_line for the job. Some answers need a second look, because someone moved meanwhile or may be about to.
judge() {
    ms_patience=10
    until look; do
        ms_patience=$((ms_patience - 1))
        nap 0.1
    done
}

look() {
    if [ ! -d "$ms_dir" ]; then say absent
    elif read_whole "$ms_run/exit"; then say_exited
    elif [ -e "$ms_latch/withdrawn" ]; then say canceled
    elif [ -e "$ms_latch/abandoned" ]; then say_lost
    elif [ -e "$ms_latch/launched" ]; then look_launched
    elif [ -e "$ms_latch/by" ]; then look_granted
    elif [ -d "$ms_latch" ]; then look_latched
    else say new
    fi
}

say_exited() {
    ms_code=$ms_value
    whole_or_0 finished_at; ms_finished=$ms_value
    whole_or_0 started_at
    ms_flags=
    [ ! -e "$ms_run/spawn_failed" ] || ms_flags="$ms_flags spawn_failed=1"
    [ ! -e "$ms_run/wall_time_hit" ] || ms_flags="$ms_flags wall_time=1"
    [ ! -e "$ms_run/cancel" ] || ms_flags="$ms_flags cancel=1"
    say exited "exit=$ms_code started_at=$ms_value finished_at=$ms_finished$ms_flags"
}

# 0 stands for a time that could not be written.
whole_or_0() {
    read_line "$ms_run/$1"
    case $ms_value in '' | *[!$ms_digits]*) ms_value=0 ;; esac
}

# The command is gone before its supervisor writes run/exit, and the supervisor only after it has.
look_launched() {
    if alive_in "$ms_run/pid" || alive_in "$ms_run/supervisor"; then
        read_triple "$ms_run/pid" || ms_pid=0
        whole_or_0 started_at
        say running "pid=$ms_pid started_at=$ms_value"
    elif read_whole "$ms_run/exit"; then say_exited
    else say_lost
    fi
}

# Nobody alive: perhaps a supervisor that has not written its name yet. So wait a second, then forbid it.
look_granted() {
    if alive_in "$ms_latch/by" || alive_in "$ms_run/supervisor" || alive_in "$ms_run/pid"; then say starting; return; fi
    if [ "$ms_patience" -gt 0 ] && ! rebooted; then return 1; fi
    [ -e "$ms_latch/by" ] || return 1
    mv "$ms_latch/by" "$ms_latch/abandoned" 2>/dev/null
    # Not allowed to (a stranger asks, a full disk): nothing is decided, so it is not called lost.
    if [ -e "$ms_latch/by" ]; then say starting; else return 1; fi
}

# The latch without a name: its maker died at once or is still at it, and then its .starter file tells.
look_latched() {
    for ms_file in "$ms_run"/.starter.*; do
        if alive_in "$ms_file"; then say starting; return; fi
    done
    # In this order a rename out of `by` is not overlooked.
    for ms_step in by launched withdrawn abandoned; do
        [ ! -e "$ms_latch/$ms_step" ] || return 1
    done
    [ "$ms_patience" -le 0 ] || return 1
    if [ -e "$ms_run/cancel" ]; then say canceled; else say_lost; fi
}

say_lost() {
    if rebooted; then say lost why=reboot; else say lost why=vanished; fi
}

rebooted() {
    for ms_file in "$ms_run/pid" "$ms_run/supervisor" "$ms_latch/launched" "$ms_latch/abandoned" "$ms_latch/by"; do
        if read_triple "$ms_file"; then
            [ "$ms_boot" != "$ms_boot_now" ]
            return
        fi
    done
    return 1
}

print_status() {
    judge
    printf '%s\n' "$ms_line"
}

status() {
    [ $# -ge 1 ] || usage "status needs a job folder"
    for ms_arg in "$@"; do
        enter "$ms_arg"
        print_status
    done
}

# ms_lines: the status of each; fails as long as all are on their way.
look_at_all() {
    ms_lines= ms_over=
    for ms_arg in "$@"; do
        enter "$ms_arg"
        judge
        ms_lines=$ms_lines$ms_line$ms_nl
        case $ms_word in starting | running) ;; *) ms_over=1 ;; esac
    done
    [ -n "$ms_over" ]
}

wait_for_any() {
    [ $# -ge 2 ] || usage "wait needs seconds and a job folder"
    is_whole "$1" || usage "'$1' is not a whole number of seconds"
    clock
    ms_deadline=$((ms_now + $1 * 100)) ms_naps=0
    shift
    until look_at_all "$@"; do
        clock
        [ "$ms_now" -lt "$ms_deadline" ] || break
        nap_longer
    done
    printf '%s' "$ms_lines"
}

# ---- Prepare

# Leftovers of a prepare that was killed; what a living one is building is its own. PID.STARTTIME are in the name.
remove_stale_parts() {
    for ms_part in "$ms_dir"/work.part "$ms_dir"/work.part.*; do
        ms_owner=${ms_part##*/work.part}
        ms_owner=${ms_owner#.}
        ms_pid=${ms_owner%.*} ms_start=${ms_owner#*.}
        if is_whole "$ms_pid" && read_process "$ms_pid" && [ "$ms_ticks" = "$ms_start" ]; then continue; fi
        [ ! -e "$ms_part" ] || rm -rf "$ms_part"
    done
}

# Copy-on-write where cp and the file system have it, never a hard link: the command must not reach in/ through work/.
copy_tree() {
    mkdir "$2" || return 1
    [ -d "$1" ] || return 0
    ms_reflink=--reflink=auto
    if cp "$ms_reflink" "$ms_self" "$2/.probe" 2>/dev/null; then
        rm -f "$2/.probe" && cp -RP "$ms_reflink" "$1/." "$2/"
    else
        cp -RP "$1/." "$2/"
    fi
}

prepare() {
    [ $# -eq 1 ] || usage "prepare needs one job folder"
    enter_existing "$1"
    mkdir -p "$ms_dir/log" || die "$ms_dir: cannot make log/; check its owner, mode and free space, then repeat"
    remove_stale_parts
    [ ! -d "$ms_dir/work" ] || return 0
    [ ! -h "$ms_dir/in" ] || die "$ms_dir: in is a symbolic link; put the inputs there themselves"
    know_myself
    ms_part=$ms_dir/work.part.$$.${ms_me#* }
    ms_part=${ms_part% *}
    # Synced as a whole before the rename: after a power cut a complete-looking work/ with empty files would be run.
    copy_tree "$ms_dir/in" "$ms_part" && { sync -f "$ms_part" 2>/dev/null || sync; } ||
        { rm -rf "$ms_part"; die "$ms_dir: cannot copy in/ to work/; check free space and modes, then repeat prepare"; }
    # -T, because a plain mv would move into a work/ that another prepare has just finished.
    mv -T "$ms_part" "$ms_dir/work" 2>/dev/null || [ -d "$ms_dir/work" ] || mv "$ms_part" "$ms_dir/work"
    rm -rf "$ms_part"
    [ -d "$ms_dir/work" ] || die "$ms_dir: cannot rename the copy to work/; check the folder's owner and mode, then repeat"
    flush "$ms_dir"
}

# ---- Start

# Takes the latch, leaving this process's triple in run/started/WORD. Fails if it was taken before.
take_latch() {
    know_myself
    ms_mine=.starter.$$.${ms_me#* }
    ms_mine=${ms_mine% *}
    record "$ms_mine" "$ms_me" || die "$ms_dir: cannot write in run/; check free space, owner and mode, then repeat"
    if ! mkdir "$ms_latch" 2>/dev/null; then
        rm -f "$ms_run/$ms_mine"
        [ -d "$ms_latch" ] || die "$ms_dir: cannot make run/started; check free space, owner and mode, then repeat"
        return 1
    fi
    mv "$ms_run/$ms_mine" "$ms_latch/$1" || die "$ms_dir: cannot write in run/started; the job counts as lost"
    flush "$ms_latch"
    flush "$ms_run"
}

check_startable() {
    for ms_file in "$ms_run"/argv/[$ms_digits]*; do
        [ -e "$ms_file" ] || die "$ms_dir: there is no run/argv/; nothing was started; write it, then repeat start"
    done
    command -v setsid >/dev/null || die "$ms_dir: there is no setsid on PATH; nothing was started; install util-linux"
    mkdir -p "$ms_dir/log" && (: >>"$ms_dir/log/runner.log") ||
        die "$ms_dir: cannot write log/runner.log; nothing was started; check owner, mode and free space, then repeat"
}

# The second setsid finds itself a group leader, therefore forks, and its parent returns. So the supervisor is detached
# without `&`, which would leave SIGINT and SIGQUIT ignored in the command, and nobody could undo that.
spawn_supervisor() {
    setsid setsid sh "$ms_self" _supervise "$ms_dir" \
        </dev/null >>"$ms_dir/log/runner.log" 2>&1 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-
}

start() {
    [ $# -eq 1 ] || usage "start needs one job folder"
    enter_existing "$1"
    if [ ! -d "$ms_latch" ] && [ -e "$ms_run/cancel" ]; then
        take_latch withdrawn
    elif [ ! -d "$ms_latch" ]; then
        check_startable
        ! take_latch by || spawn_supervisor
    fi
    clock
    ms_deadline=$((ms_now + 1000)) ms_naps=0
    judge
    while [ "$ms_word" = starting ] && [ "$ms_now" -lt "$ms_deadline" ]; do
        nap_longer
        clock
        judge
    done
    printf '%s\n' "$ms_line"
}

# ---- The supervisor: spawns the command, waits for it, records how it ended

# True if the job is launched, whoever asks: on some network file systems a repeated rename fails though it was done.
claim_launch() {
    mv "$ms_latch/by" "$ms_latch/launched" 2>/dev/null
    [ -e "$ms_latch/launched" ]
}

# A full disk must not turn an ended command into a lost one: the supervisor stays until it could write.
insist() {
    until record "$1" "$2"; do
        [ -d "$ms_run" ] || { log "run/ is gone, nowhere to record $1=$2"; exit 1; }
        sleep 5
    done
}

# env(1) says why it could not become the command; it does so alone and before anything else is written.
spawn_failed() {
    [ ! -e "$ms_run/spawn_failed" ] || return 0
    case $1 in 126 | 127) ;; *) return 1 ;; esac
    [ ! -s "$ms_dir/log/stdout.txt" ] || return 1
    case $(head -c 64 "$ms_dir/log/stderr.txt" | tr -d '\0') in 'env: '* | 'mint-spool-exec: '*) ;; *) return 1 ;; esac
}

start_timer() {
    ms_timer=
    [ -e "$ms_run/wall_time_s" ] || return 0
    setsid sh "$ms_self" _timer "$ms_dir" &
    ms_timer=$!
}

# The timer leads its own group, so that its sleep goes with it; first itself, lest it spawn another. Once it has struck
# it is left alone: it still has to see the end of the session.
stop_timer() {
    [ -n "$ms_timer" ] && [ ! -e "$ms_run/wall_time_hit" ] || return 0
    kill -s TERM "$ms_timer"
    kill_group TERM "$ms_timer"
} 2>/dev/null

# Before run/exit: what the command wrote it seldom synced, and after a power cut a recorded end with empty files beside it
# would be fetched as the result.
sync_results() {
    { sync -f "$ms_dir/work" || sync; } 2>/dev/null
}

supervise() {
    enter "$1"
    # Caught, not ignored: an ignored signal would be inherited by the command. Whoever ends everything with TERM still
    # finds the command's end recorded.
    trap : HUP INT QUIT TERM
    cd /
    know_myself
    note supervisor "$ms_me" || exit 1
    note started_at "$(date +%s)"
    start_timer
    setsid sh "$ms_self" _lead "$ms_dir"
    ms_code=$?
    stop_timer
    claim_launch || { log "not started: $(ls "$ms_latch")"; exit 0; }
    sync_results
    ! spawn_failed "$ms_code" || insist spawn_failed 1
    insist finished_at "$(date +%s)"
    insist exit "$ms_code"
    log "ended: exit $ms_code"
}

# ---- The leader: the process that becomes the command

refuse_spawn() {
    log "cannot spawn: $2"
    insist spawn_failed 1
    exit "$1"
}

# The exact bytes of a file, trailing newlines included. The mark is no trailing byte of any multibyte encoding.
read_raw() {
    ms_value=$(cat "$1" && printf .) || return 1
    ms_value=${ms_value%.}
}

ignored() {
    log "ignored: $(tame "run/${1#"$ms_run/"}")"
}

lead() {
    enter "$1"
    know_myself
    note pid "$ms_me" || refuse_spawn 126 "cannot write run/pid"
    claim_launch || exit 126
    if [ -e "$ms_run/wall_time_s" ] && ! read_whole "$ms_run/wall_time_s"; then
        refuse_spawn 126 "run/wall_time_s is not a whole number of seconds"
    fi
    (: >>"$ms_dir/log/stdout.txt" && : >>"$ms_dir/log/stderr.txt") || refuse_spawn 126 "cannot write in log/"
    cd "$ms_dir/work" || refuse_spawn 126 "cannot enter work/; was it prepared?"
    become_command
}

# The argument list of env(1) grows in "$@", the only list that sh has: variables first, then the command.
become_command() {
    set --
    for ms_file in "$ms_run"/env/* "$ms_run"/env/.[!.]*; do
        [ -e "$ms_file" ] || continue
        ms_name=${ms_file##*/}
        case $ms_name in
            [$ms_digits]* | *[!$ms_letters$ms_digits]*) ignored "$ms_file"; continue ;;
        esac
        read_raw "$ms_file" || refuse_spawn 126 "cannot read run/env/$ms_name"
        set -- "$@" "$ms_name=$ms_value"
    done
    set -- "$@" "CALC_DIR=$ms_dir/work"
    ms_command=
    for ms_file in "$ms_run"/argv/*; do
        case ${ms_file##*/} in *[!$ms_digits]*) ignored "$ms_file"; continue ;; esac
        read_raw "$ms_file" || refuse_spawn 126 "cannot read run/argv/${ms_file##*/}"
        if [ -z "$ms_command" ]; then
            ms_command=found
            # env would take a command with = in its name for one more variable; a shell does not.
            case $ms_value in *=*) set -- "$@" "$(command -v sh)" -c 'exec "$@"' mint-spool-exec ;; esac
        fi
        set -- "$@" "$ms_value"
    done
    [ -n "$ms_command" ] || refuse_spawn 127 "run/argv/ is empty"
    # Found out here, because shells disagree on what a failed exec does.
    env true "$@" || refuse_spawn 126 "the arguments and the environment are too long for this system"
    log "started as $ms_me"
    # The variables are set by env, not by this shell, which has its own ideas about IFS, UID, PATH and others.
    exec env "$@" </dev/null >>"$ms_dir/log/stdout.txt" 2>>"$ms_dir/log/stderr.txt"
}

# ---- Ending a session

# dash wants `--` before a negative number, busybox knows no `--`.
ms_dashes=--
kill -s 0 -- $$ 2>/dev/null || ms_dashes=

kill_group() {
    kill -s "$1" $ms_dashes "-$2"
}

# ms_members, ms_outside: the living of session $ms_sid, and those of them outside the leader's process group.
# ms_stranger is set if the leader's pid belongs to another process now, and then the session is not ours either.
read_session() {
    ms_members= ms_outside= ms_stranger=
    for ms_file in /proc/[$ms_digits]*; do
        ms_pid=${ms_file#/proc/}
        read_process "$ms_pid" || continue
        if [ "$ms_pid" = "$ms_sid" ] && [ "$ms_ticks" != "$ms_sid_start" ]; then ms_stranger=1; fi
        [ "$ms_session" = "$ms_sid" ] || continue
        case $ms_state in Z | X | x) continue ;; esac
        ms_members="$ms_members $ms_pid"
        [ "$ms_pgrp" = "$ms_sid" ] || ms_outside="$ms_outside $ms_pid"
    done
    [ -z "$ms_stranger" ] || ms_members=
    [ -n "$ms_members" ]
}

# A session whose leader is there (even as a zombie) is known by its start time; one that lost it, by the CALC_DIR of any
# member. The number of a session is not given to a new process while a member lives.
session_is_ours() {
    if read_process "$ms_sid"; then
        [ "$ms_ticks" = "$ms_sid_start" ]
        return
    fi
    ms_mark=$(printf '%s' "CALC_DIR=$ms_dir/work" | tr '\n' '\1')
    for ms_pid in $ms_members; do
        if tr '\0\n' '\n\1' <"/proc/$ms_pid/environ" | LC_ALL=C grep -qxF -e "$ms_mark"; then return 0; fi
    done
    return 1
} 2>/dev/null

# The group first, at one instant; then one by one only whom that did not reach, for a second TERM means "at once" to some.
signal_session() {
    [ "$ms_members" = "$ms_outside" ] || kill_group "$1" "$ms_sid"
    for ms_pid in $ms_outside; do
        kill -s "$1" "$ms_pid"
    done
} 2>/dev/null

read_grace() {
    ms_grace=10
    [ -e "$ms_run/grace_s" ] || return 0
    if read_whole "$ms_run/grace_s"; then ms_grace=$ms_value; else ignored "$ms_run/grace_s"; fi
}

# Ends the session named in run/pid: TERM once, then KILL until it is empty or for 5 seconds. Takes nothing on trust: no
# signal unless the session is proven to be the job's.
end_session() {
    read_triple "$ms_run/pid" && [ "$ms_boot" = "$ms_boot_now" ] || return 0
    ms_sid=$ms_pid ms_sid_start=$ms_start
    read_session && session_is_ours || return 0
    read_grace
    clock
    ms_kill_at=$((ms_now + ms_grace * 100)) ms_naps=0
    signal_session TERM
    while read_session; do
        clock
        [ "$ms_now" -lt $((ms_kill_at + 500)) ] || return 0
        [ "$ms_now" -lt "$ms_kill_at" ] || signal_session KILL
        nap_longer
    done
}

cancel() {
    [ $# -eq 1 ] || usage "cancel needs one job folder"
    enter_existing "$1"
    mkdir -p "$ms_run"
    if ! read_whole "$ms_run/exit" && [ ! -e "$ms_run/cancel" ]; then
        record cancel 1 || die "$ms_dir: cannot write run/cancel; check free space, owner and mode, then repeat cancel"
    fi
    [ -d "$ms_latch" ] || take_latch withdrawn
    ms_round=0
    until withdraw; do
        ms_round=$((ms_round + 1))
        [ "$ms_round" -le 100 ] || die "$ms_dir: whoever started it does not get on; repeat cancel"
        nap 0.05
    done
    [ ! -e "$ms_latch/launched" ] || end_session
    settle
    printf '%s\n' "$ms_line"
}

# By a rename the command can no longer be launched, or it has been. Before `by` is there, its writer is awaited.
withdraw() {
    mv "$ms_latch/by" "$ms_latch/withdrawn" 2>/dev/null && flush "$ms_latch"
    for ms_file in "$ms_latch"/withdrawn "$ms_latch"/launched "$ms_latch"/abandoned; do
        [ ! -e "$ms_file" ] || return 0
    done
    judge
    [ "$ms_word" != starting ]
}

# The supervisor needs a moment to record what cancel has done.
settle() {
    clock
    ms_deadline=$((ms_now + 500)) ms_naps=0
    judge
    while [ "$ms_word" = running ] && ! alive_in "$ms_run/pid" && [ "$ms_now" -lt "$ms_deadline" ]; do
        nap_longer
        clock
        judge
    done
}

# Ends the command after run/wall_time_s. On its own, so that it strikes although the supervisor was killed; and it looks
# up every few seconds, so that it does not stay for days then.
strike_at_wall_time() {
    enter "$1"
    read_whole "$ms_run/wall_time_s" || exit 0
    ms_limit=$ms_value ms_naps=0
    until [ -e "$ms_latch/launched" ]; do
        [ -e "$ms_latch/by" ] || exit 0
        nap_longer
    done
    clock
    ms_strike_at=$((ms_now + ms_limit * 100))
    while [ "$ms_now" -lt "$ms_strike_at" ]; do
        alive_in "$ms_run/pid" || exit 0
        ms_left=$((ms_strike_at - ms_now))
        if [ "$ms_left" -gt 500 ]; then nap 5; elif [ "$ms_left" -gt 100 ]; then nap 1; else nap 0.1; fi
        clock
    done
    alive_in "$ms_run/pid" || exit 0
    log "wall time of $ms_limit s reached"
    record wall_time_hit 1
    end_session
}

# ---- Sums

# sha256sum's own form for odd names, made here because not every sha256sum has it: \ before the line; \\, \n, \r within.
escape() {
    printf '%s\n' "$1" | sed -e 's/\\/\\\\/g' -e "s/$ms_cr/\\\\r/g" | sed -e ':a' -e '$!{' -e 'N' -e 'ba' -e '}' -e 's/\n/\\n/g'
}

sum_odd() {
    for ms_file in "$@"; do
        ms_sum=$(sha256sum <"$ms_file") || exit 1
        printf '\\%s  %s\n' "${ms_sum%% *}" "$(escape "$ms_file")"
    done
}

other_odd() {
    for ms_file in "$@"; do
        printf '\\other %s\n' "$(escape "$ms_file")"
    done
}

# Fails if anything could not be read.
list_sums() {
    find . -type f ! -path "*$ms_nl*" ! -path "*$ms_cr*" ! -path '*\\*' -exec sha256sum {} + &&
        find . -type f \( -path "*$ms_nl*" -o -path "*$ms_cr*" -o -path '*\\*' \) -exec sh "$ms_self" _sum_odd {} + &&
        find . ! -type f ! -type d ! -path "*$ms_nl*" ! -path "*$ms_cr*" ! -path '*\\*' -exec printf 'other %s\n' {} + &&
        find . ! -type f ! -type d \( -path "*$ms_nl*" -o -path "*$ms_cr*" -o -path '*\\*' \) \
            -exec sh "$ms_self" _other_odd {} +
}

sums() {
    [ $# -eq 2 ] || usage "sums needs a job folder and a folder in it"
    enter_existing "$1"
    case /$2/ in */../* | */./* | *//*) usage "'$2' is not the name of a folder in the job folder" ;; esac
    # In the C locale a name is bytes; in others find matches no name that is not valid text.
    LC_ALL=C
    export LC_ALL
    cd -P "$ms_dir" 2>/dev/null || die "$ms_dir: cannot be entered; check its owner and mode"
    ms_top=$PWD
    cd -P "$ms_top/$2" 2>/dev/null || die "$ms_dir: there is no folder $(tame "$2") that can be entered in it"
    [ "$PWD" = "$ms_top/$2" ] || die "$ms_dir: $(tame "$2") leads out of it by a symbolic link; remove that"
    list_sums || die "$ms_dir: not everything in $(tame "$2") could be read; see above, check owners and modes, then repeat"
}

# ---- Which verb

find_myself() {
    case $0 in
        /*) ms_self=$0 ;;
        *) ms_self=$PWD/$0 ;;
    esac
    [ -r "$ms_self" ] || die "cannot find myself as '$ms_self'; call me by a path: sh /path/to/runner.sh"
}

main() {
    find_myself
    [ $# -ge 1 ] || usage "no verb"
    ms_verb=$1
    shift
    case $ms_verb in
        prepare) prepare "$@" ;;
        start) start "$@" ;;
        status) status "$@" ;;
        wait) wait_for_any "$@" ;;
        cancel) cancel "$@" ;;
        sums) sums "$@" ;;
        version) printf '%s\n' "mint-spool-runner 1" ;;
        _supervise) supervise "$@" ;;
        _lead) lead "$@" ;;
        _timer) strike_at_wall_time "$@" ;;
        _sum_odd) sum_odd "$@" ;;
        _other_odd) other_odd "$@" ;;
        *) usage "no such verb: $(tame "$ms_verb")" ;;
    esac
}

# On one line: a shell reads a script while it runs it, and must not come back to the file.
main "$@"; exit
