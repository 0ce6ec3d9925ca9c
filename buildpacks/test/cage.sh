# A build cage and an app container made of plain mounts: what the platform does with far more isolation.
# To be sourced in a private mount namespace.
#
# An app under test is a directory: src (what is pushed), env, cache, tmp (the cage's /tmp), layers (finished
# layers by key, which here stay trees), out (the slug), meta.

work=/tmp/pack-test.$$
mkdir -p "$work"
mount -t tmpfs -o size=8g,mode=0755 work "$work"
trap 'cd /; umount -l "$work" 2>/dev/null; rmdir "$work" 2>/dev/null' EXIT

# Where a local authority signs what comes from the registries, the machine's certificates are the ones to trust.
export bundle=/etc/ssl/certs/ca-certificates.crt
export certificates="SSL_CERT_FILE=$bundle NODE_EXTRA_CA_CERTS=$bundle PIP_CERT=$bundle REQUESTS_CA_BUNDLE=$bundle
  CURL_CA_BUNDLE=$bundle GIT_SSL_CAINFO=$bundle CARGO_HTTP_CAINFO=$bundle"

mount_image() {
  local id
  for id in $(jq -r ".$1.layers[].id" "$stack_directory/images/stack.json") ${2:-}; do
    [ -d "$work/image/$id" ] || {
      mkdir -p "$work/image/$id"
      mount -t erofs -o ro,loop "$stack_directory/layers/$id.erofs" "$work/image/$id"
    }
    image_directories+=("$work/image/$id")
  done
}

lower_of() { local joined="" one; for one in "$@"; do joined="$one${joined:+:$joined}"; done; printf '%s' "$joined"; }

# in_root ROOT COMMAND...: as the app's user, with /proc, devices, names and certificates.
in_root() {
  local place=$1
  shift
  mount -t proc proc "$place/proc"
  mount --rbind /dev "$place/dev"
  mount --bind /etc/resolv.conf "$place/etc/resolv.conf"
  mount --bind "$bundle" "$place$bundle"
  exec chroot --userspec=1000:1000 "$place" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 HOME=/app $certificates "$@"
}
export -f in_root lower_of

# new_app NAME [SOURCE-DIRECTORY]
new_app() {
  app=$work/apps/$1
  rm -rf "$app"
  mkdir -p "$app"/{src,env,cache,layers}
  [ -z "${2:-}" ] || tar -C "$2" --exclude=node_modules -cf - . | tar -C "$app/src" -xf -
  chown -R 1000:1000 "$app"
}

# build [VARIABLE=VALUE...]: builds $app; the output is in $app/output, the time in build_ms. Fails as the build does.
build() {
  local key status=0
  build_packages_layers="" run_packages_layers=""
  attempt "$@" || status=$?
  if [ "$status" = 75 ]; then
    install_needed
    status=0
    attempt "$@" || status=$?
  fi
  [ "$status" = 0 ] || return "$status"
  # What the platform does: take over new layers and the slug.
  for key in "$app"/tmp/out.layers/*; do [ ! -d "$key" ] || { rm -rf "$app/layers/${key##*/}" && mv "$key" "$app/layers/"; }; done
  rm -rf "$app/out" "$app/meta"
  mv "$app/tmp/out" "$app/out"
  mv "$app/tmp/out.meta" "$app/meta"
}

attempt() {
  local began ended status=0
  rm -rf "$app/tmp"
  mkdir -p "$app/tmp"
  cp -a "$app/src" "$app/tmp/build"
  chown -R 1000:1000 "$app/tmp"
  chmod 1777 "$app/tmp"
  image_directories=()
  mount_image build "$build_packages_layers"
  began=$(date +%s%N)
  unshare --mount --pid --fork --kill-child --propagation private bash -ec '
    lower=$1 app=$2 packs=$3 use_layers=$4; shift 4
    mkdir -p "$app/cage"; mount -t tmpfs cage "$app/cage"; mkdir "$app"/cage/{upper,work,root}
    mount -t overlay -o "lowerdir=$lower,upperdir=$app/cage/upper,workdir=$app/cage/work" overlay "$app/cage/root"
    root=$app/cage/root
    mount --bind "$app/tmp" "$root/tmp"; mount --bind "$app/cache" "$root/cache"; mount --bind "$app/env" "$root/env"
    mount --bind "$packs" "$root/buildpacks"; mount -o remount,ro,bind "$root/buildpacks"
    mount --bind "$app/layers" "$root/layers"; mount -o remount,ro,bind "$root/layers"
    [ -z "${DISK_MIB:-}" ] || { mkdir "$root/tmp/small"; mount -t tmpfs -o "size=${DISK_MIB}m,mode=1777" small "$root/tmp/small"; mv "$root/tmp/build" "$root/tmp/small/build"; }
    [ "$use_layers" = no ] || set -- LAYERS_DIR=/layers "$@"
    in_root "$root" BUILD_DIR="/tmp/${DISK_MIB:+small/}build" CACHE_DIR=/cache ENV_DIR=/env OUT="/tmp/${DISK_MIB:+small/}out" APP_NAME=sample "$@" /buildpacks/build
  ' cage "$(lower_of "${image_directories[@]}")" "$app" "$here/.." "${use_layers:-yes}" "$@" >"$app/output" 2>&1 || status=$?
  ended=$(date +%s%N)
  build_ms=$(((ended - began) / 1000000))
  cat "$app/output"
  return "$status"
}

