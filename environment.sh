# Makes the environment in .venv, or finds it as it should be. Sourced by run_train.sh and
# run_tests.sh with $here set to the project's directory; $extras may name extras, as in "[dev]".

environment_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null \
      && "$candidate" -I -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 to 3.13 found; install one or set PYTHON to its path" >&2
  return 1
}

# Succeeds if the environment is as it should be; sets $source, what it is made from.
environment_is_made() {
  local stamp="$here/.venv/.made-from" made_from="" made_with=""
  # The checkout's path counts: an environment does not survive being moved.
  source="$here $(cksum <"$here/pyproject.toml")"
  if [ -f "$stamp" ]; then
    { read -r made_from && read -r made_with; } <"$stamp" || true
  fi
  # An environment with the development tools serves those who need none.
  [ "$made_from" = "$source" ] && { [ "$made_with" = "${extras:-}" ] || [ "$made_with" = "[dev]" ]; }
}

# Waits until no other process makes the environment, and keeps others from it while this shell
# lives. The kernel releases the lock. Python takes it, since macOS has no `flock`; it stays with
# file descriptor 9, which the shell has opened.
lock_environment() {
  local python
  python="$(environment_python)"
  exec 9>>"$here/.venv.lock"
  "$python" -I -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("waiting: another process is setting up the environment in .venv", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
'
}

# Ctrl-C ends the set-up with one line, in place of the traceback of venv or the output of pip.
stop_making() {
  rm -f "$here/.venv.log"
  trap - INT
  echo "interrupted: the environment in .venv is not complete; the next start finishes it" >&2
  exit 130
}

make_environment() {
  local extras="${extras:-}" stamp="$here/.venv/.made-from" source="" python
  if environment_is_made; then
    return
  fi
  lock_environment
  if environment_is_made; then # by the process that was waited for
    exec 9>&-
    return
  fi
  echo "setting up the environment in .venv (first use; takes a minute or two)" >&2
  trap stop_making INT
  if [ ! -x "$here/.venv/bin/python" ] || ! "$here/.venv/bin/python" -P -m pip --version >/dev/null 2>&1; then
    python="$(environment_python)"
    echo "  creating it with $("$python" --version)" >&2
    if ! "$python" -P -m venv --clear "$here/.venv" >"$here/.venv.log" 2>&1; then
      tail -n 20 "$here/.venv.log" >&2
      echo "error: no environment could be made; all of the output is in .venv.log" >&2
      return 1
    fi
    rm -f "$here/.venv.log"
  fi
  echo "  installing torchrl-ckpt$extras and what it needs" >&2
  if ! "$here/.venv/bin/python" -P -m pip install --quiet --disable-pip-version-check \
    --editable "$here$extras" >"$here/.venv/install.log" 2>&1; then
    tail -n 20 "$here/.venv/install.log" >&2
    echo "error: the installation failed; all of its output is in .venv/install.log" >&2
    return 1
  fi
  printf '%s\n' "$source" "$extras" >"$stamp"
  trap - INT
  exec 9>&-
  echo "  done" >&2
}

make_environment
