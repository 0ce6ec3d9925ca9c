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

case_without_a_layer_store_the_slug_holds_everything() {
  use_layers=no
  new_app nodejs "$root/examples/nodejs"
  build
  [ "$(jq -c .layers "$app/meta/release.json")" = "[]" ]
  start web 'curl -s $url | grep "Hello from the Node.js example"'
  build
  said "package-lock.json is unchanged"
  measure "warm build $build_ms ms, slug $(size_of "$app/out") MB"
  start web 'curl -s $url | grep "Hello from the Node.js example"'
}

# A build script that needs a devDependency, and a dependency that is pruned afterwards.
node_app_with_build() {
  new_app "$1"
  cat >"$app/src/package.json" <<-'JSON'
	{
	  "name": "built", "version": "1.0.0", "private": true, "engines": { "node": "22.x" },
	  "scripts": { "build": "esbuild src.js --bundle --platform=node --outfile=out.js", "start": "node out.js" },
	  "dependencies": { "ms": "2.1.3" }, "devDependencies": { "esbuild": "0.25.0" }
	}
	JSON
  cat >"$app/src/src.js" <<-'JS'
	require('http').createServer((_, response) => response.end('built ' + require('ms')(60000) + '\n')).listen(process.env.PORT)
	process.on('SIGTERM', () => process.exit(0))
	JS
}

check_built_app() {
  said "Running build"
  said "Default types for Node.js -> web"
  start web 'curl -s $url | grep "built 1m"'
  for key in $(jq -r '.layers[]' "$app/meta/release.json"); do
    [ ! -e "$app/layers/$key/app/node_modules/esbuild" ] || { echo "devDependencies are still there"; exit 1; }
  done
  sed -i 's/built /built anew /' "$app/src/src.js"
  touch "$app/src/src.js"
  build
  said "is unchanged"
  measure "warm build $build_ms ms, slug $(du -sk "$app/out" | cut -f1) kB"
  start web 'curl -s $url | grep "built anew 1m"'
  [ "$(ls "$app/layers" | grep -c ^node_modules-)" = 1 ] || { ls "$app/layers"; echo "the pruned modules were packed twice"; exit 1; }
}

# Makes a lock file with a package manager of this machine. Where CI is set, some of them refuse to.
lock_in_cage() {
  (cd "$app/src" && HOME=$app/cache env -u CI YARN_ENABLE_IMMUTABLE_INSTALLS=false "$@") >"$app/lock.log" 2>&1 || { cat "$app/lock.log"; exit 1; }
  rm -rf "$app/src/node_modules"
  chown -R 1000:1000 "$app/src"
}

case_nodejs_with_a_build_script_npm() {
  node_app_with_build npm
  lock_in_cage npm install --package-lock-only
  build
  measure "cold build $build_ms ms"
  check_built_app
}

case_nodejs_with_a_build_script_yarn() {
  node_app_with_build yarn
  lock_in_cage npx --yes yarn@1.22.22 install --ignore-engines
  build
  check_built_app
}

case_nodejs_with_a_build_script_pnpm() {
  node_app_with_build pnpm
  lock_in_cage npx --yes pnpm@10 install --lockfile-only
  build
  check_built_app
}

case_nodejs_without_a_build_script_yarn_and_pnpm() {
  local manager
  for manager in "yarn@1.22.22 --ignore-engines" pnpm@10; do
    new_app "plain-${manager%@*}" "$root/examples/nodejs"
    rm "$app/src/package-lock.json"
    lock_in_cage npx --yes $manager install
    build
    start web 'curl -s $url | grep "Hello from the Node.js example"'
    build
    said "is unchanged"
  done
}

case_nodejs_with_yarn_berry() {
  node_app_with_build berry
  printf 'nodeLinker: node-modules\n' >"$app/src/.yarnrc.yml"
  lock_in_cage npx --yes @yarnpkg/cli-dist@4 install
  build
  check_built_app
}

case_nodejs_takes_nothing_from_earlier_builds_if_told_so() {
  local use
  for use in yes no; do
    use_layers=$use
    new_app "anew-$use" "$root/examples/nodejs"
    build
    printf false >"$app/env/NODE_MODULES_CACHE"
    build
    said "NODE_MODULES_CACHE is false"
    said "npm ci"
    start web 'curl -s $url | grep "Hello from the Node.js example"'
  done
}

