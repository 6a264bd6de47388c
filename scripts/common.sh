# Sourced by the other scripts: makes the virtual environment they need.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV_DIR:-$root/.venv}

say() { printf '%s\n' "$*" >&2; }

find_python() {
  local name
  for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  say "Python 3.10 or newer with its venv module is needed (Debian, Ubuntu: apt-get install python3-venv)."
  return 1
}

# make_venv EXTRA...: the package, editable, with these extras. What is there already is not installed again.
make_venv() {
  local stamps="$venv/.installed-$(cksum <"$root/pyproject.toml" | cut -d ' ' -f 1)" extra python missing=()
  for extra in "$@"; do
    if [ ! -e "$stamps/$extra" ]; then missing+=("$extra"); fi
  done
  if [ ${#missing[@]} -eq 0 ]; then return; fi
  if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python) || exit 1
    say "Making $venv with $("$python" --version) ..."
    "$python" -m venv "$venv"
  fi
  say "Installing (minutes the first time: PyTorch is large) ..."
  for extra in "${missing[@]}"; do
    install_extra "$extra"
    mkdir -p "$stamps" && touch "$stamps/$extra"
  done
}

install_extra() {
  local pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)
  if [ "$1" = deepspeed ]; then
    # its setup imports torch, which pip's isolated build would not have
    "${pip[@]}" wheel
    "${pip[@]}" --no-build-isolation --editable "$root[deepspeed]"
  else
    "${pip[@]}" --editable "$root[$1]"
  fi
}

# aws_command NAME ARGUMENT...: becomes a command of gptj_serve.aws
aws_command() {
  make_venv deploy
  exec "$venv/bin/python" -m gptj_serve.aws "$@"
}
