# What base-image and package-layer share: apt on a foreign root, trees made reproducible, trees packed
# into layers named by their digest. To be sourced by a bash script that has set `set -euo pipefail`.
#
# A layer is one erofs file called <sha256>.erofs. Its bytes depend on the packages in it and on nothing
# else: every time stamp is SOURCE_DATE_EPOCH, the file system's uuid is fixed, and what installing leaves
# behind (logs, caches, ids) is removed. Two consequences are easy to trip over:
#   * Python compares a source's time with the one noted in its .pyc. With times cut off it would compile at
#     every start, so byte code is made again in the "unchecked" form, which looks at no time at all.
#   * mkfs.erofs writes inodes in the order in which a directory lists them, so a tree is first copied in
#     sorted order.
# lz4 in 4 KiB clusters: 38 % smaller than no compression; starting Python from a cold cache took 203-296 ms
# against 235-264 ms uncompressed, warm starts were equal. 64 KiB clusters (another 7 %) and lz4hc (19 %, ten
# times the time to make) started slower.

export LC_ALL=C.UTF-8
export SOURCE_DATE_EPOCH=1754697600 # the day Debian 13 came out; any fixed second would do
SUITE=trixie
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
KEPT_ATTRIBUTES=(--xattrs-include=trusted.overlay.opaque --xattrs-include=security.capability '--xattrs-include=user.*')
LAYER_UUID=00000000-0000-0000-0000-000000000000
started_seconds=$SECONDS

# What fails without having been expected to is at least named.
set -E
trap 'printf "error: %s, line %s: \"%s\" failed\n" "${BASH_SOURCE[0]##*/}" "$LINENO" "$BASH_COMMAND" >&2' ERR

step() { printf '%s [%3d s] %s\n' "${0##*/}:" $((SECONDS - started_seconds)) "$*"; }

# fail MESSAGE [HINT]
fail() {
  printf 'error: %s\n' "$1" >&2
  [ -z "${2:-}" ] || printf 'hint: %s\n' "$2" >&2
  exit 1
}

require_tools() {
  [ "$(id -u)" = 0 ] || fail "${0##*/} has to run as root: it makes file systems of other owners" "sudo $0"
  local tool package missing=()
  while read -r tool package; do
    command -v "$tool" >/dev/null || missing+=("$package")
  done <<-TOOLS
	apt-get apt
	jq jq
	mkfs.erofs erofs-utils
	mmdebstrap mmdebstrap
	sha256sum coreutils
	unshare util-linux
	TOOLS
  [ -e "$KEYRING" ] || missing+=(debian-archive-keyring)
  [ ${#missing[@]} = 0 ] || fail "missing: ${missing[*]}" "apt-get install ${missing[*]}"
}

# The mirror is the machine's own: the lines of its apt sources for Debian, asked for another suite.
debian_sources() {
  local architecture label site sources=""
  architecture=$(dpkg --print-architecture)
  while IFS='|' read -r label site; do
    case $label in
      Debian) sources+="deb [arch=$architecture signed-by=$KEYRING] $site $SUITE main"$'\n'
              sources+="deb [arch=$architecture signed-by=$KEYRING] $site $SUITE-updates main"$'\n' ;;
      Debian-Security) sources+="deb [arch=$architecture signed-by=$KEYRING] $site $SUITE-security main"$'\n' ;;
    esac
  done < <(apt-get indextargets --format '$(LABEL)|$(SITE)' 'Created-By: Packages' 'Origin: Debian' 'Component: main' | sort -u)
  [[ $sources == *" $SUITE main"* ]] ||
    fail "this machine's apt knows no Debian mirror" "add Debian to /etc/apt/sources.list and run apt-get update"
  printf '%s' "$sources" | sort -u
}

# Proxies that the machine's apt uses are the only part of its configuration that holds for a foreign root.
apt_proxies() { apt-config dump | grep -E '^Acquire::(http|https)::[Pp]roxy' || true; }

# What no container needs. Kept in the image, so that layers on top leave it out too.
dpkg_excludes() {
  cat <<-'RULES'
	path-exclude=/usr/share/man/*
	path-exclude=/usr/share/info/*
	path-exclude=/usr/share/lintian/*
	path-exclude=/usr/share/locale/*
	path-exclude=/usr/share/doc/*
	path-include=/usr/share/doc/*/copyright
	force-unsafe-io
	RULES
}

# read_packages FILE -> names, one a line; '#' starts a comment.
read_packages() { sed 's/#.*//' "$1" | tr -s ' \t' '\n' | sed '/^$/d'; }

