# shellcheck shell=bash
# What relays are started with that scripts/bench measures beside relayd. Sourced by scripts/peers/*.

die() { echo "$*" >&2; exit 1; }

# find_relay VARIABLE PROGRAM: the path of the relay, which VARIABLE may name.
find_relay() {
    command -v "${!1:-$2}" || die "not installed ($1: its path elsewhere)"
}

# need_root USER...: root, and the users that the relay's processes change to.
need_root() {
    [ "$(id -u)" = 0 ] || die "starts as root only"
    for user in "$@"; do
        id "$user" >/dev/null 2>&1 || die "its user $user is missing"
    done
}

# run_apart OPTIONS SCRIPT ARGUMENT...: runs a shell's SCRIPT as the first process of namespaces of its own (OPTIONS of
# unshare besides that of processes). What it starts stays in its tree, with what it costs, and ends with this script.
run_apart() {
    trap 'pkill -KILL -P "${peer-}" || true; wait || true' EXIT
    trap exit INT HUP TERM
    # unshare itself may complain about such an end, the relay is to be heard
    # shellcheck disable=SC2086 # options are words
    unshare --pid --fork --kill-child $1 sh -c "exec 2>&3 3>&-; $2" sh "${@:3}" 3>&2 2>/dev/null &
    peer=$!
    wait "$peer"
}
