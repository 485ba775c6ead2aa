/* SPDX-License-Identifier: Apache-2.0 */
#include "base/config.h"

#include "base/cleanup.h"
#include "base/fd.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#define CONFIG_FILE_MAX 65536

static enum rc set_str(char *to, const char *value, const char *key, struct fault *ret_f)
{
	if (strlen(value) >= CONFIG_STR_MAX)
		return fault_set(ret_f, RC_INVALID, 0, "%s is longer than %d bytes", key, CONFIG_STR_MAX - 1);
	memcpy(to, value, strlen(value) + 1);
	return RC_OK;
}

static enum rc set_num(uint64_t *to, const char *value, uint64_t min, uint64_t max, const char *key,
		       struct fault *ret_f)
{
	char *end;
	unsigned long long v;

	errno = 0;
	v = strtoull(value, &end, 10);
	if (!isdigit((unsigned char)*value) || *end || errno || v < min || v > max)
		return fault_set(ret_f, RC_INVALID, 0, "%s must be a number from %llu to %llu", key,
				 (unsigned long long)min, (unsigned long long)max);
	*to = v;
	return RC_OK;
}

static enum rc set_key(struct config *c, const char *key, const char *value, struct fault *ret_f)
{
#define S(name, def, text)        \
	if (!strcmp(key, #name)) \
		return set_str(c->name, value, key, ret_f);
#define N(name, def, min, max, text) \
	if (!strcmp(key, #name))     \
		return set_num(&c->name, value, min, max, key, ret_f);
	CONFIG_TABLE(S, N)
#undef S
#undef N
	return fault_set(ret_f, RC_INVALID, 0, "unknown key '%.60s'", key);
}

static char *trim(char *s)
{
	char *end;

	while (isspace((unsigned char)*s))
		s++;
	end = s + strlen(s);
	while (end > s && isspace((unsigned char)end[-1]))
		*--end = '\0';
	return s;
}

static enum rc parse(struct config *c, char *text, struct fault *ret_f)
{
	char *save = NULL;
	unsigned int number = 0;

	for (char *next = text; next; next = save) {
		char *line, *eq;

		save = strchr(next, '\n');
		if (save)
			*save++ = '\0';
		number++;
		line = trim(next);
		if (!*line || *line == '#')
			continue;
		eq = strchr(line, '=');
		if (!eq)
			return fault_set(ret_f, RC_INVALID, 0, "line %u: expected key = value", number);
		*eq = '\0';
		if (set_key(c, trim(line), trim(eq + 1), ret_f)) {
			fault_wrap(ret_f, "line %u", number);
			return RC_INVALID;
		}
	}
	return RC_OK;
}

enum rc config_load(struct config *ret, const char *path, struct fault *ret_f)
{
	_cleanup_free_ char *text = NULL;
	struct config c;
	enum rc rc;

	memset(&c, 0, sizeof(c));
#define S(name, def, what) memcpy(c.name, def, sizeof(def));
#define N(name, def, min, max, what) c.name = (def);
	CONFIG_TABLE(S, N)
#undef S
#undef N
	rc = file_read_at(AT_FDCWD, path ? path : NB_SYSCONFDIR "/nestbox/nestbox.conf", CONFIG_FILE_MAX, &text, NULL,
			  ret_f);
	if (rc && (path || rc != RC_ABSENT))
		return rc;
	if (text) {
		rc = parse(&c, text, ret_f);
		if (rc) {
			fault_wrap(ret_f, "%s", path ? path : "nestbox.conf");
			return rc;
		}
	}
	*ret = c;
	return RC_OK;
}

enum rc path_join(char *out, size_t size, const char *dir, const char *name, struct fault *ret_f)
{
	size_t a = strlen(dir), b = strlen(name);

	if (a + b + 2 > size)
		return fault_set(ret_f, RC_INVALID, 0, "path is longer than %zu bytes", size - 1);
	memcpy(out, dir, a);
	out[a] = '/';
	memcpy(out + a + 1, name, b + 1);
	return RC_OK;
}
