#!/usr/bin/env bash
# Makes this host ready: the pinned environment and the bucket; prints what the host has, as JSON. May be run again.
#   PYTHON: an interpreter that has everything, or empty     BUCKET: to mount at /gcs/BUCKET, or empty
set -euo pipefail
cd "$HOME/hiermem/code"

if [[ -z $PYTHON ]]; then
  # TPU VM images have Python 3.10; uv brings its own 3.12.
  export PATH="$HOME/.local/bin:$PATH"
  command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh >&2
  [[ -x $HOME/hiermem/venv/bin/python ]] || uv venv --quiet --python 3.12 "$HOME/hiermem/venv" >&2
  uv pip sync --quiet --python "$HOME/hiermem/venv/bin/python" tpu_setup/requirements.lock >&2
  PYTHON=$HOME/hiermem/venv/bin/python
fi
[[ -x $PYTHON ]] || { echo "error: $PYTHON: no such interpreter; set python, or leave it empty" >&2; exit 2; }
# A script, since a link to it would not find its packages.
printf '#!/bin/sh\nexec %q "$@"\n' "$PYTHON" > "$HOME/hiermem/python"
chmod +x "$HOME/hiermem/python"

if [[ -n $BUCKET ]] && ! mountpoint -q "/gcs/$BUCKET"; then
  if ! command -v gcsfuse > /dev/null; then
    echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null
    sudo apt-get -o DPkg::Lock::Timeout=300 -qq update >&2
    sudo apt-get -o DPkg::Lock::Timeout=300 -qq install -y gcsfuse >&2
  fi
  fusermount -u "/gcs/$BUCKET" 2> /dev/null || true # what a gcsfuse that died has left
  sudo mkdir -p "/gcs/$BUCKET"
  sudo chown "$USER" "/gcs/$BUCKET"
  # By default gcsfuse remembers what it has seen, on many TPU hosts for good: what another host writes would stay unseen.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$BUCKET" "/gcs/$BUCKET" >&2
fi

PYTHONPATH=. "$HOME/hiermem/python" -m hiermem_jax.parallel.hosts
