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

# make_venv EXTRA...: the package, editable, with these extras; does nothing when it is there already.
make_venv() {
  local stamp extra extras="" python
  stamp="$* $(cksum <"$root/pyproject.toml")"
  if [ "$(cat "$venv/.installed" 2>/dev/null)" = "$stamp" ]; then return; fi
  if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python) || exit 1
    say "Making $venv with $("$python" --version) ..."
    "$python" -m venv "$venv"
  fi
  say "Installing (minutes the first time: PyTorch is large) ..."
  for extra in "$@"; do
    if [ "$extra" != deepspeed ]; then extras="$extras,$extra"; fi
  done
  pip_install wheel --editable "$root[${extras#,}]"
  case " $* " in
    # its setup imports torch, which pip's isolated build would not have
    *" deepspeed "*) pip_install --no-build-isolation --editable "$root[deepspeed]" ;;
  esac
  printf '%s' "$stamp" >"$venv/.installed"
}

pip_install() {
  "$venv/bin/python" -m pip --disable-pip-version-check install --quiet "$@"
}
