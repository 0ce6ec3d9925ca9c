# What the packs of this directory share: how they speak, how they read the app's configuration, and where
# they put what outlives a build. To be sourced by bin/compile of a pack.
#
# There are two places for things that are costly to make, and confusing them is the usual mistake:
#   * a *layer* ends up in the app's image. It has a key that names everything that went into it, holds a tree
#     rooted at /, and is never changed once it exists: the platform stores it as a layer of its own, so a push
#     that changes no dependency neither installs nor packs nor ships them again.
#   * CACHE_DIR never ends up anywhere. Losing it costs time only.

say_step() { printf -- '-----> %s\n' "$*"; }
say() { printf '       %s\n' "$*"; }
indent() { sed -u 's/^/       /'; }
say_warning() { printf ' !     %s\n' "$@"; }

# give_up LINE...: the last thing a pack says. The driver prints nothing after it but what the build ran out of.
give_up() {
  printf ' !\n' >&2
  printf ' !     %s\n' "$@" >&2
  printf ' !\n' >&2
  exit 1
}

# The app's configuration is a directory of files. What could break the build's own tools is not for export.
config_value() { [ -f "$ENV_DIR/$1" ] && cat "$ENV_DIR/$1"; }
export_config() {
  local file name
  for file in "$ENV_DIR"/*; do
    name=${file##*/}
    case $name in
      PATH | HOME | GIT_DIR | CPATH | CPPATH | LD_PRELOAD | LD_LIBRARY_PATH | LIBRARY_PATH | BASH_ENV | ENV | IFS | PS4 | SHELLOPTS | BASHOPTS | BASH_FUNC_*) continue ;;
      *[!A-Za-z0-9_]* | [0-9]*) continue ;;
    esac
    [ ! -f "$file" ] || export "$name=$(cat "$file")"
  done
}

# digest_of FILE...: one hash over the names and contents of those that exist; more text may come on stdin.
digest_of() {
  local file
  {
    [ -t 0 ] || cat
    for file in "$@"; do [ ! -f "$file" ] || sha256sum "$file"; done
  } | sha256sum | cut -c1-24
}

# layer_path KEY -> the root of a finished layer; fails if there is none.
layer_path() {
  local place
  for place in "$NEW_LAYERS_DIR" "$LAYERS_DIR"; do
    if [ -d "$place/$1" ]; then printf '%s\n' "$place/$1"; return 0; fi
  done
  return 1
}
# layer_begin KEY -> an empty directory to fill; layer_finish KEY makes it the layer.
layer_begin() {
  rm -rf "$NEW_LAYERS_DIR/.partial-$1"
  mkdir -p "$NEW_LAYERS_DIR/.partial-$1"
  printf '%s\n' "$NEW_LAYERS_DIR/.partial-$1"
}
layer_finish() {
  [ ! -d "$NEW_LAYERS_DIR/$1" ] || { mkdir -p "$CACHE_DIR/.trash" && mv "$NEW_LAYERS_DIR/$1" "$CACHE_DIR/.trash/$1.$$"; }
  mv "$NEW_LAYERS_DIR/.partial-$1" "$NEW_LAYERS_DIR/$1"
}
# layer_use KEY: makes it part of the image; later ones lie above earlier ones.
layer_use() { grep -qxF "$1" "$LAYER_LIST" 2>/dev/null || printf '%s\n' "$1" >>"$LAYER_LIST"; }

# bounded_cache DIRECTORY: a download cache that begins anew every 30 days, because package managers only ever add.
bounded_cache() {
  if [ -n "$(find "$1/.begun" -mtime +30 2>/dev/null)" ]; then
    mkdir -p "$CACHE_DIR/.trash" && mv "$1" "$CACHE_DIR/.trash/${1##*/}.$$"
  fi
  [ -f "$1/.begun" ] || { mkdir -p "$1" && : >"$1/.begun"; }
}

# profile NAME <<TEXT: a script that every process of the app sources as it starts.
profile() { mkdir -p "$BUILD_DIR/.profile.d" && cat >"$BUILD_DIR/.profile.d/$1.sh"; }

# for_later_packs NAME=VALUE...: environment for the packs after this one.
for_later_packs() {
  local pair pack
  pack=$(cd "$(dirname "$0")/.." && pwd)
  [ -w "$pack" ] || return 0
  for pair in "$@"; do printf 'export %s=%q\n' "${pair%%=*}" "${pair#*=}"; done >>"$pack/export"
}

# seconds since the shell started, for "done (1.2 s)"
elapsed_since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f s", b - a }'; }
