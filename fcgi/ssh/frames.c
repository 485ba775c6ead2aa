/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/ssh/frames.h"

#include "base/cleanup.h"
#include "fcgi/json.h"
#include "schema/agent.h"

#include <string.h>

#define EXIT_MAX 256
#define JSON_DEPTH 4

enum rc frame_get(const struct buf *b, struct frame *ret, struct fault *ret_f)
{
	const uint8_t *p = buf_data(b);
	size_t n;

	if (buf_len(b) < FRAME_HEAD)
		return RC_AGAIN;
	n = (size_t)p[1] | (size_t)p[2] << 8 | (size_t)p[3] << 16 | (size_t)p[4] << 24;
	if (n > AGENT_FRAME_MAX || (p[0] != FRAME_STDOUT && p[0] != FRAME_STDERR && p[0] != FRAME_EXIT))
		return fault_set(ret_f, RC_GUEST, 0, "the agent sent no frame");
	if (buf_len(b) < FRAME_HEAD + n)
		return RC_AGAIN;
	*ret = (struct frame){ .kind = p[0], .data = p + FRAME_HEAD, .n = n };
	return RC_OK;
}

void frame_done(struct buf *b, const struct frame *f)
{
	buf_consume(b, FRAME_HEAD + f->n);
}

enum rc frame_put(struct buf *b, uint8_t kind, const void *data, size_t n)
{
	const uint8_t head[FRAME_HEAD] = { kind, (uint8_t)n, (uint8_t)(n >> 8), (uint8_t)(n >> 16), (uint8_t)(n >> 24) };

	if (n > AGENT_FRAME_MAX || buf_room(b) < FRAME_HEAD + n)
		return RC_LIMIT;
	if (buf_put(b, head, sizeof(head)))
		return RC_NOMEM;
	return n ? buf_put(b, data, n) : RC_OK;
}

/* A name as "SIGTERM": its letters and digits behind SIG. */
static void signal_copy(char out[16], const char *name)
{
	size_t n = 0;

	if (!strncmp(name, "SIG", 3))
		name += 3;
	for (; *name && n < 15; name++)
		if ((*name >= 'A' && *name <= 'Z') || (*name >= '0' && *name <= '9'))
			out[n++] = *name;
	out[n] = '\0';
}

enum rc frame_exit_parse(const struct frame *f, struct frame_exit *ret, struct fault *ret_f)
{
	_cleanup_json_ struct json_object *o = NULL;
	struct frame_exit out = { .code = 255 };
	struct json_object *code, *sig;
	int64_t n;

	if (f->n > EXIT_MAX || json_parse_object((const char *)f->data, f->n, JSON_DEPTH, &o, NULL) ||
	    !json_object_object_get_ex(o, "code", &code) || !json_object_is_type(code, json_type_int))
		return fault_set(ret_f, RC_GUEST, 0, "the agent told no exit code");
	n = json_object_get_int64(code);
	if (n >= 0 && n <= 255)
		out.code = (int)n;
	if (json_object_object_get_ex(o, "signal", &sig) && json_object_is_type(sig, json_type_string))
		signal_copy(out.signal, json_object_get_string(sig));
	*ret = out;
	return RC_OK;
}

enum rc frame_answer_parse(const char *line, struct fault *ret_f)
{
	_cleanup_json_ struct json_object *o = NULL;
	struct json_object *ok;

	if (json_parse_object(line, strlen(line), JSON_DEPTH, &o, NULL) || !json_object_object_get_ex(o, "ok", &ok) ||
	    !json_object_is_type(ok, json_type_boolean) || !json_object_get_boolean(ok))
		return fault_set(ret_f, RC_GUEST, 0, "the agent refused");
	return RC_OK;
}
