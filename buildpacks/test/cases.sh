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

case_python_example() {
  new_app python "$root/examples/python"
  build
  said "-----> Python app detected"
  measure "cold build $build_ms ms"
  start web 'curl -s $url | grep "Hello from the Python example, Python 3.13"'
  sed -i 's/Hello from/Hello again from/' "$app/src/app.py"
  build
  said "Dependencies are unchanged"
  measure "one line changed, warm build $build_ms ms, slug $(du -sk "$app/out" | cut -f1) kB, layers $(size_of "$app/layers") MB"
  start web 'curl -s $url | grep "Hello again from the Python example"'
}

case_static_example() {
  new_app static "$root/examples/static"
  build
  said "-----> Static app detected"
  measure "build $build_ms ms, slug $(du -sk "$app/out" | cut -f1) kB"
  start web '
    curl -s $url/ | grep "Hello from the static example"
    curl -s $url/some/route | grep "Hello from the static example"
    curl -sI $url/style.css | grep "Content-Type: text/css"
    [ "$(curl -s -o /dev/null -w "%{http_code}" $url/.static/nginx.conf)" != 200 ] || exit 1
    grep -q "GET /some/route HTTP/1.1\" 200" "$app/log"'
}

case_procfile_example() {
  new_app procfile "$root/examples/procfile"
  build
  said "-----> Procfile app detected"
  measure "build $build_ms ms, slug $(du -sk "$app/out" | cut -f1) kB"
  start web 'curl -s $url | grep "Hello from the Procfile example"'
}
