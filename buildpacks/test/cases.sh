# What the buildpacks are expected to do. Each case is a story with an app; the functions it uses are in cage.sh.

case_nodejs_example() {
  new_app nodejs "$root/examples/nodejs"
  build
  said "-----> Building sample..."
  said "-----> Node.js app detected"
  said "Procfile declares types -> web, worker"
  measure "cold build $build_ms ms"
  start web 'curl -s $url | grep "Hello from the Node.js example"'
  start worker 'grep "worker started" "$app/log"'
  sed -i 's/Hello from/Hello again from/' "$app/src/web.js"
  build
  said "package-lock.json is unchanged"
  measure "one line changed, warm build $build_ms ms, slug $(du -sk "$app/out" | cut -f1) kB, layers $(size_of "$app/layers") MB"
  start web 'curl -s $url | grep "Hello again from the Node.js example"'
}
