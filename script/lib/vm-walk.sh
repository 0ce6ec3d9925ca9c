# What script/test-vm does inside its machine, in two lives with a power cut between them. Says "THE WALK SUCCEEDED"
# at the end of the second.
exec 2>&1
set -euo pipefail
export HOME=/root PYTHONUNBUFFERED=1
cd /root/flynn
trap 'echo "FAILED: line $LINENO: $BASH_COMMAND"; journalctl -u flynn-host --no-pager -n 40; dmesg | tail -n 20' ERR

page() { curl -sS --max-time 60 -H "Host: $1.flynn.localhost" http://127.0.0.1/; }
say() { printf '===== %s\n' "$*"; }

# expect TEXT COMMAND...: its output has the text.
expect() {
  local wanted=$1 said
  shift
  said=$("$@" 2>&1) || true
  grep -qF -- "$wanted" <<<"$said" || { printf 'wanted "%s" of: %s\ngot:\n%s\n' "$wanted" "$*" "$said"; false; }
}

if [ ! -e /root/second-life ]; then
  say "$(uname -r), $(systemctl --version | head -n 1), $(stat -fc %T /sys/fs/cgroup)"
  [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]
  script/up --programs /root/programs --no-example
  systemctl is-active flynn-host flynn-router
  before=$(systemctl show -p MainPID flynn-host flynn-router)
  script/up --programs /root/programs --no-example
  [ "$before" = "$(systemctl show -p MainPID flynn-host flynn-router)" ]

  for example in static python; do
    say "push examples/$example"
    cp -R "examples/$example" "/root/$example"
    cd "/root/$example"
    git init -q -b main .
    git add -A
    git -c user.name=Test -c user.email=test@example.com commit -q -m first
    flynn create "my-$example"
    git push --no-progress flynn main
    cd /root/flynn
  done
  expect "Hello from the static example" page my-static
  expect "Hello from the Python example" page my-python

  say "limits"
  cd /root/python
  flynn limit set web memory=192MB
  flynn scale web=2
  [ "$(grep -lx $((192 << 20)) /sys/fs/cgroup/flynn/*/memory.max | wc -l)" = 2 ]
  grep -qx max /sys/fs/cgroup/flynn/memory.max
  expect "killed: out of memory" flynn run python3 -c 'a = [bytearray(1 << 20) for i in range(1200)]'
  flynn run sh -c 'exit 7' && false || [ $? = 7 ]
  expect "uid=1000(app)" flynn run id
  expect "0::/" flynn run cat /proc/self/cgroup
  expect "Read-only file system" flynn run sh -c 'echo 1 >/proc/sys/kernel/panic'
  [ "$(cat /sys/fs/cgroup/flynn/*/pids.max | grep -c '^[0-9]')" -ge 3 ]

  say "the daemon is killed"
  kill -9 "$(systemctl show -p MainPID --value flynn-host)"
  expect "Hello from the Python example" page my-python
  until flynn ps >/dev/null 2>&1; do sleep 0.2; done
  flynn env set GREETING=hello

  say "the power goes"
  touch /root/second-life
  sync /root/second-life
  echo b >/proc/sysrq-trigger
  sleep 60
fi

say "second life"
began=$(date +%s)
until [ "$(page my-python | head -c 29)" = "Hello from the Python example" ] && page my-static | grep -q "Hello from the static"; do
  [ $(($(date +%s) - began)) -lt 240 ]
  sleep 0.2
done
say "both apps answer $(cut -d. -f1 /proc/uptime) s after the kernel started"
[ "$(flynn -a my-python env get GREETING)" = hello ]
[ "$(flynn -a my-python ps | grep -c ' up ')" = 2 ]

say "a lab whose packets come late, which takes a kernel with netem"
flynn-host lab up --hosts 2 --apart --no-outside
there=$(flynn-host lab status | awk '$1 == "host2" { print $2 }')
least_ms() { flynn-host lab exec host1 -- ping -n -q -c 5 "$there" | sed -n 's|^rtt .* = \([0-9]*\)\..*|\1|p'; }
[ "$(least_ms)" -lt 100 ]
flynn-host lab slow host2 --latency 100ms
expect "100 ms slower" flynn-host lab status
[ "$(least_ms)" -ge 200 ]
flynn-host lab heal
[ "$(least_ms)" -lt 100 ]
flynn-host lab down

script/down --yes
[ ! -e /sys/fs/cgroup/flynn ]
[ -z "$(nft list tables)" ]
[ -z "$(losetup -a)" ]
[ "$(ip -o link | grep -c flynn)" = 0 ]
[ ! -e /etc/systemd/system/flynn-host.service ]
! grep -q erofs /proc/mounts
! pgrep flynn
echo "THE WALK SUCCEEDED"
