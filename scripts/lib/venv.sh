# shellcheck shell=bash
# Makes and updates the virtual environment from a lock file. Sourced by run, test, check and lock/update.
# What is then done with it is the business of the script that sources this.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=${RELAYD_VENV:-$root/.venv}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 DEBIAN_FRONTEND=noninteractive

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

# The first Python 3.11 or newer that really runs: a pyenv shim may be there and still refuse. The distribution's own
# comes first, where its venv works: it is kept safe by the distribution, and built with profile-guided optimisation,
# without which (pyenv's default) the same code takes 1.5 times as long.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} /usr/bin/python3 python3.11 python3 python3.12 python3.13; do
        if [ "$candidate" = /usr/bin/python3 ] && ! "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            continue
        fi
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "Python 3.11 or newer is needed; on Debian 12: apt-get install python3 python3-venv"
}

# Debian ships venv without ensurepip; python3-venv brings it.
need_ensurepip() {
    "$1" -c 'import ensurepip, venv' >/dev/null 2>&1 && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing python3-venv"
        apt_install python3-venv
    fi
    "$1" -c 'import ensurepip, venv' >/dev/null 2>&1 || die "python3-venv is missing: apt-get install python3-venv"
}

apt_install() {
    # the index may be absent (fresh images) or stale: update once, when a plain install fails
    apt-get install -y -qq --no-install-recommends "$@" </dev/null >/dev/null 2>&1 && return
    apt-get update -qq </dev/null >&2 && apt-get install -y -qq --no-install-recommends "$@" </dev/null >&2
}

# ensure_tools: the programs of scripts/lock/tools.txt, apart from the environment that relayd is measured in.
ensure_tools() {
    tools=$root/.venv-tools
    local lock="$root/scripts/lock/tools.txt" python stamp
    stamp=$(sha256sum <"$lock" | cut -d' ' -f1)
    [ -f "$tools/.$stamp" ] && return
    python=$(find_python) || exit 1
    need_ensurepip "$python"
    "$python" -m venv --clear "$tools"
    say "installing locked packages (tools)"
    "$tools/bin/python" -m pip install -q --require-hashes -r "$lock"
    touch "$tools/.$stamp"
}

# ensure_venv runtime|dev: the environment holds exactly locked packages, and relayd itself, editable.
ensure_venv() {
    local kind=$1 lock="$root/scripts/lock/$1.txt" python stamp
    stamp=$(cat "$lock" "$root/pyproject.toml" | sha256sum | cut -d' ' -f1)
    if [ -x "$venv/bin/python" ] && "$venv/bin/python" -c '' 2>/dev/null; then
        # the dev lock holds all of the runtime lock, in the same versions
        if [ -f "$venv/.relayd-$kind-$stamp" ]; then return; fi
    else
        python=$(find_python) || exit 1
        need_ensurepip "$python"
        say "making a virtual environment in $venv"
        "$python" -m venv --clear "$venv"
    fi
    say "installing locked packages ($kind)"
    "$venv/bin/python" -m pip install -q --require-hashes -r "$lock"
    # setuptools is in the lock, so nothing is fetched that no hash was written down for
    "$venv/bin/python" -m pip install -q --no-deps --no-build-isolation -e "$root"
    rm -f "$venv/.relayd-$kind-"*
    touch "$venv/.relayd-$kind-$stamp"
}
