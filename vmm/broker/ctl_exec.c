/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/ctl_exec.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "schema/agent.h"
#include "vmm/broker/agent_link.h"

#include <json-c/json.h>
#include <poll.h>
#include <string.h>

#define FRAME_HEAD 5
#define FRAME_STDIN 0
#define FRAME_STDOUT 1
#define FRAME_STDERR 2
#define FRAME_EXIT 3

static enum rc exec_begin(int fd, char *const argv[], struct fault *ret_f)
{
	struct json_object *o = json_object_new_object(), *list = json_object_new_array(), *answer = NULL;
	static char line[AGENT_LINE_MAX];
	const char *text;
	enum rc rc;

	json_object_object_add(o, "service", json_object_new_string("exec"));
	json_object_object_add(o, "user", json_object_new_string("root"));
	for (; *argv; argv++)
		json_object_array_add(list, json_object_new_string(*argv));
	json_object_object_add(o, "argv", list);
	text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN);
	rc = fd_write_all(fd, text, strlen(text), now_ms() + AGENT_ANSWER_MS, ret_f);
	if (!rc)
		rc = fd_write_all(fd, "\n", 1, now_ms() + AGENT_ANSWER_MS, ret_f);
	json_object_put(o);
	if (!rc)
		rc = fd_read_line(fd, line, sizeof(line), now_ms() + AGENT_ANSWER_MS, ret_f);
	if (!rc)
		rc = agent_parse(line, strlen(line), &answer, ret_f);
	json_object_put(answer);
	return rc;
}

static enum rc stdin_frame(int fd, int *in_fd, struct fault *ret_f)
{
	uint8_t frame[FRAME_HEAD + 16384];
	ssize_t n = read(*in_fd, frame + FRAME_HEAD, sizeof(frame) - FRAME_HEAD);

	if (n <= 0) {
		*in_fd = -1;
		n = 0;
	}
	frame[0] = FRAME_STDIN;
	for (int i = 0; i < 4; i++)
		frame[1 + i] = (uint8_t)((size_t)n >> (8 * i));
	return fd_write_all(fd, frame, FRAME_HEAD + (size_t)n, UINT64_MAX, ret_f);
}

static int exit_code(const char *text, size_t n)
{
	struct json_object *o = NULL, *v;
	struct json_tokener *tok = json_tokener_new_ex(4);
	int code = 255;

	if (tok)
		o = json_tokener_parse_ex(tok, text, (int)n);
	if (json_object_is_type(o, json_type_object) && json_object_object_get_ex(o, "code", &v) &&
	    json_object_is_type(v, json_type_int))
		code = json_object_get_int(v) & 255;
	json_object_put(o);
	json_tokener_free(tok);
	return code;
}

static enum rc guest_frame(int fd, int *ret_code, struct fault *ret_f)
{
	static uint8_t mem[AGENT_FRAME_MAX];
	uint8_t head[FRAME_HEAD];
	size_t n;
	enum rc rc = fd_read_exact(fd, head, sizeof(head), UINT64_MAX, ret_f);

	if (rc)
		return rc;
	n = (size_t)head[1] | (size_t)head[2] << 8 | (size_t)head[3] << 16 | (size_t)head[4] << 24;
	if (n > sizeof(mem))
		return fault_set(ret_f, RC_GUEST, 0, "agent sent a frame that is too long");
	rc = fd_read_exact(fd, mem, n, now_ms() + AGENT_ANSWER_MS, ret_f);
	if (rc)
		return rc;
	if (head[0] == FRAME_EXIT)
		*ret_code = exit_code((char *)mem, n);
	else if (head[0] == FRAME_STDOUT || head[0] == FRAME_STDERR)
		rc = fd_write_all(head[0], mem, n, UINT64_MAX, ret_f);
	return rc;
}

enum rc ctl_exec(int fd, char *const argv[], int *ret_code, struct fault *ret_f)
{
	int in_fd = 0;
	enum rc rc = exec_begin(fd, argv, ret_f);

	*ret_code = -1;
	while (!rc && *ret_code < 0) {
		struct pollfd p[2] = { { fd, POLLIN, 0 }, { in_fd, POLLIN, 0 } };

		if (poll(p, 2, -1) < 0)
			return fault_set(ret_f, RC_SYS, errno, "poll");
		if (p[0].revents)
			rc = guest_frame(fd, ret_code, ret_f);
		else if (p[1].revents)
			rc = stdin_frame(fd, &in_fd, ret_f);
	}
	return rc;
}
