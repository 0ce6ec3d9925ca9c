# What up, down and test share: options, messages, packages, and whether this machine has systemd.
# To be sourced by a bash script that has set `set -euo pipefail`.

PACKAGES_BUILD=(gcc git libc6-dev mold)
PACKAGES_RUN=(ca-certificates curl debian-archive-keyring e2fsprogs erofs-utils git iproute2 jq mmdebstrap nftables procps util-linux)
# To fetch and unpack an image of a registry.
PACKAGES_OCI=(golang-github-containers-common skopeo umoci)
# Others' registry, which the cluster's own is tested and measured beside.
PACKAGES_REGISTRY=(docker-registry)
# An object store, for the cluster's bucket.
S3S_VERSION=0.14.1
RUST_VERSION_MIN=1.95

# Where things are installed; tests install elsewhere.
prefix=/usr/local config=/etc/flynn/host.toml state=/var/lib/flynn cache=/var/cache/flynn
log=/var/log/flynn-host.log

bold() { if [ -t 1 ]; then printf '\033[1m%s\033[0m\n' "$*"; else printf '%s\n' "$*"; fi; }

# fail MESSAGE [HINT]
fail() {
  printf 'error: %s\n' "$1" >&2
  [ -z "${2:-}" ] || printf 'hint: %s\n' "$2" >&2
  exit 1
}

# begin WHAT ... done_with: one step, with how long it took.
steps=()
begin() {
  step_name=$1 step_began=$(date +%s%N)
  bold "-----> $1"
}
finish() {
  local tenths=$((($(date +%s%N) - step_began) / 100000000))
  steps+=("$(printf '%4d.%d s  %s' $((tenths / 10)) $((tenths % 10)) "$step_name${1:+: $1}")")
}

require_root() {
  [ "$(id -u)" = 0 ] || fail "this has to run as root: it starts containers and listens on ports 80 and 443" "sudo $0"
}

# install_packages NAME...: those that are missing.
install_packages() {
  local package missing=()
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  printf '       installing %s\n' "${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq || fail "apt-get update failed" "is the network there, and are the mirrors in /etc/apt right?"
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    fail "cannot install ${missing[*]}" "apt-get install ${missing[*]}"
}

# fetch_docker DIRECTORY: Debian's Docker engine, unpacked and not installed, as its package would start it on this machine.
fetch_docker() {
  [ ! -x "$1/usr/sbin/dockerd" ] || return 0
  printf '       fetching docker.io\n'
  local new=$1.new
  rm -rf "$new" && mkdir -p "$new/packages"
  (
    cd "$new/packages"
    local packages=(docker.io containerd runc libbtrfs0 libdevmapper1.02.1)
    apt-get download -qq -o APT::Sandbox::User=root "${packages[@]}" 2>/dev/null ||
      { apt-get update -qq && apt-get download -qq -o APT::Sandbox::User=root "${packages[@]}"; } ||
      fail "cannot fetch Debian's Docker engine" "apt-get download ${packages[*]}"
    for package in *.deb; do dpkg-deb -x "$package" ..; done
  )
  mkdir "$new/libraries"
  find "$new/usr/lib" "$new/lib" -name 'lib*.so*' -exec mv {} "$new/libraries" \;
  rm -rf "$1" "$new/packages"
  mv "$new" "$1"
}

# fetch_object_store DIRECTORY: a small object store that speaks S3 and checks signatures.
fetch_object_store() {
  [ ! -x "$1/bin/s3s-fs" ] || return 0
  printf '       building s3s-fs\n'
  cargo install --quiet --locked --debug --version "$S3S_VERSION" --features binary --root "$1" s3s-fs ||
    fail "cannot install s3s-fs" "cargo install --version $S3S_VERSION --features binary s3s-fs"
}

require_rust() {
  export PATH="$PATH:$HOME/.cargo/bin"
  command -v cargo >/dev/null || fail "the Rust toolchain is missing" \
    "install it as https://rustup.rs says (version $RUST_VERSION_MIN or newer), then run this again"
  local version
  version=$(rustc --version | cut -d' ' -f2)
  [ "$(printf '%s\n' "$RUST_VERSION_MIN" "${version%%-*}" | sort -V | head -n 1)" = "$RUST_VERSION_MIN" ] ||
    fail "Rust $version is too old: $RUST_VERSION_MIN or newer is needed" "rustup update"
}

has_systemd() { [ -d /run/systemd/system ]; }

# The process id of the running supervisor, if one runs.
supervisor() {
  local pid
  pid=$(cat "$state/run/supervisor.pid" 2>/dev/null) || return 1
  tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q 'flynn-host.*supervise' || return 1
  printf '%s\n' "$pid"
}

# Where a supervisor runs, has it start the daemon anew and the router take over from itself: no request fails.
renew_platform() {
  supervisor >/dev/null || return 0
  local pid
  if pid=$(cat "$state/run/router.pid" 2>/dev/null) && is_flynn_host "$pid"; then kill -HUP "$pid"; fi
  if pid=$(cat "$state/run/daemon.pid" 2>/dev/null) && is_flynn_host "$pid"; then
    kill -TERM "$pid"
    while is_flynn_host "$pid"; do sleep 0.1; done
  fi
}

is_flynn_host() { tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null | grep -q flynn-host; }

# Ends daemon and router; jobs go on.
stop_platform() {
  if has_systemd && [ -e /etc/systemd/system/flynn-host.service ] && [ "$prefix" = /usr/local ]; then
    systemctl stop flynn-router.service flynn-host.service
    # Of a version before it, there is none.
    systemctl stop flynn-tunnel.service 2>/dev/null || true
  fi
  local pid
  if pid=$(supervisor); then
    kill -TERM "$pid"
    while [ -e "/proc/$pid" ]; do sleep 0.1; done
  fi
}
