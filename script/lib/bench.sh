# What the benchmarks of whole clusters share. To be sourced by a bash script that has set
# `set -euo pipefail`; `root` is the repository.

# prepare_bench EXAMPLE: builds it, and the programs and images of a cluster; sets `bench`.
prepare_bench() {
  [ "$(id -u)" = 0 ] || { echo "error: this has to run as root: it starts containers" >&2; exit 1; }
  # The programs as script/up builds them: another choice of packages would choose other features.
  cargo build --release --quiet -p flynn-host -p flynn-cli -p container --bins
  cargo build --release --quiet -p e2e --example "$1"
  local target
  target=$(cargo metadata --format-version 1 --no-deps --offline | jq -r .target_directory)
  bench=$(find "$target" -path "*/release/examples/$1" -type f | head -n 1)
  if [ -z "${FLYNN_TEST_IMAGES:-}" ]; then
    # As script/test makes them: both share what is kept.
    "$root/script/base-image" /var/cache/flynn/test/layers
    FLYNN_TEST_IMAGES=/var/cache/flynn/test
  fi
  export FLYNN_TEST_IMAGES
}
