#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What fcgi/runner/start.sh starts, for each preset by what its build leaves. "deno" is one that says how it was called.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0
mkdir "$dir/bin"
printf '#!/bin/sh\necho "${PWD#%s/app}" "$HOST" "$@"\n' "$dir" >"$dir/bin/deno"
chmod +x "$dir/bin/deno"

starts() { # starts WHAT FRAMEWORK CWD ENTRYPOINT "FILE..." ARG...
	local want=$1 framework=$2 cwd=$3 entrypoint=$4 files=$5 got
	shift 5
	rm -rf "$dir/app"
	mkdir "$dir/app"
	for f in $files; do install -D /dev/null "$dir/app/$f"; done
	got=$(cd "$dir/app" && env -u HOST PATH="$dir/bin:$PATH" sh -c "$(cat "$OLDPWD/fcgi/runner/start.sh")" x "$framework" 8000 "$cwd" "$entrypoint" URL "$@" 2>&1)
	if [ "$got" = "$want" ]; then passed=$((passed + 1)); echo "ok   $framework $cwd $files"; else
		failed=$((failed + 1)); printf 'FAIL %s %s %s\n  %s\n  instead of\n  %s\n' "$framework" "$cwd" "$files" "$got" "$want"; fi
}
run=" 0.0.0.0 run -A --no-prompt"
serve=" 0.0.0.0 serve -A --no-prompt --host 0.0.0.0 --port 8000"
static=" 0.0.0.0 run --no-prompt --no-config --allow-read=. --allow-net=0.0.0.0:8000 URL"
starts "$run dist/server/entry.mjs" astro "" main.ts "dist/server/entry.mjs dist/client/index.html"
starts "$static dist 8000 plain" astro "" main.ts "dist/index.html"
starts "$serve _fresh/server.js -x" fresh "" main.ts "_fresh/server.js main.ts" -x
starts "$run main.ts -x" fresh "" main.ts main.ts -x
starts "$static _site 8000 plain" lume "" main.ts "_site/index.html"
starts "$run .next/standalone/server.js" nextjs "" main.ts ".next/standalone/server.js"
starts "$run .next/standalone/server.js" nextjs "" main.ts ".next/standalone/server.js .next/standalone/.next/x .next/static/chunk.js public/logo"
if [ -f "$dir/app/.next/standalone/.next/static/chunk.js" ] && [ -f "$dir/app/.next/standalone/public/logo" ]; then passed=$((passed + 1)); else
	failed=$((failed + 1)); echo "FAIL what browsers fetch is not beside the server"; fi
starts "$run node_modules/next/dist/bin/next start --port 8000 --hostname 0.0.0.0" nextjs "" main.ts ".next/x node_modules/next/dist/bin/next"
starts "$static out 8000 plain" nextjs "" main.ts "out/index.html"
for f in nuxt solidstart tanstackstart; do starts "$run .output/server/index.mjs" $f "" main.ts ".output/server/index.mjs"; done
starts "$serve dist/server/server.js" tanstackstart "" main.ts "dist/server/server.js"
starts "$run node_modules/@remix-run/serve/dist/cli.js build/server/index.js" remix "" main.ts "node_modules/@remix-run/serve/dist/cli.js"
starts "$run node_modules/@react-router/serve/bin.js build/server/index.js" remix "" main.ts "node_modules/@react-router/serve/bin.js"
starts "$run .deno-deploy/server.ts" sveltekit "" main.ts ".deno-deploy/server.ts build/index.js"
starts "$run build/index.js" sveltekit "" main.ts "build/index.js"
starts "$static build 8000 plain" sveltekit "" main.ts "build/index.html"
starts "$run own.ts a b" nuxt "" own.ts "own.ts .output/server/index.mjs" a b
starts "/web$run .output/server/index.mjs" nuxt web main.ts "web/.output/server/index.mjs"
starts "/dist$run main.ts" "" dist main.ts "main.ts dist/main.ts"
starts "$run main.ts" "" dist main.ts "main.ts dist/x"
starts "nothing to start: no entrypoint 'main.ts', and nothing that a build with nuxt leaves" nuxt "" main.ts ""
starts "nothing to start: no entrypoint 'main.ts'" "" dist main.ts "dist/x"
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