# A place to work in, of at most the given MiB: in memory where there is plenty, because deleting trees from a
# disk can take minutes. The caller runs in a mount namespace of its own, so nothing has to be unmounted.
mount_workspace() {
  local directory=$1 wanted_mib=$2 available_mib
  available_mib=$(($(sed -n 's/^MemAvailable: *\([0-9]*\).*/\1/p' /proc/meminfo) / 1024))
  mkdir -p "$directory"
  if [ "$available_mib" -gt $((wanted_mib * 3 / 2)) ]; then
    mount -t tmpfs -o "size=${wanted_mib}m,mode=0755" workspace "$directory"
  else
    step "only $available_mib MiB of memory are free: working on disk, which is slower"
    rm -rf "${directory:?}"/*
    # Mounted onto itself, so that both kinds are mount points and what is mounted below is private.
    mount --bind "$directory" "$directory"
    trap leave_workspace EXIT
  fi
}

# For a workspace on disk, which would otherwise stay; `workspace` is the caller's.
leave_workspace() {
  local place
  for place in "$workspace"/*; do umount -R "$place" 2>/dev/null || true; done
  rm -rf --one-file-system "${workspace:?}"/* || true
}

# mount_layer DIGEST-FILE DIRECTORY
mount_layer() {
  mkdir -p "$2"
  mount -t erofs -o ro "$1" "$2" 2>/dev/null || mount -t erofs -o ro,loop "$1" "$2"
}

# mount_overlay ROOT UPPER WORK LOWER... (lowest first)
mount_overlay() {
  local root=$1 upper=$2 work=$3 lower="" layer
  shift 3
  for layer in "$@"; do lower="$layer${lower:+:$lower}"; done
  mkdir -p "$root" "$upper" "$work"
  mount -t overlay -o "lowerdir=$lower,upperdir=$upper,workdir=$work" overlay "$root"
}

# apt_install ROOT CACHE LOG PACKAGE...: installs into a root that has dpkg but no apt, with the machine's apt.
apt_install() {
  local root=$1 cache=$2 log=$3 config device
  shift 3
  # Left out with the manual pages, but some packages link into them as they are set up.
  mkdir -p "$root"/usr/share/man/man{1,2,3,4,5,6,7,8}
  mkdir -p "$cache/apt-lists/partial" "$root"/{proc,dev,tmp} "$root"/etc/apt/{apt.conf.d,preferences.d,sources.list.d,trusted.gpg.d} \
    "$root"/var/{lib/apt/lists,cache/apt/archives/partial} "$root/usr/sbin"
  # Package lists are worth keeping between runs; packages are not, installing them takes far longer.
  mount --bind "$cache/apt-lists" "$root/var/lib/apt/lists"
  mount -t proc proc "$root/proc"
  mount -t tmpfs -o mode=0755 dev "$root/dev"
  for device in null zero full random urandom tty; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
  done
  ln -s /proc/self/fd "$root/dev/fd"
  debian_sources >"$root/etc/apt/sources.list"
  config=$log.apt.conf
  {
    printf 'Dir "%s";\nDPkg::Chroot-Directory "%s";\n' "$root" "$root"
    printf 'Dir::State::status "%s/var/lib/dpkg/status";\n' "$root"
    printf 'APT::Architecture "%s";\nAPT::Install-Recommends "false";\n' "$(dpkg --print-architecture)"
    printf 'APT::Sandbox::User "root";\nAcquire::Languages "none";\nDpkg::Use-Pty "false";\n'
    printf 'Acquire::Retries "3";\nDPkg::Options { "--force-confold"; "--force-unsafe-io"; };\n'
    apt_proxies
  } >"$config"
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
  chmod 0755 "$root/usr/sbin/policy-rc.d"
  export APT_CONFIG=$config DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true PYTHONHASHSEED=0
  step "reading Debian's package lists"
  apt-get -q update >"$log" 2>&1 || apt_failed "$log" "are the mirrors in /etc/apt reachable, and do they carry $SUITE?"
  step "installing $# packages and what they need"
  apt-get -q --yes install "$@" </dev/null 2>&1 | tee "$log" | awk -v name="${0##*/}:" '
    /newly installed/ { wanted = $3; print name "         " $0; fflush() }
    /^Get:/ && ++got % 100 == 0 { print name "         fetched " got " of " wanted; fflush() }
    /^Unpacking/ && ++unpacked % 100 == 0 { print name "         unpacked " unpacked " of " wanted; fflush() }
    /^Setting up/ && ++ready % 100 == 0 { print name "         set up " ready " of " wanted; fflush() }' ||
    apt_failed "$log" "the name may not exist in $SUITE: apt-cache policy NAME on such a system tells"
  unset APT_CONFIG
  rm -f "$root/usr/sbin/policy-rc.d" "$config"
  umount -R "$root/dev" "$root/proc" "$root/var/lib/apt/lists"
}

apt_failed() {
  tail -n 20 "$1" | sed 's/^/    /' >&2
  fail "apt could not install the packages" "$2"
}

