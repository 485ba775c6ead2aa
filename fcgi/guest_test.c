/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/guest_test.h"

#include "base/fd.h"
#include "fcgi/peers.h"
#include "schema/agent.h"

#include <string.h>

#define FRAME_HEAD 5
#define FRAME_EXIT 3
#define FRAMES_MAX 64 /* before the exit: `test` says little */
#define EXIT_MAX 1024

static char *exec_line(const char *flag, const char *path)
{
	_cleanup_json_ struct json_object *o = json_object_new_object();
	struct json_object *argv = json_object_new_array();
	char *text = NULL;

	json_object_array_add(argv, json_object_new_string("test"));
	json_object_array_add(argv, json_object_new_string(flag));
	json_object_array_add(argv, json_object_new_string(path));
	json_add_str(o, "service", "exec");
	json_add(o, "argv", argv);
	if (!o || asprintf(&text, "%s\n", json_text(o)) < 0)
		return NULL;
	return text;
}

static enum rc exit_parse(const char *text, size_t n, bool *ret, struct fault *ret_f)
{
	_cleanup_json_ struct json_object *o = NULL;
	int64_t code = -1;

	if (json_parse_object(text, n, JSON_DEPTH_CONFIG, &o, NULL) || json_get_int(o, "code", &code, NULL))
		return fault_set(ret_f, RC_PROTO, 0, "agent sent a broken exit frame");
	*ret = code == 0;
	return RC_OK;
}

static enum rc exit_read(int fd, uint64_t deadline_ms, bool *ret, struct fault *ret_f)
{
	_cleanup_free_ uint8_t *body = malloc(AGENT_FRAME_MAX);

	if (!body)
		return fault_set(ret_f, RC_NOMEM, 0, "agent frame");
	for (int i = 0; i < FRAMES_MAX; i++) {
		uint8_t head[FRAME_HEAD];
		uint32_t n;
		enum rc rc = fd_read_exact(fd, head, sizeof(head), deadline_ms, ret_f);

		if (rc)
			return rc;
		n = head[1] | (uint32_t)head[2] << 8 | (uint32_t)head[3] << 16 | (uint32_t)head[4] << 24;
		if (n > AGENT_FRAME_MAX || (head[0] == FRAME_EXIT && n > EXIT_MAX))
			return fault_set(ret_f, RC_PROTO, 0, "agent sent a frame of %u bytes", n);
		rc = fd_read_exact(fd, body, n, deadline_ms, ret_f);
		if (rc)
			return rc;
		if (head[0] == FRAME_EXIT)
			return exit_parse((const char *)body, n, ret, ret_f);
	}
	return fault_set(ret_f, RC_PROTO, 0, "agent sent no exit frame");
}

enum rc guest_test(struct api *api, const char *id, const char *flag, const char *path, bool *ret, struct fault *ret_f)
{
	_cleanup_free_ char *line = exec_line(flag, path);
	_cleanup_fd_ int fd = -1;
	enum rc rc;

	if (!line)
		return fault_set(ret_f, RC_NOMEM, 0, "agent question");
	rc = broker_service(api, id, line, &fd, NULL, ret_f);
	return rc ? rc : exit_read(fd, now_ms() + AGENT_ANSWER_MS, ret, ret_f);
}
