#!/usr/bin/env bash
# One archive for a cluster node that has CUDA, CMake and a compiler, but no network and none of our libraries:
#
#   tools/bundle_deps.sh kla-bundle.tar.gz [BUILD]        # here; BUILD (default build/cuda) holds a built kla
#   tar xzf kla-bundle.tar.gz && kla-bundle/build.sh      # there: builds kla-bundle/build/kla
#   kla-bundle/bin/kla --version                          # there: the program built here, with its libraries
#
# It holds the source of HEAD, the Debian packages of our libraries unpacked into one prefix (deps/), and the
# program of BUILD with the shared libraries it needs (lib/), CUDA's own excepted. The prebuilt program asks for
# the C library of this machine's Debian or a newer one; build.sh has no such wish.
set -euo pipefail
(($# >= 1)) || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
output=$(realpath "$1")
root=$(cd "$(dirname "$0")/.." && pwd)
build=$(realpath -m "${2:-$root/build/cuda}")
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
bundle=$stage/kla-bundle
mkdir -p "$bundle"/{source,deps,bin,lib}

echo "== source of $(git -C "$root" describe --always --dirty)"
git -C "$root" archive HEAD | tar x -C "$bundle/source"

# Direct dependencies, and whatever they depend on that is a library of its own.
packages=(libyaml-cpp-dev libspdlog-dev libcli11-dev nlohmann-json3-dev libxxhash-dev libssl-dev libhwy-dev
  libsentencepiece-dev libzstd-dev zlib1g-dev libdnnl-dev ocl-icd-opencl-dev libgtest-dev)
system='^(libc6|libc-|gcc-|libgcc|libstdc|libgomp|linux-libc|libcrypt|lib[a-z]*san|libitm|libatomic|libquadmath'
system+='|libnsl|libtirpc|rpcsvc|libgssapi|libk(rb)?5|libkrb5|libkeyutils|libcom-err|catch2|libboost)'
mapfile -t closure < <(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
  --no-replaces --no-enhances "${packages[@]}" | grep '^[a-z]' | sort -u | grep -Ev "$system")
echo "== ${#closure[@]} Debian packages"
(cd "$stage" && apt-get download -qq -o APT::Sandbox::User=root "${closure[@]}")
for package in "$stage"/*.deb; do dpkg-deb -x "$package" "$bundle/deps"; done
if [[ -d $bundle/deps/lib ]]; then cp -a "$bundle/deps/lib/." "$bundle/deps/usr/lib/" && rm -rf "$bundle/deps/lib"; fi
rm -rf "$bundle"/deps/usr/share/{doc,man,lintian,gdb} "$bundle/deps/etc"
# Links such as libz.so -> /lib/x86_64-linux-gnu/libz.so.1 must stay inside.
find "$bundle/deps" -type l -lname '/*' | while read -r link; do
  target=$(readlink "$link")
  ln -sfn "$(realpath -m --relative-to="$(dirname "$link")" "$bundle/deps/usr/${target#/usr/}")" "$link"
  [[ -e $link ]] || ln -sfn "$(realpath -m --relative-to="$(dirname "$link")" "$bundle/deps/usr$target")" "$link"
done

if [[ -x $build/kla ]]; then
  echo "== the program of $build"
  cp "$build/kla" "$bundle/bin/kla.bin"
  ldd "$build/kla" | awk '$2 == "=>" && $3 ~ /^\// {print $3}' |
    grep -Ev '/(libc|libm|libdl|libpthread|librt|ld-linux[^/]*|libcuda|libcudart|libcublas|libcublasLt|libcudnn)\.so' |
    while read -r library; do
      find "$bundle/deps" -name "$(basename "$library")" | grep -q . || cp -L "$library" "$bundle/lib/"
    done
  cat > "$bundle/bin/kla" << 'END'
#!/bin/sh
# The prebuilt program with its libraries. CUDA's come from the node: CUDA_HOME or the usual place.
here=$(cd "$(dirname "$0")/.." && pwd)
LD_LIBRARY_PATH=$here/lib:$here/deps/usr/lib/x86_64-linux-gnu:${CUDA_HOME:-/usr/local/cuda}/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
exec "$here/bin/kla.bin" "$@"
END
  chmod +x "$bundle/bin/kla"
else
  echo "== no program in $build: the archive holds source and libraries only"
  rmdir "$bundle/bin" "$bundle/lib"
fi

cat > "$bundle/build.sh" << 'END'
#!/usr/bin/env bash
# Builds the source with the libraries beside it, without network. Arguments go to CMake, such as
# -DKLA_CUDA_ARCH=80; the default builds the CUDA backend if a toolkit is there.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cuda=OFF
[[ -x $(command -v nvcc || echo /usr/local/cuda/bin/nvcc) ]] && cuda=ON
export PKG_CONFIG_PATH=
cmake -S "$here/source" -B "$here/build" -DCMAKE_BUILD_TYPE=Release -DKLA_CUDA=$cuda -DKLA_TESTS=OFF \
  -DCMAKE_PREFIX_PATH="$here/deps/usr" -DCMAKE_LIBRARY_ARCHITECTURE=x86_64-linux-gnu \
  -DOPENSSL_ROOT_DIR="$here/deps/usr" -DCMAKE_BUILD_RPATH="$here/deps/usr/lib/x86_64-linux-gnu" \
  -DCMAKE_SHARED_LINKER_FLAGS_INIT="-L$here/deps/usr/lib/x86_64-linux-gnu" \
  -DCMAKE_EXE_LINKER_FLAGS_INIT="-Wl,-rpath-link,$here/deps/usr/lib/x86_64-linux-gnu" "$@"
cmake --build "$here/build" -j "$(nproc)" --target kla
"$here/build/kla" --version
END
chmod +x "$bundle/build.sh"
tar czf "$output" -C "$stage" kla-bundle
echo "== $output: $(du -h "$output" | cut -f1)"