# clean_tree TREE: removes what installing leaves behind.
clean_tree() {
  local tree=$1
  rm -rf "$tree"/{dev,proc,sys,run,tmp,var/tmp,var/log,boot,media,mnt}/* \
    "$tree"/var/cache/{apt,ldconfig,debconf,fontconfig,man,nginx} "$tree"/var/lib/apt "$tree"/etc/apt \
    "$tree"/var/lib/dpkg/{status-old,available,available-old,diversions-old,statoverride-old,lock,lock-frontend,triggers/Lock} \
    "$tree"/usr/share/man "$tree"/var/lib/systemd "$tree"/etc/machine-id "$tree"/etc/{passwd-,group-,shadow-,gshadow-,subuid-,subgid-} \
    "$tree"/etc/{resolv.conf,hostname} 2>/dev/null || true
  find "$tree" -xdev \( -name __pycache__ -o -name .pwd.lock \) -prune -exec rm -rf {} +
  # No process in a container may gain rights: bits that no_new_privs would ignore anyway are only bait.
  find "$tree" -xdev -type f -perm /6000 -exec chmod ug-s {} +
}

# require_suite ROOT NAME HINT: packages of SUITE fit no other release.
require_suite() {
  local release
  release=$(. "$1/etc/os-release" 2>/dev/null && printf '%s %s' "${ID:-}" "${VERSION_CODENAME:-}") || true
  [ "$release" = "debian $SUITE" ] || fail "$2 is no Debian $SUITE, so that its packages cannot be added to it" "$3"
}

# compile_python ROOT TREE: byte code for the Python sources in TREE (all of ROOT, or what an overlay adds to it)
# that came with it, in the form that looks at no time.
compile_python() {
  local root=$1 tree=$2 places
  chroot "$root" /bin/sh -c 'command -v python3' >/dev/null 2>&1 || return 0
  places=$(cd "$tree" && compgen -G 'usr/lib/python3*'; cd "$tree" && compgen -G 'usr/local/lib/python3*') || true
  [ -n "$places" ] || return 0
  (cd "$tree" && find $places -name '*.py' -type f | sort | sed 's|^|/|') >"$root/tmp/python-sources"
  # Files that are not meant for this version of Python do not compile; nothing imports them either.
  PYTHONHASHSEED=0 chroot "$root" python3 -m compileall -q --invalidation-mode unchecked-hash \
    -x '/(test|tests|idlelib|lib2to3)/' -i /tmp/python-sources >/dev/null || true
  rm -f "$root/tmp/python-sources"
}

# finish_added WORKSPACE NAME LOWER...: cleans what was installed into the overlay WORKSPACE/root, whose upper is
# WORKSPACE/NAME. Cleaning happens below the overlay: what disappears there uncovers the lower file again, where
# deleting through the overlay would leave a whiteout.
finish_added() {
  local workspace=$1 name=$2
  shift 2
  umount "$workspace/root"
  clean_tree "$workspace/$name"
  mount_overlay "$workspace/root" "$workspace/$name" "$workspace/work" "$@"
  compile_python "$workspace/root" "$workspace/$name"
  umount "$workspace/root"
}

# pack_layer TREE LAYERS-DIRECTORY -> the digest
pack_layer() {
  local tree=$1 layers=$2 sorted=$1.sorted digest
  mkdir -p "$sorted" "$layers"
  # Of overlayfs' own marks only "opaque" says something about the content; the others name this very mount.
  tar --create --sort=name --xattrs "${KEPT_ATTRIBUTES[@]}" --directory "$tree" . |
    tar --extract --same-owner --same-permissions --xattrs "${KEPT_ATTRIBUTES[@]}" --directory "$sorted"
  mkfs.erofs --quiet -zlz4 "-T$SOURCE_DATE_EPOCH" "-U$LAYER_UUID" "$layers/partial.$$" "$sorted" >/dev/null
  digest=$(sha256sum "$layers/partial.$$")
  digest=${digest%% *}
  chmod 0444 "$layers/partial.$$"
  sync "$layers/partial.$$"
  mv -f "$layers/partial.$$" "$layers/$digest.erofs"
  printf '%s\n' "$digest"
}

# describe_layer FILE -> its JSON, as in an artifact's manifest
describe_layer() {
  local digest=${1##*/}
  digest=${digest%.erofs}
  jq -cn --arg id "$digest" --argjson length "$(stat -c %s "$1")" '{id: $id, length: $length, hashes: {sha256: $id}}'
}

# publish_layer CACHE-FILE LAYERS-DIRECTORY: a link where both are on one disk, else a copy; nothing if it is there.
publish_layer() {
  local target=$2/${1##*/}
  [ "$(stat -c %s "$target" 2>/dev/null)" != "$(stat -c %s "$1")" ] || return 0
  mkdir -p "$2"
  rm -f "$target.partial"
  ln "$1" "$target.partial" 2>/dev/null || { cp "$1" "$target.partial" && sync "$target.partial"; }
  mv -f "$target.partial" "$target"
}
