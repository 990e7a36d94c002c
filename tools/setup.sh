#!/usr/bin/env bash
# Installs the Debian packages that building, testing and running kla need, and only those that are missing.
# Without root and sudo it prints the one line to run and stops with exit code 2.
set -euo pipefail

packages=(
  g++ cmake ninja-build make git python3
  libyaml-cpp-dev libspdlog-dev libcli11-dev nlohmann-json3-dev libxxhash-dev libssl-dev
  libhwy-dev libsentencepiece-dev libzstd-dev zlib1g-dev
  libdnnl-dev ocl-icd-opencl-dev  # oneDNN's CMake file asks for OpenCL, its package only recommends it
  libopenmpi-dev openmpi-bin  # ranks over MPI; without it (KLA_MPI=OFF) they meet over TCP
  libgtest-dev strace
  libboost-context-dev  # fibers of the device simt
)

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
  [[ $state == ii* ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  echo "== setup: nothing is missing"
  exit 0
fi

if [[ $(id -u) == 0 ]]; then
  as_root=()
elif sudo -n true 2>/dev/null; then
  as_root=(sudo)
else
  echo "setup: ${#missing[@]} packages are missing and there is neither root nor sudo. Run as root:" >&2
  echo "  apt-get update && apt-get install -y --no-install-recommends ${missing[*]}" >&2
  exit 2
fi
echo "== setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
