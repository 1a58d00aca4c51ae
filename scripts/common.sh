# Sourced first by every script: the system, the repository's root, the Python to use, and how errors are shown.

# Sourced a second time, by distill.sh of a thin script: what was set since then stays. (No array comes from outside.)
if [ -n "${RESERVED[1]:-}" ]; then return 0; fi

unset CDPATH    # which leads cd to folders of other places, and makes it print them

# Clusters and shells export these names for purposes of their own (ARCH=x86_64). They are taken from the script's own
# lines or from DELT_ARCH, DELT_SEED and so on, and never from the environment. All other variables can be set there.
RESERVED=(ARCH NAME SEED LR DEVICE INIT METHOD STAGES WORKERS NPROC)
PROGRAM='DEBUG GRACE MAX_PIXELS'    # DELT_DEBUG and so on are read by the stages themselves
IGNORED=    # what the environment sets and no script reads; distill.sh names it
for name in "${RESERVED[@]}"; do
    given=DELT_$name
    if [ -n "${!given+set}" ]; then
        unset "$name"
        printf -v "$name" %s "${!given}"
    else
        [ -z "${!name:-}" ] || IGNORED+=" $name (DELT_$name is read)"
        unset "$name"
    fi
done
for given in ${!DELT_@}; do
    name=${given#DELT_}
    case " ${RESERVED[*]} $PROGRAM " in *" $name "*) ;; *) IGNORED+=" $given ($name is read)" ;; esac
done
unset name given

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

# [ and $(( )) take what is no number for false or for a variable's name, say so in words of their own, and go on.
need_number() {    # VARIABLE LEAST
    case ${!1} in
        ''|*[!0-9]*) ;;
        *) [ "${!1}" -lt "$2" ] || return 0 ;;
    esac
    fail "$1: '${!1}' is no whole number of at least $2"
}

case $(uname -s) in
    Linux|Darwin) ;;    # WSL is a Linux
    *) fail "runs on Linux, macOS and WSL (Windows Subsystem for Linux), and this is $(uname -s)" ;;
esac

# supervised COMMAND...: a signal to the script, which a scheduler may send to it alone, goes on to the command. The
# script ends after the command, which saves its state, rather than before it.
supervised() {
    local code=0 signalled=yes ended=
    "$@" <&0 &    # bash deals with signals only while it waits for what runs beside it
    trap "signalled=yes ended=yes; kill -TERM $! 2> /dev/null || true" TERM INT
    while [ "$signalled" ]; do    # a signal ends the wait, not the command
        signalled= code=0
        wait "$!" || code=$?
    done
    trap - TERM INT
    [ -z "$ended" ] || [ "$code" -ne 0 ] || code=143    # it was done, and nothing else is to begin
    return "$code"
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# PYTHON_BIN: the Python that has the requirements installed. Set it to use an environment of your own.
if [ -z "${PYTHON_BIN:-}" ]; then
    PYTHON_BIN=$ROOT/.venv/bin/python
    [ -x "$PYTHON_BIN" ] || PYTHON_BIN=python3
fi

for_method() {    # NAME VALUE: of a variable for that method; empty for another METHOD, whose recipe decides then
    [ "${METHOD:-delt}" != "$1" ] || echo "$2"
}

need_packages() {
    "$PYTHON_BIN" -c 'import sys, importlib.util as u; sys.exit(u.find_spec("torch") is None)' 2>/dev/null ||
        fail "$PYTHON_BIN has no PyTorch: run 'bash scripts/setup.sh' first, or set PYTHON_BIN to a Python that has it"
}