case_nodejs_without_a_lock_file() {
  new_app nolock "$root/examples/nodejs"
  rm "$app/src/package-lock.json"
  build
  said " !     No lock file"
  start web 'curl -s $url | grep "Hello from the Node.js example"'
}

case_nodejs_with_two_lock_files_is_refused() {
  new_app twolocks "$root/examples/nodejs"
  echo >"$app/src/yarn.lock"
  refused
  said " !     There are lock files of more than one package manager: package-lock.json yarn.lock."
}

case_nodejs_with_a_broken_package_json_is_refused() {
  new_app broken "$root/examples/nodejs"
  echo '{ "name": ' >"$app/src/package.json"
  refused
  said " !     package.json is not valid JSON."
}

case_nodejs_with_a_failing_build_script_is_refused() {
  new_app failing "$root/examples/nodejs"
  jq '.scripts.build = "echo about to fail; exit 3"' "$root/examples/nodejs/package.json" >"$app/src/package.json"
  refused
  said "about to fail"
  said " !     The script build of package.json failed."
  said " !     Push rejected, failed to compile Node.js app."
}

case_nodejs_with_a_package_that_does_not_exist_is_refused() {
  new_app missing
  echo '{"dependencies": {"a-package-that-nobody-has-made-42": "1.0.0"}}' >"$app/src/package.json"
  refused
  said "404"
  said " !     The dependencies could not be installed."
}

case_nodejs_of_an_unknown_version_is_refused() {
  new_app unknown
  echo '{"engines": {"node": "99.x"}}' >"$app/src/package.json"
  refused
  said ' !     There is no Node.js version "99.x".'
}

case_python_of_a_missing_version_is_refused() {
  new_app python2 "$root/examples/python"
  echo python-2.7.18 >"$app/src/runtime.txt"
  refused
  said " !     Python 2.7.18 is not there; runtime.txt asks for it."
  said " !     Available: 3.13."
}

case_python_with_a_missing_package_is_refused() {
  new_app missing "$root/examples/python"
  echo "a-package-that-nobody-has-made-42==1" >"$app/src/requirements.txt"
  refused
  said "No matching distribution found"
  said " !     The dependencies could not be installed."
}

python_lock_case() { # TOOL COMMAND: makes the lock file inside the build image, then builds twice
  new_app "$1" "$root/examples/python"
  rm "$app/src/requirements.txt" "$app/src/.python-version"
  cat >"$app/src/pyproject.toml"
  python3 -m venv "$app/cache/locker" && "$app/cache/locker/bin/pip" -q install "$1"
  (cd "$app/src" && PATH=$app/cache/locker/bin:$PATH HOME=$app/cache bash -c "$2") >"$app/lock.log" 2>&1 || { cat "$app/lock.log"; exit 1; }
  rm -rf "$app/cache" && mkdir "$app/cache" && chown -R 1000:1000 "$app/src" "$app/cache"
  build
  measure "$1: cold build $build_ms ms"
  start web 'curl -s $url | grep "Hello from the Python example"'
  build
  said "Dependencies are unchanged"
  start web 'curl -s $url | grep "Hello from the Python example"'
}

# Prints the address of the package index, as pip knows it.
simple_index='pip config get global.index-url 2>/dev/null || python3 -c "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"'

case_python_with_uv() {
  python_lock_case uv "uv lock" <<-'TOML'
	[project]
	name = "sample"
	version = "1.0"
	requires-python = ">=3.11"
	dependencies = ["flask", "gunicorn"]
	TOML
}

# Named as an ordinary index, because not every mirror has the interface that poetry's own PyPI support asks.
case_python_with_poetry() {
  python_lock_case poetry "printf '[[tool.poetry.source]]\nname = \"index\"\nurl = \"%s/\"\npriority = \"primary\"\n' \"\$($simple_index)\" >>pyproject.toml; poetry lock" <<-'TOML'
	[tool.poetry]
	name = "sample"
	version = "1.0"
	description = ""
	authors = []
	package-mode = false
	[tool.poetry.dependencies]
	python = ">=3.11"
	flask = "*"
	gunicorn = "23.0.0"
	[build-system]
	requires = ["poetry-core"]
	build-backend = "poetry.core.masonry.api"
	TOML
}

