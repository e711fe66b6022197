#!/usr/bin/env bash
# Install edge-sel on an emulated ARM board, run it there, and compare the run with one on this machine.
#
#   tools/arm64_check.sh ROOT [PYTHON]
#
# ROOT: an empty folder for a Debian of arm64 (1.5 GB; used again next time). PYTHON: one that has edge-sel, for the run
# on this machine (.venv/bin/python). Root on a Debian of x86_64; 4 to 10 minutes. It needs
#   apt-get install -y --no-install-recommends qemu-user-static binfmt-support debootstrap
# Exit status 1: another accuracy, or weights farther apart than a hundredth of how far training moved them.
set -euo pipefail
[ -n "${PRIVATE:-}" ] || exec env PRIVATE=1 nice -n 15 unshare -m --propagation private bash "$0" "$@"
source=$(cd "$(dirname "$0")/.." && pwd) root=$(realpath -m "$1") python=${2:-$source/.venv/bin/python}

# QEMU runs the other architecture's programs.
formats=/proc/sys/fs/binfmt_misc
[ -e $formats/register ] || mount -t binfmt_misc binfmt_misc $formats
magic='\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
[ -e $formats/qemu-aarch64 ] || printf '%s' ":qemu-aarch64:M::$magic:$mask:/usr/bin/qemu-aarch64-static:OCF" > $formats/register

mirror=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources)
packages=python3,python3-venv,python3-pip,ca-certificates
[ -x "$root/usr/bin/pip3" ] || debootstrap --arch=arm64 --variant=minbase --include=$packages bookworm "$root" "$mirror" > "$root.log"
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount --bind /dev "$root/dev"
# onnxruntime's cpuinfo reads the processor here: that of QEMU_CPU (0xd08: Cortex-A72), not this machine's.
for number in $(seq 0 $(($(nproc) - 1))); do
  printf 'processor\t: %d\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\n' "$number"
  printf 'CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n'
done > "$root/cpuinfo"
mount --bind "$root/cpuinfo" "$root/proc/cpuinfo"

rm -rf "$root/src" "$root/run" "$root/here"
mkdir "$root/src"
git -C "$source" archive HEAD | tar x -C "$root/src"
arm() {
  chroot "$root" env -i PATH=/venv/bin:/usr/bin:/bin HOME=/root LANG=C.UTF-8 QEMU_CPU=cortex-a72 \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt ${PIP_INDEX_URL:+PIP_INDEX_URL=$PIP_INDEX_URL} "$@"
}
arm python3 -m venv /venv
arm pip install -q --only-binary :all: --no-binary edge-sel /src
arm edge-sel doctor
for precision in fp32 int8; do  # each machine would take what is faster on it; --forget: so that the new weights ship
  given=(finetune --threads 1 --plan head,last,full --epochs 1 --forget --backbone-precision $precision --out)
  rm -rf "$root/run" "$root/here"
  arm edge-sel "${given[@]}" /run
  (cd "$source" && "$python" -m edge_sel "${given[@]}" "$root/here")
  (cd "$source" && "$python" - "$root/run" "$root/here") <<'P'
import json, sys
import numpy as np
from safetensors.numpy import load_file
from edge_sel.pack.reader import builtin_pack

arm, here = (load_file(f"{run}/weights.safetensors") for run in sys.argv[1:])
before = builtin_pack().weights()
moved = {name: np.abs(here[name] - value).max() for name, value in before.items()}
worst = max(np.abs(arm[name] - here[name]).max() / moved[name] for name in before if moved[name])
accuracy = [json.load(open(f"{run}/run.json"))["accuracy"]["after"] for run in sys.argv[1:]]
print(f"accuracy {accuracy}, weights differ by at most {worst:.1e} of how far they moved")
sys.exit(not (accuracy[0] == accuracy[1] and worst < 0.01))
P
done
