/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file methods on standard input and output, for tests that compare them with Deno. Argument: the base directory. One
 * JSON line in, one out:
 *   {"method": NAME, "params": {..}, "chunks": [base64, ..]?}
 *   {"ok": value} | {"error": {constructorName, code, message}} | {"invalid": message}
 * With chunks, writeFile and writeTextFile get their content as a stream; walk and expandGlob answer
 * {"entries": [..], "error": ..?}.
 */
#include "guest/b64.h"
#include "guest/fs.h"

#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct json_object *error_value(const struct fs_error *e)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "constructorName", json_object_new_string(e->constructor_name));
	json_object_object_add(o, "code", *e->code ? json_object_new_string(e->code) : NULL);
	json_object_object_add(o, "message", json_object_new_string_len(e->message, (int)e->message_n));
	return o;
}

static void answer(struct json_object *out, enum rc rc, struct json_object *ok, const struct fs_error *e)
{
	if (rc == RC_OK)
		json_object_object_add(out, "ok", ok);
	else if (rc == RC_INVALID)
		json_object_object_add(out, "invalid", json_object_new_string(e->message));
	else
		json_object_object_add(out, "error", error_value(e));
}

static enum rc run_walk(struct fs_ctx *ctx, const char *method, struct json_object *params, struct json_object *list,
			struct fs_error *e)
{
	struct buf buf = BUF_INIT(1 << 20);
	struct fs_walk *w = NULL;
	bool done = false;
	enum rc rc = fs_walk_open(ctx, method, params, &w, e);

	while (rc == RC_OK && !done) {
		char *line, *end;

		rc = fs_walk_next(w, &buf, 1000, &done, e);
		for (; buf_len(&buf) && (end = memchr(buf_data(&buf), '\n', buf_len(&buf)));
		     buf_consume(&buf, (size_t)(end - line) + 1)) {
			line = (char *)buf_data(&buf);
			*end = '\0';
			json_object_array_add(list, json_tokener_parse(line));
		}
	}
	fs_walk_close(w);
	buf_free(&buf);
	return rc;
}

static enum rc run_write(struct fs_ctx *ctx, struct json_object *params, struct json_object *chunks, struct fs_error *e)
{
	struct fs_write *w;
	enum rc rc = fs_write_open(ctx, params, &w, e);

	if (rc != RC_OK)
		return rc;
	for (size_t i = 0; rc == RC_OK && i < json_object_array_length(chunks); i++) {
		struct json_object *chunk = json_object_array_get_idx(chunks, i);
		size_t n = (size_t)json_object_get_string_len(chunk);
		char *mem = malloc(B64_ROOM(n) + 1);

		if (!mem || !b64_decode(mem, &n, json_object_get_string(chunk), n))
			abort();
		rc = fs_write_chunk(w, mem, n, e);
		free(mem);
	}
	if (rc == RC_OK)
		return fs_write_close(w, false, e);
	fs_write_close(w, true, NULL);
	return rc;
}

static void run(struct fs_ctx *ctx, struct json_object *in, struct json_object *out)
{
	static struct fs_error e;
	const char *name = json_object_get_string(json_object_object_get(in, "method"));
	struct json_object *params = json_object_object_get(in, "params");
	struct json_object *chunks = json_object_object_get(in, "chunks"), *ok = NULL;
	const struct fs_method *m = fs_method_find(name);
	enum rc rc;

	if (chunks) {
		answer(out, run_write(ctx, params, chunks, &e), NULL, &e);
	} else if (!strcmp(name, "walk") || !strcmp(name, "expandGlob")) {
		struct json_object *list = json_object_new_array();

		rc = run_walk(ctx, name, params, list, &e);
		if (rc != RC_OK)
			answer(out, rc, NULL, &e);
		json_object_object_add(out, "entries", list);
	} else if (m) {
		rc = m->fn(ctx, params, &ok, &e);
		answer(out, rc, ok, &e);
	} else {
		json_object_object_add(out, "invalid", json_object_new_string("no such method"));
	}
}

int main(int argc, char **argv)
{
	struct fs_ctx *ctx = NULL;
	struct fault f;
	char *line = NULL;
	size_t cap = 0;
	ssize_t n;

	if (argc != 2 || fs_ctx_new(argv[1], &ctx, &f) != RC_OK) {
		fprintf(stderr, "usage: fs-driver DIRECTORY\n");
		return 1;
	}
	while ((n = getline(&line, &cap, stdin)) > 0) {
		struct json_object *in = json_tokener_parse(line), *out = json_object_new_object();

		if (!in)
			abort();
		run(ctx, in, out);
		puts(json_object_to_json_string_ext(out, JSON_C_TO_STRING_PLAIN));
		fflush(stdout);
		json_object_put(in);
		json_object_put(out);
	}
	free(line);
	fs_ctx_free(ctx);
	return 0;
}
