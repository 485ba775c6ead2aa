/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/runner/server.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/runner/limits.h"
#include "fcgi/runner/start_sh.h"
#include "fcgi/runner/static_js.h"

#include <openssl/evp.h>
#include <string.h>

#define QUOTE_MS 1000
#define QUOTE_LINES 200

static struct json_object *member(struct json_object *o, const char *key, enum json_type type)
{
	struct json_object *v;

	return o && json_object_object_get_ex(o, key, &v) && json_object_is_type(v, type) ? v : NULL;
}

static const char *text_of(struct json_object *o, const char *key, const char *absent)
{
	struct json_object *v = member(o, key, json_type_string);

	return v && json_object_get_string_len(v) ? json_object_get_string(v) : absent;
}

/* As a data: URL, so that nothing of ours lies among the app's files. */
static const char *static_url(void)
{
	static const char head[] = "data:application/javascript;base64,";
	static unsigned char url[sizeof(head) + 4 * (sizeof(static_js) / 3 + 1)];

	memcpy(url, head, sizeof(head));
	EVP_EncodeBlock(url + sizeof(head) - 1, (const unsigned char *)static_js, (int)(sizeof(static_js) - 1));
	return (const char *)url;
}

/* It may read the app's files and listen, no more. */
static struct json_object *static_argv(struct json_object *runtime)
{
	struct json_object *spa = member(runtime, "spa", json_type_boolean);
	char listen[32], port[16];

	snprintf(port, sizeof(port), "%d", RUNNER_APP_PORT);
	snprintf(listen, sizeof(listen), "--allow-net=0.0.0.0:%d", RUNNER_APP_PORT);
	return json_strings((const char *[]){ "deno", "run", "--no-prompt", "--no-config", "--allow-read=.", listen, static_url(),
					      text_of(runtime, "cwd", "."), port, json_object_get_boolean(spa) ? "spa" : "plain", NULL });
}

struct json_object *server_argv(struct json_object *config)
{
	struct json_object *runtime = member(config, "runtime", json_type_object), *args = member(runtime, "args", json_type_array), *argv;
	const char *framework = text_of(config, "framework", ""), *cwd = text_of(runtime, "cwd", "");
	const char *entrypoint = text_of(runtime, "entrypoint", "main.ts");
	char port[16];

	if (!strcmp(text_of(runtime, "type", "dynamic"), "static"))
		return static_argv(runtime);
	snprintf(port, sizeof(port), "%d", RUNNER_APP_PORT);
	argv = *framework || *cwd ? json_strings((const char *[]){ "sh", "-c", start_sh, "nestbox-app", framework, port, cwd, entrypoint,
								   static_url(), NULL }) :
				    json_strings((const char *[]){ "deno", "run", "-A", "--no-prompt", entrypoint, NULL });
	for (size_t i = 0; args && i < json_object_array_length(args); i++)
		json_object_array_add(argv, json_object_get(json_object_array_get_idx(args, i)));
	return argv;
}

static struct json_object *unit_request(const char *op)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "service", json_object_new_string("unit"));
	json_object_object_add(o, "op", json_object_new_string(op));
	json_object_object_add(o, "name", json_object_new_string("app"));
	return o;
}

static enum rc dial(struct link *l, const char *vm, int wait_ms, int *ret_fd, struct fault *ret_f)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "service", json_object_new_string("dial"));
	json_object_object_add(o, "port", json_object_new_int(RUNNER_APP_PORT));
	json_object_object_add(o, "wait_ms", json_object_new_int(wait_ms));
	return link_service(l, vm, o, ret_fd, NULL, ret_f);
}

enum rc server_listens(struct link *l, const char *vm, int wait_ms, struct fault *ret_f)
{
	_cleanup_fd_ int fd = -1;

	return dial(l, vm, wait_ms, &fd, ret_f);
}

enum rc server_ask(struct link *l, const char *vm, const char *host, int wait_ms, struct fault *ret_f)
{
	_cleanup_fd_ int fd = -1;
	char text[500], got[8];
	enum rc rc = dial(l, vm, wait_ms, &fd, ret_f);

	if (rc)
		return rc;
	snprintf(text, sizeof(text), "GET / HTTP/1.1\r\nHost: %.255s\r\nUser-Agent: nestbox-health\r\nConnection: close\r\n\r\n", host);
	rc = fd_write_all(fd, text, strlen(text), now_ms() + 5000, ret_f);
	if (!rc)
		rc = fd_read_exact(fd, got, 7, now_ms() + 30000, ret_f);
	if (!rc && memcmp(got, "HTTP/1.", 7))
		rc = fault_set(ret_f, RC_GUEST, 0, "what listens on port %d does not speak HTTP", RUNNER_APP_PORT);
	return rc;
}

enum rc server_stat(struct link *l, const char *vm, struct server_state *ret, struct fault *ret_f)
{
	struct json_object *answer = NULL, *v;
	_cleanup_fd_ int fd = -1;
	enum rc rc = link_service(l, vm, unit_request("stat"), &fd, &answer, ret_f);

	if (rc)
		return rc;
	*ret = (struct server_state){ .running = false };
	if (json_object_object_get_ex(answer, "running", &v))
		ret->running = json_object_get_boolean(v);
	if (json_object_object_get_ex(answer, "starts", &v))
		ret->starts = json_object_get_int(v);
	if (json_object_object_get_ex(answer, "code", &v))
		ret->code = json_object_get_int(v);
	if (json_object_object_get_ex(answer, "seq", &v) && json_object_get_int64(v) > 0)
		ret->seq = (uint64_t)json_object_get_int64(v);
	json_object_put(answer);
	return RC_OK;
}

void server_quote(struct link *l, const char *vm, link_line_fn *fn, void *arg)
{
	struct json_object *o = unit_request("follow"), *line, *text;
	_cleanup_fd_ int fd = -1;
	uint64_t deadline = now_ms() + QUOTE_MS;
	char raw[RUNNER_LINE_MAX * 2];

	json_object_object_add(o, "after", json_object_new_int(0));
	if (link_service(l, vm, o, &fd, NULL, NULL))
		return;
	for (int n = 0; n < QUOTE_LINES && !fd_read_line(fd, raw, sizeof(raw), deadline, NULL); n++) {
		line = json_tokener_parse(raw);
		text = member(line, "line", json_type_string);
		if (text)
			fn(arg, true, json_object_get_string(text));
		json_object_put(line);
	}
}
