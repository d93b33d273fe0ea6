#!/usr/bin/env bash
# Runs the wgpu backend's tests on a Mesa whose software Vulkan has cooperative matrices (26.1), which Debian 12 does not ship:
# the driver is unpacked into a folder of its own, and the tests are started with that folder's libraries.
#
#   tools/lavapipe.sh FOLDER        # once as root, for debootstrap; about 700 MB
set -euo pipefail
root=${1:?usage: tools/lavapipe.sh FOLDER}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
cd "$(dirname "$0")/.."
if [ ! -e "$root/usr/lib/x86_64-linux-gnu/libvulkan_lvp.so" ]; then
    debootstrap --variant=minbase trixie "$root" "$mirror"
    echo "deb $mirror trixie-backports main" >"$root/etc/apt/sources.list.d/backports.list"
    chroot "$root" apt-get update
    chroot "$root" apt-get install -y --no-install-recommends -t trixie-backports mesa-vulkan-drivers libvulkan1
fi
root=$(realpath "$root")
libraries=$root/usr/lib/x86_64-linux-gnu
driver=$(mktemp --suffix .json)
trap 'rm -f "$driver"' EXIT
sed "s#\"library_path\": *\"[^\"]*\"#\"library_path\": \"$libraries/libvulkan_lvp.so\"#" \
    "$root"/usr/share/vulkan/icd.d/lvp_icd*.json >"$driver"
export VK_DRIVER_FILES=$driver XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp} LP_NUM_THREADS=${LP_NUM_THREADS:-1}
programs=$(cargo test -p fletcher-backend --lib --test wgpu --no-run --message-format json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
cd crates/fletcher-backend
for program in $programs; do
    case $program in
    */wgpu-*) filter=() ;;
    *) filter=(wgpu::) ;;
    esac
    "$root/lib64/ld-linux-x86-64.so.2" --library-path "$libraries" "$program" --test-threads 1 "${filter[@]}"
done
