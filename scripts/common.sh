# Sourced by the other scripts: makes the virtual environment they need.
#
# Python runs with -I everywhere: else it looks for modules in the working directory first. That may be a model's, which
# is data and not to be run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV_DIR:-$root/.venv}

say() { printf '%s\n' "$*" >&2; }

find_python() {
  local name
  for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
    if "$name" -I -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  say "Python 3.10 or newer with its venv module is needed (Debian, Ubuntu: apt-get install python3-venv)."
  return 1
}

# make_venv PART...: the package, editable, and these parts. What is there already is not installed again.
#   base      what serving needs: PyTorch, Transformers
#   deploy    the extra `deploy` alone, without base
#   EXTRA     any other extra, and base
make_venv() {
  local stamps="$venv/.installed-$(cksum <"$root/pyproject.toml" | cut -d ' ' -f 1)" part python missing=()
  for part in "$@"; do
    if [ ! -e "$stamps/$part" ]; then missing+=("$part"); fi
  done
  if [ ${#missing[@]} -eq 0 ]; then return; fi
  if [ -z "${lock:-}" ] && command -v flock >/dev/null; then
    # two that install into one environment at once spoil it: the second waits, and looks again
    local lock
    mkdir -p "$(dirname "$venv")"
    exec {lock}<"$(dirname "$venv")"
    flock --nonblock "$lock" || { say "Waiting for another script that installs ..." && flock "$lock"; }
    make_venv "$@"
    exec {lock}<&-
    return
  fi
  if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python) || exit 1
    say "Making $venv with $("$python" --version) ..."
    "$python" -I -m venv "$venv"
  fi
  if [ "${missing[*]}" = deploy ] || [ -e "$stamps/base" ]; then
    say "Installing what the command needs (once) ..."
  else
    say "Installing (minutes the first time: PyTorch is large) ..."
  fi
  for part in "${missing[@]}"; do
    install_part "$part"
    mkdir -p "$stamps" && touch "$stamps/$part"
    if [ "$part" != deploy ]; then touch "$stamps/base"; fi
  done
}

install_part() {
  local pip=("$venv/bin/python" -I -m pip --disable-pip-version-check install --quiet)
  case "$1" in
    base) "${pip[@]}" --editable "$root" ;;
    deploy)
      # pip installs no extra without the package's own requirements, which are gigabytes here
      "${pip[@]}" --no-deps --editable "$root" packaging
      requirements_of deploy | "${pip[@]}" --requirement /dev/stdin
      ;;
    deepspeed)
      # its setup imports torch, which pip's isolated build would not have
      "${pip[@]}" wheel
      "${pip[@]}" --no-build-isolation --editable "$root[deepspeed]"
      ;;
    *) "${pip[@]}" --editable "$root[$1]" ;;
  esac
}

# requirements_of EXTRA: what it adds to the package's own, a line each
requirements_of() {
  "$venv/bin/python" -I - "$1" <<'PYTHON'
import importlib.metadata
import sys

from packaging.requirements import Requirement

for one in map(Requirement, importlib.metadata.requires("gptj-serve")):
    if one.marker and one.marker.evaluate({"extra": sys.argv[1]}) and not one.marker.evaluate({"extra": ""}):
        one.marker = None
        print(one)
PYTHON
}

# aws_command NAME ARGUMENT...: becomes a command of gptj_serve.aws
aws_command() {
  make_venv deploy
  exec "$venv/bin/python" -I -m gptj_serve.aws "$@"
}

# sdk_venv NAME REQUIREMENT...: other projects' programs have other versions of our dependencies, so each gets an
# environment of its own; prints where
sdk_venv() {
  local made=$venv-$1 stamp
  stamp=$made/.installed-$(cksum <<<"${*:2}" | cut -d ' ' -f 1)
  if [ ! -e "$stamp" ]; then
    say "Installing ${*:2} ..."
    # a function in $( ) does not end at a failure by itself
    "$venv/bin/python" -I -m venv "$made" &&
      "$made/bin/python" -I -m pip --disable-pip-version-check install --quiet "${@:2}" >&2 &&
      touch "$stamp" || return 1
  fi
  printf '%s\n' "$made"
}
