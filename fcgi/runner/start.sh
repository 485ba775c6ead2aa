# SPDX-License-Identifier: Apache-2.0
# Starts an app that has a framework preset or a working directory, by what its build left. Arguments: framework or "", port, working
# directory or "", entrypoint, our server of static files as a URL, then the program's own arguments.
framework=$1 port=$2 dir=$3 entrypoint=$4 static=$5
shift 5
top=$PWD
[ -z "$dir" ] || cd "./$dir" || exit 1
: "${HOST:=0.0.0.0}"
export HOST

program() { # program FILE ARG...
	[ ! -f "$1" ] || exec deno run -A --no-prompt "$@"
}
handler() { # handler FILE ARG...: a module whose default export answers requests
	[ ! -f "$1" ] || exec deno serve -A --no-prompt --host 0.0.0.0 --port "$port" "$@"
}
files() { # files DIRECTORY
	[ ! -f "$1/index.html" ] ||
		exec deno run --no-prompt --no-config --allow-read=. "--allow-net=0.0.0.0:$port" "$static" "$1" "$port" plain
}
entry() {
	program "$entrypoint" "$@"
	cd "$top" && program "$entrypoint" "$@"
}

# Another entrypoint than the default one was asked for by name.
[ -n "$framework" ] && [ "$entrypoint" = main.ts ] || entry "$@"
case $framework in
astro)
	program dist/server/entry.mjs "$@"
	files dist/client
	files dist
	;;
fresh) handler _fresh/server.js "$@" ;;
lume) files _site ;;
nextjs)
	# Its own server has beside it neither what browsers fetch nor, without HOSTNAME, an address that others reach.
	if [ -f .next/standalone/server.js ]; then
		[ ! -d .next/static ] || [ -e .next/standalone/.next/static ] || ln -s ../../static .next/standalone/.next/static
		[ ! -d public ] || [ -e .next/standalone/public ] || ln -s ../../public .next/standalone/public
		export HOSTNAME=0.0.0.0
	fi
	program .next/standalone/server.js "$@"
	[ ! -d .next ] || program node_modules/next/dist/bin/next start --port "$port" --hostname 0.0.0.0 "$@"
	files out
	;;
nuxt | solidstart | tanstackstart)
	program .output/server/index.mjs "$@"
	handler dist/server/server.js "$@"
	files .output/public
	;;
remix)
	program node_modules/@remix-run/serve/dist/cli.js build/server/index.js "$@"
	program node_modules/@react-router/serve/bin.js build/server/index.js "$@"
	;;
sveltekit)
	program .deno-deploy/server.ts "$@"
	program build/index.js "$@"
	files build
	;;
esac
[ -z "$framework" ] || entry "$@"
echo "nothing to start: no entrypoint '$entrypoint'${framework:+, and nothing that a build with $framework leaves}" >&2
exit 1