case_python_with_pipenv() {
  python_lock_case pipenv 'rm pyproject.toml; printf "[packages]\nflask = \"*\"\ngunicorn = \"*\"\n[[source]]\nurl = \"%s\"\nverify_ssl = true\nname = \"pypi\"\n" "$('"$simple_index"')" >Pipfile; pipenv lock' </dev/null
}

case_python_django_collects_static_files() {
  new_app django
  cat >"$app/src/requirements.txt" <<<"django==5.2.7
gunicorn==23.0.0"
  echo 'web: gunicorn --bind 0.0.0.0:$PORT site1:application' >"$app/src/Procfile"
  cat >"$app/src/manage.py" <<-'PY'
	import os, sys
	os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site1")
	from django.core.management import execute_from_command_line
	execute_from_command_line(sys.argv)
	PY
  cat >"$app/src/site1.py" <<-'PY'
	import os
	os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site1")
	SECRET_KEY = os.environ["SECRET_KEY"]
	ALLOWED_HOSTS = ["*"]
	ROOT_URLCONF = "site1"
	INSTALLED_APPS = ["django.contrib.staticfiles", "django.contrib.contenttypes", "django.contrib.auth", "django.contrib.admin"]
	STATIC_URL = "static/"
	STATIC_ROOT = "collected"
	from django.core.wsgi import get_wsgi_application
	from django.http import HttpResponse
	from django.urls import path
	urlpatterns = [path("", lambda request: HttpResponse("Hello from Django"))]
	application = get_wsgi_application()
	PY
  refused
  said " !     manage.py collectstatic failed"
  printf secret >"$app/env/SECRET_KEY"
  build
  said "static files copied"
  [ -f "$app/out/app/collected/admin/css/base.css" ]
  # start gives no configuration of its own; the app's is added by a .profile.
  echo 'export SECRET_KEY=secret' >"$app/src/.profile"
  build
  start web 'curl -s $url | grep "Hello from Django"'
}

case_an_app_that_no_pack_knows_is_refused() {
  new_app unknown
  echo text >"$app/src/notes.txt"
  refused
  said " !     Unable to select a buildpack."
}

case_without_procfile_and_defaults_there_are_no_process_types() {
  new_app library
  echo '{"name": "library"}' >"$app/src/package.json"
  build
  said "None found"
  [ "$(jq -c .process_types "$app/meta/release.json")" = "{}" ]
}

case_a_malformed_procfile_is_refused() {
  new_app malformed
  printf 'web node server.js\n' >"$app/src/Procfile"
  refused
  said ' !     Line 1 of the Procfile is not of the form "type: command":'
}

case_one_off_commands_have_the_surroundings_of_the_app() {
  new_app oneoff "$root/examples/nodejs"
  printf 'export FROM_PROFILE=yes\n' >"$app/src/.profile"
  printf 'web: node web.js\nfail: exit 7\nodd: echo "a: b" && echo $FROM_PROFILE\n' >"$app/src/Procfile"
  build
  [ "$(one_off node -p '1 + 1')" = 2 ]
  [ "$(one_off bash -c 'echo $FROM_PROFILE $HOME $PWD $NODE_ENV "$1"' - 'a  b')" = "yes /app /app production a  b" ]
  [ "$(one_off 'echo two words | wc -w')" = 2 ]
  [ "$(one_off start odd | paste -sd,)" = "a: b,yes" ]
  local status=0
  one_off start fail || status=$?
  [ $status = 7 ]
  status=0
  one_off start wroker >"$app/log" || status=$?
  [ $status = 127 ]
  grep -F 'error: this release has no process type "wroker"' "$app/log"
  grep -F 'hint: it has fail, odd, web' "$app/log"
  # Nothing stands between the container's first process and the app's.
  [ "$(one_off bash -c 'echo $$')" = 1 ]
}

case_slugignore_keeps_files_out() {
  new_app ignoring "$root/examples/procfile"
  printf '*.log\n/docs/\n!keep.log\n' >"$app/src/.slugignore"
  mkdir "$app/src/docs" && touch "$app/src"/{a.log,keep.log,docs/x}
  build
  [ ! -e "$app/out/app/a.log" ] && [ ! -e "$app/out/app/docs" ] && [ -e "$app/out/app/keep.log" ]
}

