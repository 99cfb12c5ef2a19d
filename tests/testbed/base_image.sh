#!/usr/bin/env bash
# base_image.sh [TAG]: a stand-in for nvidia/cuda's runtime image where no registry can be reached:
# Debian by debootstrap, with what those images set (ENV, an ENTRYPOINT script, a user of uid 1000),
# and with the host's CAs, wheels and index, so that pip in a build reaches what the host's reaches.
#
# Needs root, debootstrap and a dockerd ($DOCKER_HOST); about a minute and 320 MB. An image that this
# very recipe made is kept. Prints the tag.
set -euo pipefail
tag=${1:-runner-testbed-base:bookworm}
label=dev.runner.testbed.base

say() { printf 'base_image: %s\n' "$*" >&2; }

links=$(python3 -m pip config get global.find-links 2>/dev/null || true)
links=${PIP_FIND_LINKS:-$links}
index=$(python3 -m pip config get global.index-url 2>/dev/null || true)
index=${PIP_INDEX_URL:-$index}

# What the image is made of, the month too: its Debian is not to grow old unnoticed.
recipe=$({
  cat "${BASH_SOURCE[0]}"
  date +%Y-%m
  printf '%s\n' "$index"
  if [[ -d $links ]]; then find "$links" -name '*.whl' -printf '%f %s\n' | sort; fi
  cat /usr/local/share/ca-certificates/*.crt 2>/dev/null || true
} | sha256sum | cut -c1-16)

if [[ $(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$tag" 2>/dev/null) == "$recipe" ]]; then
  echo "$tag"
  exit
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
if ! debootstrap --variant=minbase --include=ca-certificates bookworm "$root" >"$work/log" 2>&1; then
  tail -20 "$work/log" >&2
  say "debootstrap failed"
  exit 1
fi
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
chroot "$root" useradd -m -u 1000 -s /bin/bash ubuntu  # ubuntu:24.04 has it: no recipe may add it

mkdir -p "$root/usr/local/share/ca-certificates" "$root/srv/wheels" "$root/opt/nvidia"
cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
chroot "$root" update-ca-certificates >/dev/null 2>&1
if [[ -d $links ]]; then cp "$links"/*.whl "$root/srv/wheels/"; fi
{
  printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\nfind-links = /srv/wheels\n'
  printf 'default-timeout = 180\n'
  if [[ $index ]]; then printf 'index-url = %s\n' "$index"; fi
} >"$root/etc/pip.conf"

# a -runtime image has CUDA's libraries, and no nvcc
mkdir -p "$root/usr/local/cuda-13.0/lib64" "$root/usr/local/cuda-13.0/bin"
printf '{"cuda": {"name": "CUDA SDK", "version": "13.0.1"}}\n' >"$root/usr/local/cuda-13.0/version.json"
ln -s cuda-13.0 "$root/usr/local/cuda"

# nvidia's prints a banner, then does the same; an image that keeps it would show this line
printf '#!/bin/bash\necho "== CUDA ==" >&2\nexec "$@"\n' >"$root/opt/nvidia/nvidia_entrypoint.sh"
chmod 755 "$root/opt/nvidia/nvidia_entrypoint.sh"

tar -C "$root" --exclude='./proc/*' --exclude='./sys/*' -c . | docker import \
  --change 'ENV PATH=/usr/local/nvidia/bin:/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
  --change 'ENV LD_LIBRARY_PATH=/usr/local/cuda/lib64' \
  --change 'ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility' \
  --change 'ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh"]' \
  --change 'CMD ["/bin/bash"]' \
  --change "LABEL $label=$recipe" \
  - "$tag" >/dev/null
echo "$tag"