install_needed() {
  local image base
  for image in build run; do
    [ "$(jq -r ".$image | length" "$app/tmp/out.meta/needs.json")" -gt 0 ] || continue
    mapfile -t base < <(jq -r ".$image.layers[].id" "$stack_directory/images/stack.json")
    declare -g "${image}_packages_layers=$("$root/script/package-layer" --quiet ${PACKAGE_CACHE:+--cache "$PACKAGE_CACHE"} --base "$(IFS=,; echo "${base[*]}")" "$stack_directory/layers" \
      $(jq -r ".$image[]" "$app/tmp/out.meta/needs.json"))"
  done
}

# start TYPE COMMAND...: starts a process type of $app in a network of its own, runs COMMAND (a shell text that may
# use $url) beside it, then asks the process to stop. Fails if it does not stop within ten seconds.
start() {
  local type=$1 key
  shift
  image_directories=()
  mount_image run "${run_packages_layers:-}"
  for key in $(jq -r '.layers[]' "$app/meta/release.json"); do image_directories+=("$app/layers/$key"); done
  image_directories+=("$app/out")
  unshare --mount --net --pid --fork --kill-child --propagation private bash -ec '
    lower=$1 app=$2 type=$3 check=$4
    ip link set lo up; : >"$app/log"
    mkdir -p "$app/live"; mount -t tmpfs live "$app/live"; mkdir "$app"/live/{upper,work,root}
    mount -t overlay -o "lowerdir=$lower,upperdir=$app/live/upper,workdir=$app/live/work" overlay "$app/live/root"
    (in_root "$app/live/root" ${configuration:-} PORT=8080 /runner/init start "$type") >"$app/log" 2>&1 &
    process=$!
    url=http://127.0.0.1:8080
    for ((tries = 0; tries < 300; tries++)); do
      kill -0 $process 2>/dev/null || break
      if [ "$type" = web ]; then curl -s -o /dev/null "$url" && break; else [ -s "$app/log" ] && break; fi
      sleep 0.05
    done
    cat "$app/log"
    eval "$check"
    kill -TERM $process
    for ((tries = 0; tries < 200; tries++)); do kill -0 $process 2>/dev/null || break; sleep 0.05; done
    if kill -0 $process 2>/dev/null; then cat "$app/log"; echo "did not stop when asked to"; exit 1; fi
    wait $process && status=0 || status=$?
    echo "exit status $status"
  ' live "$(lower_of "${image_directories[@]}")" "$app" "$type" "$*"
}

# one_off ARGUMENT...: /runner/init with these, in $app as it was built; output and status are the command's.
one_off() {
  local key
  image_directories=()
  mount_image run "${run_packages_layers:-}"
  for key in $(jq -r '.layers[]' "$app/meta/release.json"); do image_directories+=("$app/layers/$key"); done
  unshare --mount --pid --fork --kill-child --propagation private bash -c '
    mkdir -p "$2/live"; mount -t tmpfs live "$2/live"; mkdir "$2"/live/{upper,work,root}
    mount -t overlay -o "lowerdir=$1,upperdir=$2/live/upper,workdir=$2/live/work" overlay "$2/live/root"
    root=$2/live/root; shift 2; in_root "$root" /runner/init "$@"' one-off "$(lower_of "${image_directories[@]}" "$app/out")" "$app" "$@" 2>&1
}

size_of() { du -sm "$1" | cut -f1; }
measure() { printf 'measured %s\n' "$*"; }

# said TEXT: the last build's output has this. must_fail: the build was refused.
said() { grep -qF -- "$1" "$app/output" || { echo "the build did not say: $1"; exit 1; }; }
refused() { if build "$@"; then echo "the build was expected to fail"; exit 1; fi; }