case_several_packs_in_a_row() {
  new_app several "$root/examples/python"
  cp "$root/examples/nodejs"/{package.json,package-lock.json} "$app/src/"
  # The Python app's post_compile hook uses the first pack's Node.js.
  mkdir "$app/src/bin" && printf '#!/bin/sh\necho "the hook has node $(node -v)"\n' >"$app/src/bin/post_compile"
  printf 'heroku/nodejs\npython\n' >"$app/src/.buildpacks"
  build
  said "the hook has node v24"
  [ "$(jq -r .buildpack "$app/meta/release.json")" = "Node.js + Python" ]
  start web 'curl -s $url | grep "Hello from the Python example"'
}

case_a_pack_from_a_git_repository_and_a_reference() {
  new_app own "$root/examples/procfile"
  mkdir -p "$app/cache/pack/bin"
  printf '#!/bin/sh\necho Own\n' >"$app/cache/pack/bin/detect"
  printf '#!/bin/sh\nset -e\necho "       env $(cat $3/COLOUR), in $(pwd)"\nmkdir -p $1/.profile.d; echo "export FROM_PACK=yes" >$1/.profile.d/own.sh\ntouch $2/kept\n' >"$app/cache/pack/bin/compile"
  printf '#!/bin/sh\nprintf -- "---\\nconfig_vars:\\n  A: b\\ndefault_process_types:\\n  web: nothing\\n  extra: echo from pack $FROM_PACK\\n"\n' >"$app/cache/pack/bin/release"
  chmod +x "$app"/cache/pack/bin/*
  git -C "$app/cache/pack" init -q -b main
  git -C "$app/cache/pack" add . && git -C "$app/cache/pack" -c user.name=t -c user.email=t@t commit -qm one && git -C "$app/cache/pack" tag v1
  printf '#!/bin/sh\nexit 1\n' >"$app/cache/pack/bin/compile"
  git -C "$app/cache/pack" -c user.name=t -c user.email=t@t commit -qam two
  chown -R 1000:1000 "$app/cache"
  printf red >"$app/env/COLOUR"
  printf 'file:///cache/pack#v1' >"$app/env/BUILDPACK_URL"
  build
  said "-----> Fetching custom buildpack"
  said "-----> Own app detected"
  said "       env red, in /tmp/build"
  [ "$(jq -c '.process_types, .config_vars' "$app/meta/release.json" | paste -s)" = '{"web":"python3 server.py","extra":"echo from pack"}	{"A":"b"}' ]
  start web 'curl -s $url | grep "Hello from the Procfile example"'
  printf 'file:///cache/pack' >"$app/env/BUILDPACK_URL"
  refused
  said " !     Push rejected, failed to compile Own app."
}

case_a_full_disk_is_named() {
  new_app full "$root/examples/nodejs"
  jq '.scripts.build = "head -c 30000000 /dev/zero >big"' "$root/examples/nodejs/package.json" >"$app/src/package.json"
  DISK_MIB=24 refused
  tail -n 1 "$app/output" | grep -F " !     The build ran out of disk space."
}

case_a_killed_build_and_a_lack_of_processes_are_named() {
  new_app killed "$root/examples/nodejs"
  jq '.scripts.build = "node -e \"process.kill(process.pid, 9)\""' "$root/examples/nodejs/package.json" >"$app/src/package.json"
  refused
  tail -n 1 "$app/output" | grep -F " !     A process of the build was killed, most likely because it ran out of memory."
  jq '.scripts.build = "node --max-old-space-size=20 -e \"const a=[];for(;;)a.push(new Array(1e5).fill(a.length))\""' "$root/examples/nodejs/package.json" >"$app/src/package.json"
  refused
  tail -n 1 "$app/output" | grep -F " !     The build ran out of memory."
  new_app forks "$root/examples/procfile"
  mkdir -p "$app/cache/pack/bin"
  printf '#!/bin/bash\nulimit -u 20\nfor ((i = 0; i < 50; i++)); do sleep 5 & done\nwait\n' >"$app/cache/pack/bin/compile"
  chmod -R a+rX "$app/cache/pack" && chmod +x "$app/cache/pack/bin/compile"
  (cd "$app/cache/pack" && git init -q -b main . && git add . && git -c user.name=t -c user.email=t@t commit -qm one)
  chown -R 1000:1000 "$app/cache"
  printf 'file:///cache/pack' >"$app/env/BUILDPACK_URL"
  refused
  tail -n 1 "$app/output" | grep -F " !     The build ran out of processes."
}

case_submodules_are_fetched_at_their_commit() {
  new_app submodule "$root/examples/procfile"
  mkdir -p "$app/cache/part" && cd "$app/cache/part"
  git init -q -b main && echo one >text && git add . && git -c user.name=t -c user.email=t@t commit -qm one
  local commit
  commit=$(git rev-parse HEAD)
  echo two >text && git -c user.name=t -c user.email=t@t commit -qam two
  cd /
  git -C "$app/cache/part" update-server-info
  printf '[submodule "x"]\n\tpath = lib/part\n\turl = file:///cache/part\n' >"$app/src/.gitmodules"
  chown -R 1000:1000 "$app"
  echo "$commit lib/part" >"$app/cache/submodules"
  refused SUBMODULES=/cache/submodules
  said "which cannot be fetched"
  python3 -m http.server --bind 127.0.0.1 --directory "$app/cache" 0 >"$app/server" 2>&1 &
  local server=$! port=""
  until port=$(grep -oE 'port [0-9]+' "$app/server" | cut -d' ' -f2) && [ -n "$port" ]; do kill -0 $server; sleep 0.05; done
  sed -i "s,file:///cache/part,http://127.0.0.1:$port/part/.git," "$app/src/.gitmodules"
  build SUBMODULES=/cache/submodules || { kill $server; exit 1; }
  kill $server
  [ "$(cat "$app/out/app/lib/part/text")" = one ]
  [ ! -e "$app/out/app/lib/part/.git" ]
}

# --- languages whose toolchains are layers made on demand ---

case_go() {
  new_app go
  printf 'module example.com/hello\n\ngo 1.22\n' >"$app/src/go.mod"
  cat >"$app/src/main.go" <<-'GO'
	package main

	import (
		"fmt"
		"net/http"
		"os"
	)

	func main() {
		http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "Hello from Go") })
		panic(http.ListenAndServe(":"+os.Getenv("PORT"), nil))
	}
	GO
  build
  measure "cold build $build_ms ms"
  said "Default types for Go -> web"
  start web 'curl -s $url | grep "Hello from Go"'
  sed -i 's/Hello/Hello again/' "$app/src/main.go"
  build
  measure "warm build $build_ms ms"
  start web 'curl -s $url | grep "Hello again from Go"'
  printf 'module example.com/hello\n\ngo 1.99\n' >"$app/src/go.mod"
  refused
  said " !     go.mod asks for Go 1.99"
}

case_rust() {
  new_app rust
  mkdir "$app/src/src"
  printf '[package]\nname = "hello"\nversion = "0.1.0"\nedition = "2021"\n\n[dependencies]\nitoa = "1"\n' >"$app/src/Cargo.toml"
  cat >"$app/src/src/main.rs" <<-'RS'
	use std::io::{Read, Write};
	fn main() {
	    let listener = std::net::TcpListener::bind(format!("0.0.0.0:{}", std::env::var("PORT").unwrap())).unwrap();
	    for stream in listener.incoming() {
	        let mut stream = stream.unwrap();
	        let _ = stream.read(&mut [0; 4096]);
	        let body = format!("Hello from Rust {}\n", itoa::Buffer::new().format(2021));
	        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
	    }
	}
	RS
  build
  said "No Cargo.lock"
  measure "cold build $build_ms ms"
  start web 'curl -s $url | grep "Hello from Rust 2021"'
  sed -i 's/Hello/Hello again/' "$app/src/src/main.rs"
  build
  measure "warm build $build_ms ms"
  start web 'curl -s $url | grep "Hello again from Rust 2021"'
}

case_ruby() {
  new_app ruby
  # RubyGems may be out of reach: what comes with Ruby has to do.
  : >"$app/src/Gemfile"
  printf 'GEM\n  specs:\n\nPLATFORMS\n  ruby\n\nDEPENDENCIES\n' >"$app/src/Gemfile.lock"
  printf 'web: bundle exec ruby web.rb\n' >"$app/src/Procfile"
  cat >"$app/src/web.rb" <<-'RB'
	require "socket"
	require "json"
	server = TCPServer.new("0.0.0.0", Integer(ENV["PORT"]))
	Signal.trap("TERM") { exit }
	loop do
	  client = server.accept
	  client.readpartial(4096)
	  body = JSON.generate("Hello from" => "Ruby") + "\n"
	  client.write("HTTP/1.1 200 OK\r\nContent-Length: #{body.bytesize}\r\nConnection: close\r\n\r\n#{body}")
	  client.close
	rescue EOFError
	  client.close
	end
	RB
  build
  measure "cold build $build_ms ms"
  start web 'curl -s $url | grep "Hello from"'
  build
  said "Gemfile.lock is unchanged"
}

case_java() {
  new_app java
  cat >"$app/src/Main.java" <<-'JAVA'
	import com.sun.net.httpserver.HttpServer;
	import java.net.InetSocketAddress;

	public class Main {
	  public static void main(String[] arguments) throws Exception {
	    HttpServer server = HttpServer.create(new InetSocketAddress(Integer.parseInt(System.getenv("PORT"))), 0);
	    server.createContext("/", exchange -> {
	      byte[] body = "Hello from Java\n".getBytes();
	      exchange.sendResponseHeaders(200, body.length);
	      exchange.getResponseBody().write(body);
	      exchange.close();
	    });
	    server.start();
	  }
	}
	JAVA
  build
  measure "cold build $build_ms ms"
  said "Default types for Java -> web"
  start web 'curl -s $url | grep "Hello from Java"'
}

case_php() {
  new_app php
  mkdir "$app/src/public"
  echo '<?php echo "Hello from PHP at " . $_SERVER["REQUEST_URI"] . "\n"; error_log("seen");' >"$app/src/public/index.php"
  build
  measure "cold build $build_ms ms"
  start web 'curl -s $url/some/route | grep "Hello from PHP at /some/route"; sleep 0.3; grep seen "$app/log"'
}

# An OCI image, here made of the run image's own files, with compilers added by script/base-image.
case_an_oci_image_takes_the_place_of_the_base_image() {
  local place=$work/oci base_image=$root/script/base-image
  image_directories=()
  mount_image run
  oci_layout "${image_directories[0]}" "$place/image"
  "$base_image" --cache "$place/cache" --image "oci:$place/image:latest" "$place/state/layers"
  [ "$(jq -r .run.from "$place/state/images/stack.json")" = "oci:$place/image:latest" ]
  stack_directory=$place/state
  new_app oci "$root/examples/procfile"
  build
  start web 'curl -s $url | grep "Hello from the Procfile example"'
  # What was chosen stays chosen, and an image that is none changes nothing.
  "$base_image" --cache "$place/cache" "$place/state/layers" >"$place/said"
  if "$base_image" --cache "$place/cache" --image "oci:$place/none:latest" "$place/state/layers" >"$place/said" 2>&1; then
    echo "an image that does not exist was taken"
    exit 1
  fi
  grep -F "error: cannot fetch the image oci:$place/none:latest" "$place/said"
  [ "$(jq -r .run.from "$place/state/images/stack.json")" = "oci:$place/image:latest" ]
}

# oci_layout TREE DIRECTORY: an OCI image layout with one layer and the tag "latest".
oci_layout() {
  local tree=$1 layout=$2 layer config manifest type=application/vnd.oci.image
  mkdir -p "$layout/blobs/sha256"
  tar -C "$tree" -cf "$layout/blob" .
  layer=$(oci_blob "$type.layer.v1.tar")
  jq -n --arg architecture "$(dpkg --print-architecture)" --argjson layer "$layer" \
    '{architecture: $architecture, os: "linux", config: {}, rootfs: {type: "layers", diff_ids: [$layer.digest]}}' >"$layout/blob"
  config=$(oci_blob "$type.config.v1+json")
  jq -n --argjson config "$config" --argjson layer "$layer" --arg type "$type.manifest.v1+json" \
    '{schemaVersion: 2, mediaType: $type, config: $config, layers: [$layer]}' >"$layout/blob"
  manifest=$(oci_blob "$type.manifest.v1+json")
  jq '{schemaVersion: 2, manifests: [. + {annotations: {"org.opencontainers.image.ref.name": "latest"}}]}' <<<"$manifest" >"$layout/index.json"
  echo '{"imageLayoutVersion": "1.0.0"}' >"$layout/oci-layout"
}

# oci_blob TYPE: puts $layout/blob to its digest, and describes it.
oci_blob() {
  local digest size
  digest=$(sha256sum <"$layout/blob" | cut -d' ' -f1)
  size=$(stat -c %s "$layout/blob")
  mv "$layout/blob" "$layout/blobs/sha256/$digest"
  jq -n --arg type "$1" --arg digest "sha256:$digest" --argjson size "$size" '{mediaType: $type, digest: $digest, size: $size}'
}
