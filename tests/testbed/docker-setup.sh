#!/usr/bin/env bash
# docker-setup.sh: brings what the container tests need to a CI machine, where that is possible:
# Debian's or Ubuntu's docker.io, debootstrap, iptables. tests/testbed/docker.py starts the daemon.
#
# Harmless: never fails, changes nothing where the programs are there, where it is not root, or where
# there is no apt-get; never starts or stops a daemon. RUNNER_NO_DOCKER=1 makes it do nothing.
set -euo pipefail

say() { printf 'docker-setup: %s\n' "$*" >&2; }

missing=()
command -v dockerd >/dev/null || missing+=(docker.io)
command -v debootstrap >/dev/null || missing+=(debootstrap)
command -v iptables >/dev/null || missing+=(iptables)
if ((${#missing[@]} == 0)) || [[ ${RUNNER_NO_DOCKER-} ]]; then exit 0; fi
if docker version >/dev/null 2>&1 && command -v debootstrap >/dev/null; then exit 0; fi

if [[ $(id -u) != 0 ]]; then
  say "not root: the container tests will skip, for want of ${missing[*]}"
elif ! command -v apt-get >/dev/null; then
  say "no apt-get: the container tests will skip, for want of ${missing[*]}"
# Mounting is what any daemon needs first; a CI container without it gains nothing by 100 MB.
elif ! unshare --mount mount -t tmpfs none /mnt 2>/dev/null; then
  say "this machine lets nobody mount: no dockerd can run here, the container tests will skip"
else
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # A package's own start of the daemon is not wanted: 101 is policy-rc.d's "forbidden by policy".
  policy=
  if [[ ! -e /usr/sbin/policy-rc.d ]]; then
    policy=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  if ! timeout 300 bash -c 'apt-get update -q && apt-get install -qy --no-install-recommends "$@"' \
    apt "${missing[@]}" >/tmp/runner-docker-setup.log 2>&1; then
    say "apt-get failed: the container tests will skip; see /tmp/runner-docker-setup.log"
  fi
  if [[ $policy ]]; then rm "$policy"; fi
fi
